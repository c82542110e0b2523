"""Artifacts on a device: pushed, proven there on the stored probes, then measured like on this host.

A fast wrong answer is worth nothing: what comes out on the device must hold the artifact's own tolerances first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from acmix.toolkit._remote_place import (
    EMULATED_WARM_UP_S,
    Placed,
    RemoteLane,
    conditions_of,
    count_instructions,
    place,
    reader,
    run_probes,
    send_and_prove,
)
from acmix.toolkit._remote_runner import RunnerBundle
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.device import Transport
from acmix.toolkit.errors import GateError
from acmix.toolkit.gate import wait_until_ready
from acmix.toolkit.measure import Event, Recorder, Watch, keep, measure
from acmix.toolkit.measurement import Header, Measurement, assemble, recorded
from acmix.toolkit.profile import ProfileRequest, inputs_named, subject_of
from acmix.toolkit.samples import Samples
from acmix.toolkit.target import Array

__all__ = ["RunnerBundle", "outputs_on_device", "profile_on_device"]


def profile_on_device(
    transport: Transport,
    artifacts: Sequence[tuple[Artifact, RunnerBundle]],
    request: ProfileRequest,
    report: Callable[[str], None],
    journal: Path | None = None,
    photos: Sequence[Samples] = (),
) -> Measurement:
    """Push, prove and measure artifacts on a device, each with its runner; its work folder goes, what it keeps stays.

    request.threads: of the runtime.  The device's cores say where a runner is pinned.  journal: a new file that
    takes every sample as it comes.  photos: for each artifact its inputs, one a run in turn, pushed before; without
    them one input of noise is repeated.  Raises UsageError for a changed artifact, GateError when the device fails
    before there was anything to keep, or cannot count what it should, or when an output there is not what it should be.
    """
    try:
        counting = transport.device.counts_instructions
        placed = send_and_prove(transport, artifacts, request.threads, report, photos, counting)
        fed = inputs_named(len(placed[0].turns), photos)
        return _measure(transport, placed, request, fed, report, journal)
    finally:
        # A device that is gone removes the folder by itself; why it is gone is told already.
        with contextlib.suppress(GateError):
            transport.remove_work_folder()


def outputs_on_device(
    transport: Transport, artifact: Artifact, bundle: RunnerBundle, threads: int = 1
) -> dict[str, list[Array]]:
    """What a file gives on a device on each of its probes, by probe, in the file's own layout; not judged."""
    folder = transport.push(bundle.folder, f"runners/{bundle.name}", keep=True)
    placed = place(transport, artifact, bundle, folder, 0)
    return run_probes(transport, placed, threads)


def _measure(
    transport: Transport,
    placed: Sequence[Placed],
    request: ProfileRequest,
    fed: str,
    report: Callable[[str], None],
    journal: Path | None,
) -> Measurement:
    name = transport.device.name
    report(f"{name}: looking at the device")
    identity, read = reader(transport)
    if identity.emulation:
        # A steady state of an emulator means nothing: do not wait for it.
        request = replace(request, warm_up_limit_s=min(request.warm_up_limit_s, EMULATED_WARM_UP_S))
    gate = wait_until_ready(lambda: read(False), request.wait_s, lambda said: report(f"{name}: {said}"))
    conditions = conditions_of(transport, placed, request.threads, identity, read(False), gate)
    counted = count_instructions(transport, placed, request.threads) if transport.device.counts_instructions else {}
    subjects = [
        replace(subject_of(each.artifact), instructions=counted.get(number, ())) for number, each in enumerate(placed)
    ]
    header = Header(tuple(subjects), request.plan, fed, conditions)
    with recorded(header, journal) as recorder:
        told = Watch(read, lambda said: report(f"{name}: {said}"))
        cut = keep(recorder, lambda: _measure_processes(transport, placed, request, recorder, told))
        # A device that vanished in mid-run tells nothing of its state afterwards: unknown.
        with contextlib.suppress(GateError):
            recorder.note(Event(after=read(True)))
    return assemble(header, recorder, cut)


def _measure_processes(
    transport: Transport, placed: Sequence[Placed], request: ProfileRequest, recorder: Recorder, watch: Watch
) -> None:
    for _ in range(request.processes):
        with contextlib.ExitStack() as stack:
            runners = [stack.enter_context(each.start(transport)) for each in placed]
            lanes = [RemoteLane(runner, each, request.threads) for runner, each in zip(runners, placed, strict=True)]
            measure(lanes, request.plan.share, recorder, watch)
