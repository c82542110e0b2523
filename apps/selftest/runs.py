"""Checks of what a device tells of itself and of the files that it runs: runners, outputs, a short measurement."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from acmix.apps.board.choose import choose_runners
from acmix.apps.selftest.record import Check, Evidence, FailedError, SkippedError
from acmix.toolkit import profile as profiling
from acmix.toolkit._remote_place import RemoteLane, place
from acmix.toolkit._remote_runner import start_runner
from acmix.toolkit.artifact import Artifact, executed_by
from acmix.toolkit.conditions import State, hottest
from acmix.toolkit.device import Transport, printable
from acmix.toolkit.errors import UsageError
from acmix.toolkit.execute import file_inputs
from acmix.toolkit.measurement import Measurement
from acmix.toolkit.remote import RunnerBundle, outputs_on_device, profile_on_device
from acmix.toolkit.reproof import reprove, stored_references
from acmix.toolkit.session import open_session
from acmix.toolkit.state.reading import identify, read_state
from acmix.toolkit.target import Array

FLOAT_TOLERANCE = 1e-5
"""Absolute and relative: the last bits of a float depend on the processor."""
RUNS, SECONDS, WARM_UP_S = 32, 0.5, 1.0
NOTED_RUNS = 3
COLDEST, HOTTEST = -40.0, 150.0


@dataclass(frozen=True)
class Bench:
    """What these checks share. log: of the runtimes here.  bundles: what was chosen, by the kind of file."""

    transport: Transport
    log: Path
    bundles: dict[str, RunnerBundle] = field(default_factory=dict)

    @property
    def is_host(self) -> bool:
        """Whether the device is this machine, which runs files in processes of its own, without a runner."""
        return self.transport.device.transport == "local"

    @property
    def threads(self) -> int:
        """Of the runtime."""
        return self.transport.device.threads


def state_check(bench: Bench) -> Check:
    """What the device tells of its condition."""
    claim = "the device tells what it is and in what condition; unknown is unknown, never 0"
    return Check("condition", claim, lambda: _condition(bench.transport))


def artifact_checks(bench: Bench, artifact: Artifact) -> list[Check]:
    """One file: its runner, then what comes out."""
    name, integers = artifact.name, artifact.manifest.recipe.is_quantized
    if bench.is_host:
        return [Check(f"outputs of {name}", "the file gives what its artifact stores of eager, within its tolerance",
                      lambda: _proven_here(bench, artifact))]  # fmt: skip
    how = "bit for bit" if integers else f"within {FLOAT_TOLERANCE:g}"
    return [
        Check(f"runner for {name}", "a runner for the file starts there and loads it",
              lambda: _runner(bench, artifact)),
        Check(f"outputs of {name}", f"on every probe the file gives there what it gives here, {how}",
              lambda: _outputs(bench, artifact)),
    ]  # fmt: skip


def kernel_checks(bench: Bench, artifacts: Sequence[Artifact]) -> list[Check]:
    """Each runtime's profiler, on the first of its files; here the runtimes are asked without a runner."""
    first = {artifact.manifest.target.name: artifact for artifact in reversed(artifacts)}
    claim = "the kernels of every run are noted there, and their times fit into the run"
    chosen = [] if bench.is_host else [artifact for artifact in artifacts if artifact in first.values()]
    return [Check(f"kernels of {artifact.name}", claim, partial(_kernels, bench, artifact)) for artifact in chosen]


def measurement_check(bench: Bench, artifacts: Sequence[Artifact]) -> Check:
    """A short measurement of all files that run there."""
    claim = "a short measurement comes to its end, with a verdict and its reasons"
    return Check("measurement", claim, lambda: _measure(bench, artifacts))


def _condition(transport: Transport) -> Evidence:
    identity = identify(transport.read_text, transport.run)
    remote = transport.device.transport != "local"
    first, state = (read_state(identity, transport.read_text, transport.run, remote=remote) for _ in range(2))
    unlikely = [*_unlikely(state), *_backwards(first, state)]
    told = {key: value for key, value in msgspec.to_builtins(state).items() if value is not None and key != "at_s"}
    evidence = {
        "identity": msgspec.to_builtins(identity),
        "governors": sorted({printable(clock.governor, 40) for clock in state.clocks or () if clock.governor}),
        "hottest": msgspec.to_builtins(hottest(state)),
        "throttled_by": None if state.throttled_by is None else [printable(what) for what in state.throttled_by],
        "state": told,
        "unknown": [f.name for f in dataclasses.fields(State) if getattr(state, f.name) is None],
    }
    if unlikely:
        raise FailedError(f"it cannot be so: {'; '.join(unlikely)}", **evidence)
    if not told:
        raise FailedError("the device tells nothing of its condition", **evidence)
    return evidence


def _unlikely(state: State) -> list[str]:
    """Readings that a working reader of a real device would not give."""
    battery = state.battery
    found = [f"{printable(s.name, 40)} has {s.celsius:g} °C" for s in state.sensors or ()
             if not COLDEST < s.celsius < HOTTEST]  # fmt: skip
    found += [f"processors {list(c.cpus)} run at {c.now_khz} kHz" for c in state.clocks or ()
              if c.now_khz is not None and not 0 < c.now_khz < 2 * (c.hardware_khz or 10**7)]  # fmt: skip
    if battery is not None and battery.percent is not None and not 0 <= battery.percent <= 100:
        found.append(f"the battery is {battery.percent:g} % full")
    return found


def _backwards(first: State, second: State) -> list[str]:
    names = ("busy_s", "stolen_s", "stalled_s")
    pairs = [(name, getattr(first, name), getattr(second, name)) for name in names]
    return [f"{name} went from {a:g} to {b:g}" for name, a, b in pairs if a is not None and b is not None and b < a]


def _bundle(bench: Bench, artifact: Artifact, profiled: bool = False) -> RunnerBundle:
    # To ask starts a Python there, which takes a board seconds.
    target = artifact.manifest.target
    kind = f"{target.name} {target.options.get('delegate', '')} {profiled}"
    if kind in bench.bundles:
        return bench.bundles[kind]
    try:
        (bundle,) = choose_runners(bench.transport, [artifact], profiled)
    except UsageError as error:
        # There is no runner for it there, or nothing here to build one with.
        raise SkippedError(str(error)) from error
    bench.bundles[kind] = bundle
    return bundle


def _runner(bench: Bench, artifact: Artifact) -> Evidence:
    bundle = _bundle(bench, artifact)
    folder = bench.transport.push(bundle.folder, f"runners/{bundle.name}", keep=True)
    file = bench.transport.push(artifact.model_file, f"selftest/{artifact.name}{artifact.model_file.suffix}")
    with start_runner(bench.transport, bundle, folder, artifact.manifest.file_outputs) as runner:
        loaded = runner.load(file, bench.threads)
    size = sum(part.stat().st_size for part in bundle.folder.rglob("*") if part.is_file())
    evidence: dict[str, Any] = {"runtime": bundle.runtime, "runner": bundle.name, "bytes": size}
    return {**evidence, "peak_memory_mb": loaded.peak_memory_mb}


def _outputs(bench: Bench, artifact: Artifact) -> Evidence:
    bundle = _bundle(bench, artifact)
    there = outputs_on_device(bench.transport, artifact, bundle, bench.threads)
    here = _outputs_here(bench, artifact)
    integers = artifact.manifest.recipe.is_quantized
    pairs = [(one, other) for probe, arrays in there.items() for one, other in zip(arrays, here[probe], strict=True)]
    apart = max(_difference(one, other) for one, other in pairs)
    differing = sum(int(np.count_nonzero(one != other)) for one, other in pairs)
    evidence = {"runtime": bundle.runtime, "probes": len(there), "largest_difference": apart, "differing": differing,
                "values": sum(one.size for one, _ in pairs)}  # fmt: skip
    close = all(_agree(one, other, integers) for one, other in pairs)
    if not close:
        raise FailedError(f"{differing} values differ from this machine's, by {apart:g} at most", **evidence)
    return evidence


def _kernels(bench: Bench, artifact: Artifact) -> Evidence:
    bundle = _bundle(bench, artifact, profiled=True)
    folder = bench.transport.push(bundle.folder, f"runners/{bundle.name}", keep=True)
    placed = place(bench.transport, artifact, bundle, folder, 0)
    with placed.start(bench.transport) as runner:
        lane = RemoteLane(runner, placed, bench.threads, profiled=True)
        lane.load()
        latencies = [lane.run().ns for _ in range(NOTED_RUNS)]
        notes = runner.kernels()
    with open_session(artifact.session(), bench.log) as session:
        found = session.name_kernels(notes, NOTED_RUNS, bundle.runtime)
    named = sum(kernel.value != "" for kernel in found.kernels)
    evidence = {"runtime": bundle.runtime, "kernels": len(found.kernels), "named": named, "by": found.measured_by}
    for run, latency_ns in zip(notes.runs, latencies, strict=True):
        within = sum(ns for _, ns in run)
        # A clock of whole microseconds may round each of them up.
        if not run or within > latency_ns + 1000 * len(run):
            raise FailedError(f"{len(run)} kernels of {within} ns in a run of {latency_ns} ns", **evidence)
    return evidence


def _agree(there: Array, here: Array, exactly: bool) -> bool:
    if exactly:
        return bool(np.array_equal(there, here))
    return bool(np.allclose(there, here, rtol=FLOAT_TOLERANCE, atol=FLOAT_TOLERANCE, equal_nan=True))


def _difference(one: Array, other: Array) -> float:
    """The largest one; an output that is no number on one side only counts as the largest there is."""
    apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
    apart[np.isnan(one.astype(np.float64)) & np.isnan(other.astype(np.float64))] = 0
    worst = float(np.max(apart, initial=0.0))
    return worst if np.isfinite(worst) else float(np.finfo(np.float64).max)


def _outputs_here(bench: Bench, artifact: Artifact) -> dict[str, list[Array]]:
    by, reason = executed_by(artifact)
    if by != "runtime":
        raise SkippedError(f"there is nothing to compare with: {reason}")
    interface = profiling.interface_of(artifact)
    with open_session(artifact.session(threads=bench.threads), bench.log) as session:
        session.load()
        return {r.identifier: session.run(file_inputs(r.inputs, interface)) for r in stored_references(artifact)}


def _proven_here(bench: Bench, artifact: Artifact) -> Evidence:
    proof = reprove(artifact, bench.log)
    rows = [{"output": a.output, "snr_db": a.snr_db, "asked_db": a.asked_db, "passed": a.passed}
            for a in (*proof.agreements, *proof.conversion)]  # fmt: skip
    if proof.executed_by != "runtime":
        raise SkippedError(proof.reason or "this machine has no runtime for it")
    if proof.verdict == "failed":
        raise FailedError("its outputs are not those that the artifact stores", outputs=rows)
    return {"outputs": rows}


def _measure(bench: Bench, artifacts: Sequence[Artifact]) -> Evidence:
    request = profiling.ProfileRequest(bench.threads, RUNS, SECONDS, warm_up_limit_s=WARM_UP_S)
    found = _measured(bench, artifacts, request)
    judged = found.judgement
    evidence = {
        "verdict": judged.verdict,
        "reasons": [f"{reason.leads_to}: {printable(reason.what)}" for reason in judged.reasons],
        "notes": [printable(note) for note in judged.notes],
        "summary": profiling.summaries(found),
    }
    if cuts := [printable(reason.what) for reason in judged.reasons if reason.leads_to == "incomplete"]:
        raise FailedError(f"the measurement was cut: {cuts[0]}", **evidence)
    return evidence


def _measured(bench: Bench, artifacts: Sequence[Artifact], request: profiling.ProfileRequest) -> Measurement:
    if bench.is_host:
        runnable = [artifact for artifact in artifacts if executed_by(artifact)[0] == "runtime"]
        if not runnable:
            raise SkippedError("this machine has a runtime for none of the files")
        return profiling.profile(runnable, request, bench.log, _quiet)
    pairs, refused = [], ""
    for artifact in artifacts:
        try:
            pairs.append((artifact, _bundle(bench, artifact)))
        except SkippedError as error:
            refused = str(error)
    if not pairs:
        raise SkippedError(f"none of the files runs there: {refused}")
    return profile_on_device(bench.transport, pairs, request, _quiet)


def _quiet(said: str) -> None:
    """The table tells when it is done."""
