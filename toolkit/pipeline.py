"""The flow: capture once, lower each target in its own process, prove each file, seal each artifact."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from acmix.toolkit import catalog, machine
from acmix.toolkit.crosscheck import cross_check
from acmix.toolkit.errors import DISK_FULL, AcmixError, UsageError
from acmix.toolkit.execute import Interface, compared, relaxed, run_sample, tolerances
from acmix.toolkit.expect import Expected, expect
from acmix.toolkit.lower import LoweringRequest, start_lowering
from acmix.toolkit.recipe import Tolerance
from acmix.toolkit.request import ExportRequest, Outcome, TargetRequest, refuse_early
from acmix.toolkit.seal import Finished, judge, seal
from acmix.toolkit.session import SessionRequest, open_session
from acmix.toolkit.share import Shared, share
from acmix.toolkit.target import Lowered, Placement, executor
from acmix.toolkit.verify import Proof, prove, with_conversion

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
            progress("", "capture", 0.0)
            run.shared.set_result(share(request, Path(scratch)))
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
        limits = tuple(tolerances(recipe, common.outputs, run.request.snr_db_overrides))
        expected = expect(common, target.name, lowered, run.request.recipe)
        proof, placement = _prove(run, target, common, lowered, file, limits, expected)
        timings = {"capture": common.seconds, "lower": seconds, "verify": time.perf_counter() - begin}
        finished = Finished(lowered, proof, placement, timings, _log(run, target).name, limits, expected)
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
    share = common.quantized.get(target.name)
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
        str(share.ranges or "") if share else "",
        (*request.kept_float, *share.quantized.calibrated.kept) if share else (),
        str(common.samples_file or ""),
    )


def _prove(
    run: _Run,
    target: TargetRequest,
    common: Shared,
    lowered: Lowered,
    file: Path,
    limits: Sequence[Tolerance],
    expected: Expected,
) -> tuple[Proof, Placement]:
    loaded = catalog.load_target(target.name)
    by, reason = executor(loaded, target.options)
    if not by:
        return Proof("not executed", "", reason=reason), lowered.placement or loaded.placement(file)
    preprocess = run.request.source.spec.preprocess
    interface = Interface(common.inputs, common.outputs, lowered.inputs, lowered.outputs, preprocess)
    request = SessionRequest(target.name, str(file), reference=by == "reference")
    samples = common.samples
    with open_session(request, _log(run, target)) as session:
        session.load()
        found = [run_sample(session, sample.inputs, interface) for sample in samples]
        placement = lowered.placement or session.placement()
    names = [spec.name for spec in common.outputs]
    proof = prove(
        names,
        [compared(reference, found[i]) for i, reference in expected.eager],
        limits,
        common.model.classifies,
        target.name,
        common.sample_sets,
        (by, reason),
    )
    simulated = [compared(reference, outputs) for reference, outputs in zip(expected.simulated, found, strict=False)]
    proof = with_conversion(proof, names, simulated, expected.conversion, common.model.classifies)
    rows = [compared(sample, outputs) for sample, outputs in zip(samples, found, strict=True)]
    return cross_check(proof, rows, samples, interface, request, _log(run, target)), placement
