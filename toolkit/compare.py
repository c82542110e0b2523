"""Comparing two of {eager, Core ML, TFLite, ExecuTorch, ONNX}: their outputs, and the first module where they part."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from acmix.toolkit.artifact import REFERENCE, Artifact, check_digests, executed_by, probes_of
from acmix.toolkit.errors import UsageError
from acmix.toolkit.evaluate import rebuild
from acmix.toolkit.execute import Reference, compared, read_references, run_sample, snapped
from acmix.toolkit.profile import interface_of
from acmix.toolkit.recipe import FLOOR_DB, Tolerance
from acmix.toolkit.samples import Probes, Samples
from acmix.toolkit.session import open_session
from acmix.toolkit.target import Array, ExecutedBy
from acmix.toolkit.verify import Agreement, Compared, agree

SCHEMA_VERSION = 1
EAGER = "eager"
SIMULATION = "its simulation"
Eager = Callable[[Sequence[Array]], list[Array]]


@dataclass(frozen=True)
class CompareRequest:
    """What to compare. b: None is eager float32. model: as --model, for a network of one's own.

    photos: compared beside the probes, by their outputs. layers: find the first module where the two part.
    """

    a: Artifact
    b: Artifact | None = None
    layers: bool = False
    model: str | None = None
    photos: Samples | None = None


@dataclass(frozen=True)
class ModuleAgreement:
    """One module of the prepared network, at the last value of it that both sides have.

    module: path, '' for the network itself; kind: its class; line: file:line; operator: what made the value.
    covers: other modules whose values the files do not have on their own, because they are computed together.
    snr_db: of the worst sample; None where the value is all zeros. inputs_snr_db: of the values that it is computed
    from, worst one, on the same sample. parts: this falls below what is asked, and by a jump.
    """

    module: str
    kind: str
    line: str
    operator: str
    covers: tuple[str, ...]
    snr_db: float | None
    inputs_snr_db: float | None
    worst_sample: str
    parts: bool


@dataclass(frozen=True)
class Comparison:
    """A against B. first: the first module that parts; None where none does, or none was looked at.

    executed_by: of A, then of B. remarks: what a reader must know of how the figures came about.
    """

    a: str
    b: str
    executed_by: tuple[str, str]
    outputs: tuple[Agreement, ...]
    modules: tuple[ModuleAgreement, ...] = ()
    first: ModuleAgreement | None = None
    asked_db: float = 0.0
    remarks: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def agrees(self) -> bool:
        """Whether every output passes and no module parts."""
        return self.first is None and all(output.passed for output in self.outputs)


def compare(request: CompareRequest, scratch: Path, log: Path) -> Comparison:
    """Run both sides on the probes (and photos) and compare; with layers, module by module on the probes.

    scratch: an empty folder for copies of the files. Raises UsageError for artifacts of unlike interfaces, a changed
    file (a remark with layers, which are for damaged files), a network that cannot be built again where it is needed,
    and GateError when a runtime fails.
    """
    sides = [request.a] if request.b is None else [request.a, request.b]
    _check_interfaces(sides)
    remarks = [remark for side in sides for remark in _digest_remarks(side, request.layers)]
    by = [runs_by(side) for side in sides]
    eager = _eager(request) if request.layers or (request.b is None and request.photos is not None) else None
    references = list(_references(request, eager))
    found, *others = [_outputs(side, references, log) for side in sides]
    wanted = others[0] if others else [list(reference.outputs) for reference in references]
    rows = [
        compared(replace(reference, outputs=tuple(want)), got)
        for reference, want, got in zip(references, wanted, found, strict=True)
    ]
    # What is stored with a quantized file is the simulation of its integers.
    simulated = request.b is None and eager is None and request.a.manifest.quantization is not None
    other = SIMULATION if simulated else EAGER
    made = Comparison(
        request.a.name,
        request.b.name if request.b else other,
        (by[0], by[1] if request.b else other),
        _agreements(sides, rows, simulated),
        remarks=tuple(remarks),
    )
    if not request.layers:
        return made
    # Imported here: the outputs alone need no torch.
    from acmix.toolkit._compare_layers import compare_layers

    asked_db = min(output.asked_db for output in made.outputs)
    if any(side.manifest.quantization is not None for side in sides):
        # Probes are no photos: inner integers clip what calibration never saw.
        asked_db = min(asked_db, FLOOR_DB)
    inputs = [(r.identifier, r.inputs) for r in references[: len(_probes(request))]]
    modules, more = compare_layers(request, inputs, asked_db, scratch, log)
    first = next((module for module in modules if module.parts), None)
    return replace(made, modules=modules, first=first, asked_db=asked_db, remarks=(*made.remarks, *more))


def _check_interfaces(sides: Sequence[Artifact]) -> None:
    a, b = sides[0].manifest, sides[-1].manifest
    for what, one, other in (("inputs", a.inputs, b.inputs), ("outputs", a.outputs, b.outputs)):
        if [spec.shape for spec in one] != [spec.shape for spec in other]:
            shapes = [", ".join("x".join(map(str, spec.shape)) for spec in specs) for specs in (one, other)]
            raise UsageError(
                f"{sides[0].name} and {sides[-1].name} cannot be compared: "
                f"their {what} are {shapes[0]} and {shapes[1]}.\n"
                "Give two artifacts of one network and one input size."
            )


def _digest_remarks(artifact: Artifact, layers: bool) -> list[str]:
    try:
        check_digests(artifact)
    except UsageError as error:
        if not layers:
            raise UsageError(f"{error}\nTo find where a changed file parts: acmix compare ... --layers.") from error
        return [str(error).splitlines()[0]]
    return []


def runs_by(artifact: Artifact) -> ExecutedBy:
    """Who executes the artifact's file here; raises UsageError when nobody does."""
    by, reason = executed_by(artifact)
    if not by:
        raise UsageError(f"{artifact.name} cannot be compared on this host: {reason}.\nCompare another target's file.")
    return by


def _eager(request: CompareRequest) -> Eager:
    network, missing = rebuild(request.a, request.model)
    if network is None:
        raise UsageError(f"the eager network of {request.a.name} is needed here: {missing}.")
    return network


def _probes(request: CompareRequest) -> Probes:
    """Of A, within what both files can express."""
    probes = probes_of(request.a)
    others = probes_of(request.b).bounds if request.b else ()
    if not probes.bounds or not others:
        return replace(probes, bounds=probes.bounds or others)
    pairs = zip(probes.bounds, others, strict=True)
    return replace(probes, bounds=tuple((max(one[0], two[0]), min(one[1], two[1])) for one, two in pairs))


def _references(request: CompareRequest, eager: Eager | None) -> Iterator[Reference]:
    """Eager on every sample: rebuilt where there is a network, else as it was stored with the artifact."""
    grids = [side.manifest.preprocess for side in (request.a, request.b) if side and side.manifest.pixel_grid]
    grid = grids[0] if grids else None
    probes = _probes(request)
    samples = [(name, snapped(one, grid)) for name, one in zip(probes.identifiers, probes, strict=True)]
    for reference in _stored(request.a, samples):
        yield replace(reference, outputs=tuple(eager(reference.inputs))) if eager else reference
    if request.photos is None:
        return
    nothing = tuple(None for _ in request.a.manifest.outputs)
    for name, one in zip(request.photos.identifiers, request.photos, strict=True):
        fed = snapped(one, grid)
        yield Reference(name, fed, tuple(eager(fed)) if eager else (), nothing)


def _stored(artifact: Artifact, samples: Iterable[tuple[str, tuple[Array, ...]]]) -> list[Reference]:
    path = artifact.folder / REFERENCE
    try:
        return read_references(path, samples)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read: {error}\nExport the model again.") from error


def _outputs(artifact: Artifact, references: Sequence[Reference], log: Path) -> list[list[Array]]:
    interface = interface_of(artifact)
    with open_session(artifact.session(runs_by(artifact)), log) as session:
        session.load()
        return [run_sample(session, reference.inputs, interface) for reference in references]


def _agreements(
    sides: Sequence[Artifact], rows: Sequence[Sequence[Compared]], simulated: bool
) -> tuple[Agreement, ...]:
    """Of two artifacts, the looser tolerance decides: each may be that far from eager."""
    agreements = []
    quantization = sides[0].manifest.quantization
    for i, spec in enumerate(sides[0].manifest.outputs):
        tolerance: Tolerance = min((side.manifest.tolerances[i] for side in sides), key=lambda t: t.snr_db)
        if simulated and quantization is not None:
            tolerance = quantization.conversion
        column = [row[i] for row in rows]
        agreements.append(agree(spec.name, column, tolerance, sides[0].manifest.model.classifies))
    return tuple(agreements)
