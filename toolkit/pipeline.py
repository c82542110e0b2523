"""The flow: capture once, lower each target in its own process, prove each file, seal each artifact."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from acmix.toolkit import catalog, machine
from acmix.toolkit.artifact import (
    REFERENCE,
    Artifact,
    Manifest,
    ModelRecord,
    TargetRecord,
    digest_files,
    write_manifest,
)
from acmix.toolkit.errors import AcmixError, UsageError
from acmix.toolkit.execute import Interface, Reference, compare, on_pixel_grid, tolerances, write_references
from acmix.toolkit.lower import LoweringRequest, start_lowering
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.samples import Probes, Samples
from acmix.toolkit.session import SessionRequest, open_session
from acmix.toolkit.source import ModelSource
from acmix.toolkit.spec import TensorSpec
from acmix.toolkit.target import Array, Lowered, Placement
from acmix.toolkit.verify import Proof, SampleSet, prove

Stage = Literal["capture", "wait", "lower", "verify", "done", "failed"]
Progress = Callable[[str, Stage, float], None]
"""Called with the target ('' for all), the stage it enters, and the seconds that the last one took."""


@dataclass(frozen=True)
class TargetRequest:
    """One target with its own options."""

    name: str
    options: Any

    def folder_name(self, model: str, recipe: Recipe) -> str:
        return f"{model}-{self.name}-{recipe.name}"


@dataclass(frozen=True)
class ExportRequest:
    """Everything that --flags say, checked."""

    source: ModelSource
    recipe: Recipe
    targets: tuple[TargetRequest, ...]
    out: Path
    weights: str | None = None
    seed: int = 0
    labels: tuple[str, ...] = ()
    photos: Samples | None = None
    overwrite: bool = False
    snr_db_overrides: dict[str, float] = field(default_factory=dict)
    require_full_delegation: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one target: an artifact, or an error."""

    target: str
    artifact: Artifact | None = None
    error: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Shared:
    """What all targets share once the capture is done."""

    program: Path
    model: ModelRecord
    preparation: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    probes: list[Reference]
    photos: list[Reference]
    sample_sets: tuple[SampleSet, ...]
    seconds: float


def export(request: ExportRequest, progress: Progress) -> list[Outcome]:
    """Export to every target; one that fails does not take the others with it.

    Raises UsageError before any work for what cannot be done at all, and for a model that cannot be captured.
    """
    refuse_early(request)
    request.out.mkdir(parents=True, exist_ok=True)
    slots = machine.conversions_at_once(len(request.targets))
    shared: Future[Shared] = Future()
    cancelled = threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="acmix-") as scratch,
        ThreadPoolExecutor(slots, thread_name_prefix="lower") as pool,
    ):
        futures = [pool.submit(_export_one, request, t, shared, progress, slots, cancelled) for t in request.targets]
        try:
            shared.set_result(_capture(request, Path(scratch), progress))
            return [future.result() for future in futures]
        except BaseException as error:
            cancelled.set()
            if not shared.done():
                shared.set_exception(error if isinstance(error, Exception) else InterruptedError("interrupted"))
            pool.shutdown(wait=False, cancel_futures=True)
            end_children()
            raise


def has_random_weights(request: ExportRequest) -> bool:
    """Whether the export will use weights that classify nothing."""
    if request.weights == "random":
        return True
    return request.weights is None and request.source.kind == "zoo" and request.source.spec.weights is None


def end_children() -> None:
    """Kill every process that we started: a converter in C++ hears no exception."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def refuse_early(request: ExportRequest) -> None:
    """Raise UsageError for combinations and folders that cannot work."""
    for target in request.targets:
        catalog.require_packages(target.name)
        if reason := catalog.load_target(target.name).refuses(request.recipe, target.options):
            raise UsageError(f"target {target.name!r}: {reason}")
        folder = request.out / target.folder_name(request.source.spec.name, request.recipe)
        if folder.exists() and not request.overwrite:
            raise UsageError(f"{folder} exists already.\nAdd --overwrite to replace it, or choose another --out.")
    parent = next(p for p in (request.out, *request.out.absolute().parents) if p.exists())
    if not parent.is_dir():
        raise UsageError(f"--out {request.out} cannot be made: {parent} is a file.")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UsageError(f"cannot write to {parent}: {error.strerror}.\nChoose another folder: --out DIR.") from error


def _capture(request: ExportRequest, scratch: Path, progress: Progress) -> Shared:
    from acmix.toolkit import capture

    begin = time.perf_counter()
    progress("", "capture", 0.0)
    network = capture.build(request.source, request.weights, request.seed)
    captured = capture.capture(network)
    _check_labels(request, captured.outputs)
    program = scratch / "captured.pt2"
    capture.save_program(captured.program, program)
    spec = request.source.spec
    snap = any(getattr(t.options, "image_input", False) for t in request.targets)
    probes = Probes(captured.inputs, request.seed)
    references = [
        list(_references(network, s, spec.preprocess if snap else None)) for s in _sample_sets(probes, request)
    ]
    sets = tuple(SampleSet(s.name, len(s), s.digest) for s in _sample_sets(probes, request))
    record = ModelRecord(
        spec.name,
        request.source.reference,
        network.weights,
        captured.parameters,
        captured.macs,
        captured.classifies,
        spec.paper,
    )
    return Shared(
        program,
        record,
        captured.preparation,
        captured.inputs,
        captured.outputs,
        references[0],
        references[1] if len(references) > 1 else [],
        sets,
        time.perf_counter() - begin,
    )


def _check_labels(request: ExportRequest, outputs: tuple[TensorSpec, ...]) -> None:
    classes = outputs[0].shape[-1]
    if request.labels and len(request.labels) != classes:
        raise UsageError(
            f"--labels names {len(request.labels)} classes, but {request.source.spec.name} tells {classes} apart.\n"
            "Give one name a line, in the order of the scores."
        )


def _sample_sets(probes: Probes, request: ExportRequest) -> list[Samples]:
    return [probes] if request.photos is None else [probes, request.photos]


def _references(
    network: Callable[[tuple[Array, ...]], list[Array]], samples: Samples, snap: Any
) -> Iterator[Reference]:
    for identifier, inputs in zip(samples.identifiers, samples, strict=True):
        fed = tuple(on_pixel_grid(a, snap) for a in inputs) if snap is not None else inputs
        yield Reference(identifier, fed, tuple(network(fed)))


def _export_one(
    request: ExportRequest,
    target: TargetRequest,
    shared: Future[Shared],
    progress: Progress,
    slots: int,
    cancelled: threading.Event,
) -> Outcome:
    name = target.folder_name(request.source.spec.name, request.recipe)
    log = request.out / f"{name}.log"
    staging: Path | None = None
    try:
        if cancelled.is_set():
            return Outcome(target.name, error="interrupted", exit_code=2)
        threads = max(1, len(machine.usable_cpus()) // slots)
        with start_lowering(target.name, log, threads) as lowering:
            progress(target.name, "wait", 0.0)
            common = shared.result()
            staging = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=request.out))
            file = staging / f"model{catalog.load_target(target.name).suffix}"
            progress(target.name, "lower", 0.0)
            lowered, seconds = lowering.lower(_lowering_request(request, target, common, file))
        progress(target.name, "verify", seconds)
        begin = time.perf_counter()
        proof, placement = _prove(request, target, common, lowered, file, log)
        timings = {"capture": common.seconds, "lower": seconds, "verify": time.perf_counter() - begin}
        write_references(staging / REFERENCE, common.probes)
        manifest = _manifest(request, target, common, lowered, proof, placement, timings, staging, log)
        write_manifest(staging, manifest)
        artifact = Artifact(_seal(staging, request.out / name), manifest)
        progress(target.name, "done", timings["verify"])
        return _judge(request, target, artifact)
    except (AcmixError, OSError) as error:
        progress(target.name, "failed", 0.0)
        code = error.exit_code if isinstance(error, AcmixError) else 2
        return Outcome(target.name, error=str(error), exit_code=code)
    finally:
        if staging is not None and staging.exists():
            shutil.rmtree(staging, ignore_errors=True)


def _lowering_request(request: ExportRequest, target: TargetRequest, common: Shared, file: Path) -> LoweringRequest:
    spec = request.source.spec
    return LoweringRequest(
        str(common.program),
        str(file),
        spec.name,
        request.recipe,
        common.inputs,
        common.outputs,
        dataclasses.asdict(target.options),
        spec.preprocess,
        request.labels,
    )


def _prove(
    request: ExportRequest, target: TargetRequest, common: Shared, lowered: Lowered, file: Path, log: Path
) -> tuple[Proof, Placement]:
    loaded = catalog.load_target(target.name)
    reason = loaded.cannot_run_here(target.options)
    if reason is not None:
        return Proof("not executed", "", (), (), reason), lowered.placement or loaded.placement(file)
    interface = Interface(
        common.inputs, common.outputs, lowered.inputs, lowered.outputs, request.source.spec.preprocess
    )
    with open_session(SessionRequest(target.name, str(file)), log) as session:
        session.load()
        rows = list(compare(session, [*common.probes, *common.photos], interface))
        placement = lowered.placement or session.placement()
    limits = tolerances(request.recipe, common.outputs, request.snr_db_overrides)
    names = [spec.name for spec in common.outputs]
    return prove(names, rows, limits, common.model.classifies, target.name, common.sample_sets), placement


def _manifest(
    request: ExportRequest,
    target: TargetRequest,
    common: Shared,
    lowered: Lowered,
    proof: Proof,
    placement: Placement,
    timings: dict[str, float],
    staging: Path,
    log: Path,
) -> Manifest:
    loaded = catalog.load_target(target.name)
    options = dataclasses.asdict(target.options)
    return Manifest(
        acmix=machine.versions(["acmix"])["acmix"],
        model=common.model,
        recipe=request.recipe,
        target=TargetRecord(target.name, options, lowered.notes, lowered.details, lowered.nondeterminism),
        inputs=common.inputs,
        outputs=common.outputs,
        file_inputs=lowered.inputs,
        file_outputs=lowered.outputs,
        preprocess=request.source.spec.preprocess,
        labels=request.labels,
        preparation=common.preparation,
        placement=placement,
        proof=proof,
        files=digest_files(staging, f"model{loaded.suffix}"),
        tools=machine.versions(["torch", "numpy", *loaded.distributions]),
        machine=machine.describe(),
        timings_s={stage: round(seconds, 3) for stage, seconds in timings.items()},
        log=log.name,
        seed=request.seed,
    )


def _seal(staging: Path, final: Path) -> Path:
    """Move the finished folder to its place; an old one there goes only once the new one is complete."""
    staging.chmod(0o755)
    old = None
    if final.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{final.name}.old.", dir=final.parent))
        final.rename(old / final.name)
    staging.rename(final)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _judge(request: ExportRequest, target: TargetRequest, artifact: Artifact) -> Outcome:
    manifest = artifact.manifest
    if manifest.proof.verdict == "failed":
        worst = next(a for a in manifest.proof.agreements if not a.passed)
        found = "no signal" if worst.snr_db is None else f"{worst.snr_db:.1f} dB"
        return Outcome(
            target.name,
            artifact,
            f"output {worst.output!r} does not agree with eager: {found} on {worst.worst_sample!r}, "
            f"{worst.tolerance.snr_db:.0f} dB asked for",
            1,
        )
    fallbacks = manifest.placement.fallbacks
    if request.require_full_delegation and fallbacks:
        kinds = ", ".join(sorted({op.kind for op in fallbacks}))
        return Outcome(target.name, artifact, f"{len(fallbacks)} operators fall back: {kinds}", 1)
    return Outcome(target.name, artifact)
