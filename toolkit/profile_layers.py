"""Where the time goes on this host: artifacts of one network with every kernel timed, beside themselves untouched.

Each artifact runs in two processes, one with its runtime's profiler and one without, and on each runtime a large
convolution runs too; all of them are interleaved run by run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from acmix.toolkit import machine
from acmix.toolkit._layer_report import (
    WARM_UP_LIMIT_S,
    LayersRequest,
    check_one_network,
    find_network,
    measured_of,
    placed_layers,
)
from acmix.toolkit._session_messages import Answer
from acmix.toolkit.artifact import Artifact, check_digests, executed_by
from acmix.toolkit.compute_floor import floor_file
from acmix.toolkit.conditions import Identity
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.execute import file_inputs
from acmix.toolkit.joining import own_file
from acmix.toolkit.layer_times import LayerReport
from acmix.toolkit.measure import Plan, Recorder, Timed, Watch, measure
from acmix.toolkit.profile import interface_of
from acmix.toolkit.samples import Probes
from acmix.toolkit.session import Session, SessionRequest, open_session
from acmix.toolkit.state.reading import files_below, identify, read_state, run_here
from acmix.toolkit.target import Array

__all__ = ["LayersRequest", "profile_layers"]


def profile_layers(artifacts: Sequence[Artifact], request: LayersRequest, report: Callable[[str], None]) -> LayerReport:
    """Time every kernel of artifacts of one network, and say of which module it is.

    Raises UsageError for artifacts of several networks, one that was changed or cannot run here; GateError when a
    runtime fails.
    """
    _check(artifacts)
    identity = identify(files_below(Path("/")), run_here)
    network = find_network(artifacts, request.model)
    remarks: list[str] = []
    targets = list(dict.fromkeys(artifact.manifest.target.name for artifact in artifacts))
    with contextlib.ExitStack() as stack:
        lanes: list[_Lane] = []
        for artifact in artifacts:
            target, file = artifact.manifest.target.name, own_file(artifact, "timing its kernels")
            sessions = [stack.enter_context(_open(target, file, request, profiled)) for profiled in (False, True)]
            lanes += [_Lane(session, _noise(artifact)) for session in sessions]
        floors = dict(_floors(targets, request, stack, remarks))
        recorder = Recorder(len(lanes) + len(floors))
        _run([*lanes, *floors.values()], request, recorder, identity, report)
        kernels = [lane.session.kernels() for lane in lanes[1::2]]
    taken = [tuple(record.taken["latency"]) for record in recorder.lanes]
    measured = measured_of(taken, kernels, tuple(floors), tuple(remarks))
    layers, told = placed_layers(artifacts, measured, network, request, report)
    model = artifacts[0].manifest.model.name
    return LayerReport(
        model, layers, request.threads, request.cpus, machine.describe(), told, emulation=identity.emulation or ()
    )


def _check(artifacts: Sequence[Artifact]) -> None:
    check_one_network(artifacts)
    for artifact in artifacts:
        check_digests(artifact)
        by, reason = executed_by(artifact)
        if by != "runtime":
            raise UsageError(f"{artifact.name} cannot be profiled on this host: {reason}")


def _noise(artifact: Artifact) -> list[Array]:
    probes = Probes(artifact.manifest.inputs)
    noise = dict(zip(probes.identifiers, probes, strict=True))["noise"]
    return file_inputs(noise, interface_of(artifact))


def _open(
    target: str, file: Path, request: LayersRequest, profiled: bool
) -> contextlib.AbstractContextManager[Session]:
    wanted = SessionRequest(target, str(file), request.threads, request.cpus, profiled=profiled)
    return open_session(wanted, request.log)


def _floors(
    targets: Sequence[str], request: LayersRequest, stack: contextlib.ExitStack, remarks: list[str]
) -> Iterator[tuple[str, _Lane]]:
    for target in targets:
        try:
            floor = floor_file(target, request.log)
        except (UsageError, GateError) as error:
            remarks.append(f"{target} has no compute floor: {str(error).splitlines()[0]}")
            continue
        yield target, _Lane(stack.enter_context(_open(target, floor.file, request, False)), floor.inputs)


class _Lane:
    """One file in a child process, fed the same again and again."""

    def __init__(self, session: Session, inputs: Sequence[Array]) -> None:
        self.session, self.inputs, self.ran = session, inputs, False

    def load(self) -> Timed:
        return _timed(self.session.load())

    def run(self) -> Timed:
        answer = self.session.time(1) if self.ran else self.session.run_timed(self.inputs)[0]
        self.ran = True
        return _timed(answer)


def _timed(answer: Answer) -> Timed:
    return Timed(answer.latency_ns[0], answer.peak_memory_mb)


def _run(
    lanes: Sequence[_Lane],
    request: LayersRequest,
    recorder: Recorder,
    identity: Identity,
    report: Callable[[str], None],
) -> None:
    read_text = files_below(Path("/"))
    watch = Watch(lambda thorough: read_state(identity, read_text, run_here, thorough=thorough), report)
    measure(lanes, Plan(request.runs, 0.0, 1, WARM_UP_LIMIT_S), recorder, watch)
