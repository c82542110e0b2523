"""The flow: capture once, lower each target in its own process, prove each file, seal each artifact."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from acmix.toolkit import catalog, machine
from acmix.toolkit.artifact import ModelRecord
from acmix.toolkit.errors import DISK_FULL, AcmixError, UsageError
from acmix.toolkit.execute import Interface, Reference, compare, relaxed, snapped, tolerances
from acmix.toolkit.lower import LoweringRequest, start_lowering
from acmix.toolkit.recipe import Tolerance
from acmix.toolkit.request import ExportRequest, Outcome, TargetRequest, refuse_early
from acmix.toolkit.samples import Probes, Samples
from acmix.toolkit.seal import Finished, Shared, judge, seal
from acmix.toolkit.session import SessionRequest, open_session
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Array, Lowered, Placement, executor
from acmix.toolkit.verify import Proof, SampleSet, prove

if TYPE_CHECKING:
    from acmix.toolkit.conditioning import Attainable

Stage = Literal["capture", "wait", "lower", "verify", "done", "failed"]
Progress = Callable[[str, Stage, float], None]
"""Called with the target ('' for all), the stage it enters, and the seconds that the last one took."""


SPARE_BYTES = 256 * 1024
"""With less than this left, a failure is put down to the full disk."""


@dataclass(frozen=True)
class _Run:
    """What every target's thread needs beside its own target."""

    request: ExportRequest
    shared: Future[Shared]
    progress: Progress
    converter_threads: int
    cancelled: threading.Event


def export(request: ExportRequest, progress: Progress) -> list[Outcome]:
    """Export to every target; one that fails does not take the others with it.

    Raises UsageError before any work for what cannot be done at all, and for a model that cannot be captured.
    """
    refuse_early(request)
    made = not request.out.exists()
    request.out.mkdir(parents=True, exist_ok=True)
    slots = machine.conversions_at_once(len(request.targets))
    threads = max(1, len(machine.usable_cpus()) // slots)
    run = _Run(request, Future(), progress, threads, threading.Event())
    with (
        tempfile.TemporaryDirectory(prefix="acmix-") as scratch,
        ThreadPoolExecutor(slots, thread_name_prefix="lower") as pool,
    ):
        futures = [pool.submit(_export_one, run, target) for target in request.targets]
        try:
            run.shared.set_result(_capture(request, Path(scratch), progress))
            return [future.result() for future in futures]
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            _stop(run, error)
            pool.shutdown(wait=True)
            if not run.shared.exception():
                raise
            for target in request.targets:
                _log(run, target).unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):
                    request.out.rmdir()
            raise


def _stop(run: _Run, error: BaseException) -> None:
    """Make every thread end: no new work, waiting ones woken, running converters killed."""
    run.cancelled.set()
    if not run.shared.done():
        run.shared.set_exception(error if isinstance(error, Exception) else UsageError("interrupted"))
    # A converter in C++ hears no exception.
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _capture(request: ExportRequest, scratch: Path, progress: Progress) -> Shared:
    # Imported here: torch takes seconds, and the converters are starting meanwhile.
    from acmix.toolkit import capture
    from acmix.toolkit.conditioning import attainable
    from acmix.toolkit.program import save_program

    begin = time.perf_counter()
    progress("", "capture", 0.0)
    network = capture.build(request.source, request.weights, request.seed)
    captured = capture.capture(network, [target.name for target in request.targets])
    _check_labels(request, captured.outputs)
    _check_names(request, captured.outputs)
    files: dict[int, Path] = {}
    for made in captured.programs.values():
        if id(made.program) not in files:
            files[id(made.program)] = scratch / f"captured-{len(files)}.pt2"
            save_program(made.program, files[id(made.program)])
    spec = request.source.spec
    probes = Probes(captured.inputs, request.seed)
    sets: list[Samples] = [probes] if request.photos is None else [probes, request.photos]
    grid = spec.preprocess if request.takes_image else None
    conditioning = attainable(network.module, request.recipe)
    is_half = request.recipe.weights == "float16"
    references = [list(_references(network, conditioning, samples, grid)) for samples in sets]
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
        {name: files[id(made.program)] for name, made in captured.programs.items()},
        {name: made.preparation for name, made in captured.programs.items()},
        record,
        captured.inputs,
        captured.outputs,
        references[0],
        [reference for photos in references[1:] for reference in photos],
        tuple(SampleSet(s.name, len(s), s.digest) for s in sets),
        time.perf_counter() - begin,
        # No target computes in float16 with float32 weights; the copy of the network is saved.
        attainable(network.module, request.recipe, half_arithmetic=True) if is_half else conditioning,
    )


def _check_labels(request: ExportRequest, outputs: tuple[TensorSpec, ...]) -> None:
    classes = outputs[0].shape[-1]
    if request.labels and len(request.labels) != classes:
        raise UsageError(
            f"--labels names {len(request.labels)} classes, but {request.source.spec.name} tells {classes} apart.\n"
            "Give one name a line, in the order of the scores."
        )


def _check_names(request: ExportRequest, outputs: tuple[TensorSpec, ...]) -> None:
    names = {spec.name for spec in outputs}
    for name in request.snr_db_overrides.keys() - names - {""}:
        raise UsageError(f"--min-snr names {name!r}; the outputs are {', '.join(sorted(names))}.")


def _references(
    network: Callable[[Sequence[Array]], list[Array]],
    conditioning: Attainable,
    samples: Samples,
    grid: Preprocess | None,
) -> Iterator[Reference]:
    for identifier, inputs in zip(samples.identifiers, samples, strict=True):
        fed = snapped(inputs, grid)
        outputs = tuple(network(fed))
        yield Reference(identifier, fed, outputs, conditioning(fed, outputs))


def _log(run: _Run, target: TargetRequest) -> Path:
    return run.request.out / f"{run.request.folder_name(target)}.log"


def _export_one(run: _Run, target: TargetRequest) -> Outcome:
    staging: Path | None = None
    try:
        if run.cancelled.is_set():
            raise UsageError("interrupted")
        with start_lowering(target.name, _log(run, target), run.converter_threads) as lowering:
            run.progress(target.name, "wait", 0.0)
            common = run.shared.result()
            staging = Path(tempfile.mkdtemp(prefix=f".{run.request.folder_name(target)}.", dir=run.request.out))
            file = staging / f"model{catalog.load_target(target.name).suffix}"
            run.progress(target.name, "lower", 0.0)
            lowered, seconds = lowering.lower(_lowering_request(run.request, target, common, file))
        if run.cancelled.is_set():
            raise UsageError("interrupted")
        run.progress(target.name, "verify", seconds)
        begin = time.perf_counter()
        recipe = relaxed(run.request.recipe, lowered.half_arithmetic)
        common = _for_half(common) if lowered.half_arithmetic else common
        limits = tuple(tolerances(recipe, common.outputs, run.request.snr_db_overrides))
        proof, placement = _prove(run, target, common, lowered, file, limits)
        timings = {"capture": common.seconds, "lower": seconds, "verify": time.perf_counter() - begin}
        finished = Finished(lowered, proof, placement, timings, _log(run, target).name, limits)
        if run.cancelled.is_set():
            raise UsageError("interrupted")
        artifact = seal(run.request, target, common, finished, staging)
        run.progress(target.name, "done", timings["verify"])
        return judge(run.request, target, artifact)
    except Exception as error:
        if not run.cancelled.is_set():
            run.progress(target.name, "failed", 0.0)
        return _failed(run, target, error)
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _failed(run: _Run, target: TargetRequest, error: Exception) -> Outcome:
    # A converter that cannot write says so in its own words, or dies: ask the disk itself.
    if shutil.disk_usage(run.request.out).free < SPARE_BYTES:
        return Outcome(target.name, error=DISK_FULL.format(place=run.request.out), exit_code=2)
    if isinstance(error, AcmixError):
        return Outcome(target.name, error=str(error), exit_code=error.exit_code)
    log = _log(run, target)
    with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as stream:
        traceback.print_exception(error, file=stream)
    return Outcome(target.name, error=f"{type(error).__name__}: {error}\nFull log: {log}", exit_code=1)


def _lowering_request(request: ExportRequest, target: TargetRequest, common: Shared, file: Path) -> LoweringRequest:
    spec = request.source.spec
    return LoweringRequest(
        str(common.programs[target.name]),
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
    run: _Run, target: TargetRequest, common: Shared, lowered: Lowered, file: Path, limits: Sequence[Tolerance]
) -> tuple[Proof, Placement]:
    loaded = catalog.load_target(target.name)
    by, reason = executor(loaded, target.options)
    if not by:
        return Proof("not executed", "", reason=reason), lowered.placement or loaded.placement(file)
    preprocess = run.request.source.spec.preprocess
    interface = Interface(common.inputs, common.outputs, lowered.inputs, lowered.outputs, preprocess)
    request = SessionRequest(target.name, str(file), reference=by == "reference")
    with open_session(request, _log(run, target)) as session:
        session.load()
        rows = list(compare(session, [*common.probes, *common.photos], interface))
        placement = lowered.placement or session.placement()
    names = [spec.name for spec in common.outputs]
    classifies = common.model.classifies
    return prove(names, rows, limits, classifies, target.name, common.sample_sets, (by, reason)), placement


def _for_half(common: Shared) -> Shared:
    """The same, asking of each sample what eager keeps when every operator is rounded to float16."""

    def judged(references: list[Reference]) -> list[Reference]:
        return [
            dataclasses.replace(one, attainable_db=common.half_conditioning(one.inputs, one.outputs))
            for one in references
        ]

    return dataclasses.replace(common, probes=judged(common.probes), photos=judged(common.photos))
