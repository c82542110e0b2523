"""Module by module: the values inside saved files, matched with the captured program's, and where they part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from acmix.toolkit import catalog, machine
from acmix.toolkit._compare_match import Match, aligned, match_values
from acmix.toolkit._compare_program import steps_of, values_of
from acmix.toolkit._compare_rows import modules_of
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.capture import Captured, Network, capture
from acmix.toolkit.compare import CompareRequest, ModuleAgreement, runs_by
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.evaluate import rebuild
from acmix.toolkit.execute import Interface, file_inputs
from acmix.toolkit.joining import own_file
from acmix.toolkit.lower import LoweringRequest, start_lowering
from acmix.toolkit.profile import interface_of
from acmix.toolkit.program import save_program
from acmix.toolkit.session import Session, SessionRequest, open_session
from acmix.toolkit.target import Array, Tap, to_layout
from acmix.toolkit.verify import SNR_LIMIT_DB, snr_db

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Sample = tuple[str, tuple[Array, ...]]
LIKE_UNTAPPED_DB = 100.0
MATCHED_ON = ("ramp", "noise")
LEAST_MATCH_DB = {"float32": 50.0, "float16": 30.0}
LEAST_MATCH_QUANTIZED_DB = 10.0


def compare_layers(
    request: CompareRequest, samples: Sequence[Sample], asked_db: float, scratch: Path, log: Path
) -> tuple[tuple[ModuleAgreement, ...], tuple[str, ...]]:
    """Every module in order of execution, and remarks. Raises UsageError, GateError; see acmix.toolkit.compare."""
    network = _network(request.a, request.model)
    sides = [request.a] if request.b is None else [request.a, request.b]
    if request.b and request.b.manifest.model.weights.digest != request.a.manifest.model.weights.digest:
        raise UsageError(
            f"{request.a.name} and {request.b.name} have other weights: their layers cannot agree.\n"
            "Export both from the same weights, or compare the outputs alone, without --layers."
        )
    captured = capture(network, sorted({side.manifest.target.name for side in sides}))
    program = captured.programs[request.a.manifest.target.name].program
    remarks: list[str] = []
    with contextlib.ExitStack() as stack:
        opened = []
        for index, side in enumerate(sides):
            work = Work(side, captured, scratch / str(index), log)
            work.folder.mkdir()
            opened.append(_open(work, program, samples, remarks, stack))
        kept, ratios = _measure(program, opened, samples, request.b is None)
    names = [name for name, _ in samples]
    return modules_of(steps_of(program), kept, ratios, names, asked_db), tuple(remarks)


def _network(artifact: Artifact, model: str | None) -> Network:
    network, missing = rebuild(artifact, model)
    if not isinstance(network, Network):
        raise UsageError(f"the eager network of {artifact.name} is needed here: {missing}.")
    return network


# One side: a saved file, tapped, its values matched with the program's nodes


@dataclass(frozen=True)
class Work:
    """One side's artifact, the captured network it came from, and a folder for copies."""

    artifact: Artifact
    captured: Captured
    folder: Path
    log: Path


@dataclass(frozen=True)
class Tapped:
    """A tapped copy in a session, and the node of each of its values."""

    session: Session
    interface: Interface
    taps: tuple[Tap, ...]
    matches: Mapping[str, Match]

    def __call__(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """The real value of every tap and of every output (`output.0`, in the program's layout) on one sample."""
        arrays = self.session.run(file_inputs(inputs, self.interface))
        count = len(self.interface.outputs)
        pairs = zip(arrays[:count], self.interface.file_outputs, self.interface.outputs, strict=True)
        values = {f"output.{i}": to_layout(*pair) for i, pair in enumerate(pairs)}
        return values | {tap.name: _real(array, tap) for tap, array in zip(self.taps, arrays[count:], strict=True)}


def _real(array: Array, tap: Tap) -> Array:
    if np.issubdtype(array.dtype, np.floating):
        return array
    return ((array.astype(np.float32) - tap.zero_point) * tap.scale).astype(np.float32)


def _open(
    work: Work, program: ExportedProgram, samples: Sequence[Sample], remarks: list[str], stack: contextlib.ExitStack
) -> Tapped:
    """Tap the saved file, and learn from a fresh export of the same program which value is which node."""
    tapped = open_tapped(work, own_file(work.artifact, "comparing its layers"), "saved", stack)
    remarks += _unlike_untapped(work, tapped, samples)
    chosen = [inputs for name, inputs in samples if name in MATCHED_ON]
    steps, nodes = steps_of(program), by_name([values_of(program, inputs) for inputs in chosen])
    nodes = {name: arrays for name, arrays in nodes.items() if name in steps}
    least = least_match_db(work.artifact)
    fresh = _fresh(work, remarks)
    if fresh is not None:
        with contextlib.ExitStack() as inner:
            healthy = open_tapped(work, fresh, "fresh", inner)
            matches = match_values(by_name([healthy(inputs) for inputs in chosen]), nodes, least)
        known = {tap.name for tap in tapped.taps} & {tap.name for tap in healthy.taps}
        if 2 * len(known) >= len(tapped.taps):
            return _with_outputs(tapped, matches, program)
        remarks.append(
            f"{work.artifact.name}: a fresh export names its values otherwise, so its values are matched by number "
            "alone: what comes after a break may be missing"
        )
    matches = match_values(by_name([tapped(inputs) for inputs in chosen]), nodes, least)
    return _with_outputs(tapped, matches, program)


def least_match_db(artifact: Artifact) -> float:
    """How close a value of a file must come to a node's to be the same."""
    return LEAST_MATCH_DB.get(artifact.manifest.recipe.activations, LEAST_MATCH_QUANTIZED_DB)


def _with_outputs(tapped: Tapped, matches: dict[str, Match], program: ExportedProgram) -> Tapped:
    outputs = {f"output.{i}": Match(name) for i, name in enumerate(program.graph_signature.user_outputs)}
    inner = {name: match for name, match in matches.items() if not name.startswith("output.")}
    return Tapped(tapped.session, tapped.interface, tapped.taps, {**inner, **outputs})


def by_name(samples: Sequence[Mapping[str, Array]]) -> dict[str, list[Array]]:
    """For each name, its arrays over the samples."""
    return {name: [sample[name] for sample in samples] for name in samples[0]}


def open_tapped(work: Work, file: Path, name: str, stack: contextlib.ExitStack) -> Tapped:
    """A tapped copy of a file, loaded in its runtime; its values not yet matched."""
    target = catalog.load_target(work.artifact.manifest.target.name)
    copy = work.folder / f"{name}-tapped{target.suffix}"
    taps = target.tap(file, copy)
    reference = runs_by(work.artifact) == "reference"
    session = stack.enter_context(open_session(SessionRequest(target.name, str(copy), reference=reference), work.log))
    session.load()
    return Tapped(session, interface_of(work.artifact), taps, {})


def _unlike_untapped(work: Work, tapped: Tapped, samples: Sequence[Sample]) -> Iterator[str]:
    """A remark where giving more outputs changed the outputs: a runtime fuses less of what is watched."""
    request = tapped.session.request
    count = len(tapped.interface.outputs)
    worst = SNR_LIMIT_DB
    plain = SessionRequest(request.target, str(work.artifact.model_file), reference=request.reference)
    with open_session(plain, work.log) as session:
        session.load()
        for _, inputs in samples:
            fed = file_inputs(inputs, tapped.interface)
            pairs = zip(session.run(fed), tapped.session.run(fed)[:count], strict=True)
            worst = min([worst, *(r for one, other in pairs if (r := snr_db(one, other)) is not None)])
    if worst < LIKE_UNTAPPED_DB:
        yield (
            f"{work.artifact.name}: the outputs of its tapped copy differ from the file's own by {worst:.0f} dB, "
            "so the figures of its modules are of the copy"
        )


def _fresh(work: Work, remarks: list[str]) -> Path | None:
    """The same program exported again, healthy; None with a remark where that cannot be done."""
    manifest = work.artifact.manifest
    by_number = f"{work.artifact.name}: its values are matched by number alone, what comes after a break may be missing"
    if manifest.recipe.is_quantized:
        remarks.append(f"{by_number} (a quantized file cannot be exported again without its calibration)")
        return None
    catalog.require_packages(manifest.target.name)
    stored = work.folder / "captured.pt2"
    file = work.folder / f"fresh{catalog.load_target(manifest.target.name).suffix}"
    save_program(work.captured.programs[manifest.target.name].program, stored)
    request = LoweringRequest(
        program=str(stored),
        file=str(file),
        model=manifest.model.name,
        recipe=manifest.recipe,
        inputs=work.captured.inputs,
        outputs=work.captured.outputs,
        options=manifest.target.options,
        preprocess=manifest.preprocess,
        labels=manifest.labels,
    )
    log = work.folder / "lowering.log"
    try:
        with start_lowering(manifest.target.name, log, len(machine.usable_cpus())) as lowering:
            lowering.lower(request)
    except (GateError, UsageError) as error:
        remarks.append(f"{by_number} (a fresh export fails: {str(error).splitlines()[0]})")
        return None
    return file


# Both sides: figures for each node


def _measure(
    program: ExportedProgram, sides: Sequence[Tapped], samples: Sequence[Sample], against_eager: bool
) -> tuple[list[str], dict[str, list[float | None]]]:
    """The nodes that all sides have, in order, and the SNR of each on each sample."""
    taken = [_first_of_each(side.matches, {tap.name for tap in side.taps}) for side in sides]
    kept = [name for name in steps_of(program) if all(name in side for side in taken)]
    ratios: dict[str, list[float | None]] = {name: [] for name in kept}
    for _, inputs in samples:
        eager = values_of(program, inputs) if against_eager else {}
        values = [side(inputs) for side in sides]
        for name in kept:
            flat = [aligned(v[t[name]], s.matches[t[name]]) for v, t, s in zip(values, taken, sides, strict=True)]
            wanted = eager[name].ravel() if against_eager else flat[1]
            ratios[name].append(snr_db(wanted, flat[0]))
    return kept, ratios


def _first_of_each(matches: Mapping[str, Match], there: set[str]) -> dict[str, str]:
    """Node to value: the first value in the file's order, of those that it has."""
    nodes: dict[str, str] = {}
    for value, match in matches.items():
        if value in there or value.startswith("output."):
            nodes.setdefault(match.node, value)
    return nodes
