"""Latency on this host: every artifact in its own process, interleaved run by run, raw samples kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from acmix.toolkit import machine
from acmix.toolkit._session_messages import Answer
from acmix.toolkit.artifact import Artifact, check_digests, executed_by
from acmix.toolkit.conditions import Conditions, Identity, State
from acmix.toolkit.errors import UsageError
from acmix.toolkit.execute import Interface, file_inputs
from acmix.toolkit.gate import wait_until_ready
from acmix.toolkit.measure import PRESETS, Event, Plan, Preset, Recorder, Timed, Watch, keep, measure
from acmix.toolkit.measurement import (
    Header,
    Measurement,
    Subject,
    assemble,
    read_measurement,
    recorded,
    save,
    summaries,
)
from acmix.toolkit.samples import Probes, Samples
from acmix.toolkit.session import Session, open_session
from acmix.toolkit.state.reading import (
    busiest,
    files_below,
    identify,
    processes,
    read_state,
    run_here,
    seconds_of,
)
from acmix.toolkit.target import Array

__all__ = [
    "MOST_PHOTOS",
    "PRESETS",
    "Measurement",
    "Preset",
    "ProfileRequest",
    "inputs_named",
    "interface_of",
    "profile",
    "read_measurement",
    "save",
    "summaries",
]

MOST_PHOTOS = 64
"""Photos are held in memory, decoded, so that reading them never comes between two runs."""


@dataclass(frozen=True)
class ProfileRequest:
    """How to measure. At least `runs` runs and at least `seconds` of them, for each artifact.

    wait_s: how long to wait for a cool and idle machine; 0 does not wait.  processes: over so many restarts.
    """

    threads: int = 1
    runs: int = 50
    seconds: float = 1.0
    wait_s: float = 0.0
    processes: int = 1
    warm_up_limit_s: float = 15.0

    @property
    def plan(self) -> Plan:
        """The lengths alone."""
        return Plan(self.runs, self.seconds, self.processes, self.warm_up_limit_s)


def profile(
    artifacts: Sequence[Artifact],
    request: ProfileRequest,
    log: Path,
    report: Callable[[str], None],
    journal: Path | None = None,
    photos: Sequence[Samples] = (),
) -> Measurement:
    """Measure artifacts on this host.

    journal: a new file that takes every sample as it comes.  photos: for each artifact its inputs, one a run in
    turn; without them one input of noise is repeated.  Raises UsageError for an artifact that cannot run here or
    was changed, GateError when a runtime fails before there was anything to keep.
    """
    cpus = _pinned(request.threads)
    for artifact in artifacts:
        check_digests(artifact)
        by, reason = executed_by(artifact)
        if by != "runtime":
            raise UsageError(f"{artifact.name} cannot be profiled on this host: {reason}")
    fed = [_fed(artifact, photos[i] if photos else None) for i, artifact in enumerate(artifacts)]
    with contextlib.ExitStack() as stack:
        here = _Host()
        gate = wait_until_ready(lambda: here.read(False), request.wait_s, report)
        conditions = Conditions(
            request.threads, cpus, machine.governor(cpus[0]), machine.describe(), here.identity, gate
        )
        header = Header(tuple(map(subject_of, artifacts)), request.plan, inputs_named(len(fed[0]), photos), conditions)
        recorder = stack.enter_context(recorded(header, journal))
        watch = Watch(here.read, report)
        cut = keep(recorder, lambda: _measure_processes(artifacts, fed, request, log, recorder, here, watch))
        recorder.note(Event(after=here.read(True)))
    return assemble(header, recorder, cut)


def _measure_processes(
    artifacts: Sequence[Artifact],
    fed: Sequence[Sequence[list[Array]]],
    request: ProfileRequest,
    log: Path,
    recorder: Recorder,
    here: _Host,
    watch: Watch,
) -> None:
    """All artifacts, started so many times."""
    for _ in range(request.processes):
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(_open(artifact, request, log)) for artifact in artifacts]
            here.children = [session.process.pid for session in sessions]
            stack.callback(here.retire)
            lanes = [_HostLane(session, inputs) for session, inputs in zip(sessions, fed, strict=True)]
            measure(lanes, request.plan.share, recorder, watch)


def interface_of(artifact: Artifact) -> Interface:
    """How an artifact's samples are fed and read."""
    m = artifact.manifest
    return Interface(m.inputs, m.outputs, m.file_inputs, m.file_outputs, m.preprocess)


def subject_of(artifact: Artifact) -> Subject:
    """What a measurement says of an artifact."""
    m = artifact.manifest
    return Subject(artifact.name, m.target.name, m.recipe.name, m.files[0].sha256)


def _pinned(threads: int) -> tuple[int, ...]:
    usable = machine.usable_cpus()
    if not 1 <= threads <= len(usable):
        raise UsageError(f"--threads {threads}: this host has {len(usable)} usable processors.")
    return usable[-threads:]


def _fed(artifact: Artifact, photos: Samples | None) -> list[list[Array]]:
    """What the file is fed, run after run, in its own layout."""
    interface = interface_of(artifact)
    if photos is not None:
        return [file_inputs(sample, interface) for sample in islice(photos, MOST_PHOTOS)]
    probes = Probes(artifact.manifest.inputs)
    return [file_inputs(dict(zip(probes.identifiers, probes, strict=True))["noise"], interface)]


def inputs_named(count: int, photos: Sequence[Samples]) -> str:
    """What the runs are fed, for people; count: of the photos."""
    return f"{count} photos of {photos[0].name}, in turn" if photos else "one input of noise, repeated"


def _open(artifact: Artifact, request: ProfileRequest, log: Path) -> contextlib.AbstractContextManager[Session]:
    return open_session(artifact.session(threads=request.threads, cpus=_pinned(request.threads)), log)


class _HostLane:
    """One artifact in a child process of this host."""

    def __init__(self, session: Session, inputs: Sequence[list[Array]]) -> None:
        self.session = session
        self.inputs = inputs
        self.runs = 0

    def load(self) -> Timed:
        return _run_of(self.session.load())

    def run(self) -> Timed:
        turn = self.inputs[self.runs % len(self.inputs)]
        # One repeated input stays in the child: sending it again would only warm other caches than the network's.
        again = self.runs > 0 and len(self.inputs) == 1
        self.runs += 1
        return _run_of(self.session.time(1) if again else self.session.run_timed(turn)[0])


def _run_of(answer: Answer) -> Timed:
    return Timed(answer.latency_ns[0], round(answer.peak_memory_mb, 1))


class _Host:
    """This machine's state, with the share of our own processes told apart."""

    def __init__(self) -> None:
        self.read_text = files_below(Path("/"))
        self.identity: Identity = identify(self.read_text, run_here)
        self.children: list[int] = []
        self.retired_s = 0.0
        self.listed: dict[tuple[int, str], float] | None = None

    def retire(self) -> None:
        """The children are about to end: what they used stays ours."""
        self.retired_s += seconds_of(self.children)
        self.children = []

    def read(self, thorough: bool) -> State:
        """thorough: also which other processes worked since the last thorough reading."""
        state = read_state(self.identity, self.read_text, run_here, thorough=thorough)
        ours, names = [os.getpid(), *self.children], None
        if thorough:
            earlier, self.listed = self.listed or processes(ours), processes(ours)
            names = busiest(earlier, self.listed)
        return replace(state, ours_s=self.retired_s + seconds_of(ours), busiest=names)
