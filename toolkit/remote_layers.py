"""Where the time goes on a device: artifacts of one network, each in a runner that times its kernels and in one that
does not, beside a large convolution on each runtime, interleaved run by run.

The device tells raw notes; what they mean is found here, by the code that reads this host's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from acmix.toolkit._layer_report import (
    WARM_UP_LIMIT_S,
    LayersRequest,
    Measured,
    check_one_network,
    find_network,
    measured_of,
    placed_layers,
)
from acmix.toolkit._remote_place import (
    EMULATED_WARM_UP_S,
    Placed,
    RemoteLane,
    conditions_of,
    described,
    reader,
    send_and_prove,
    write_inputs,
)
from acmix.toolkit._remote_runner import RemoteRunner, RunnerBundle, start_runner
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.compute_floor import floor_file
from acmix.toolkit.conditions import Gate, Identity
from acmix.toolkit.device import Transport
from acmix.toolkit.devices._guard import guarded_folder
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.kernels import KernelTimes, Notes
from acmix.toolkit.layer_times import LayerReport
from acmix.toolkit.measure import Lane, Plan, Timed, Watch, measure
from acmix.toolkit.measurement import Header, Subject, recorded
from acmix.toolkit.profile import inputs_named, subject_of
from acmix.toolkit.session import open_session

NO_FLOOR = "no compute floor was measured: the device is emulated"
UNKNOWN = "whether the device is emulated is unknown"


def profile_layers_on_device(
    transport: Transport,
    artifacts: Sequence[tuple[Artifact, RunnerBundle]],
    request: LayersRequest,
    report: Callable[[str], None],
    journal: Path | None = None,
) -> LayerReport:
    """Prove artifacts of one network on a device, time their kernels there, and say of which module each is.

    journal: a new file that takes every sample as it comes; when the device fails in mid-run it stays, and is read
    like that of a measurement.  Raises UsageError for artifacts of several networks or a changed one, GateError when
    the device or a runtime on it fails, tells nonsense, or computes something else than it should.
    """
    opened = [artifact for artifact, _ in artifacts]
    check_one_network(opened)
    network = find_network(opened, request.model)
    name = transport.device.name

    def say(what: str) -> None:
        report(f"{name}: {what}")

    try:
        placed = send_and_prove(transport, artifacts, request.threads, report)
        say("looking at the device")
        identity, read = reader(transport)
        measured = _measure(transport, placed, request, identity, Watch(read, say), journal)
    finally:
        # A device that is gone removes the folder by itself; why it is gone is told already.
        with contextlib.suppress(GateError):
            transport.remove_work_folder()
    layers, remarks = placed_layers(opened, measured, network, request, say)
    return LayerReport(
        opened[0].manifest.model.name, layers, request.threads, request.cpus, described(transport, placed, identity),
        remarks, name, identity.emulation or (),
    )  # fmt: skip


def _measure(
    transport: Transport,
    placed: Sequence[Placed],
    request: LayersRequest,
    identity: Identity,
    watch: Watch,
    journal: Path | None,
) -> Measured:
    remarks = [UNKNOWN] if identity.emulation is None else []
    with contextlib.ExitStack() as stack:
        lanes = [
            RemoteLane(stack.enter_context(each.start(transport)), each, request.threads, profiled)
            for each in placed
            for profiled in (False, True)
        ]
        floors: dict[str, _FloorLane] = {}
        if identity.emulation:
            # A convolution of this size takes an emulator minutes, and would say nothing of a device.
            remarks.append(NO_FLOOR)
        else:
            floors = dict(_floors(transport, placed, request, stack, remarks))
        limit_s = EMULATED_WARM_UP_S if identity.emulation else WARM_UP_LIMIT_S
        plan = Plan(request.runs, 0.0, 1, limit_s)
        conditions = conditions_of(transport, placed, request.threads, identity, watch.read_state(False), Gate())
        header = Header(_subjects(placed, floors), plan, inputs_named(1, ()), conditions)
        every: list[Lane] = [*lanes, *floors.values()]
        recorder = stack.enter_context(recorded(header, journal))
        measure(every, plan, recorder, watch)
        watch.report("reading the kernels")
        notes = [lane.runner.kernels() for lane in lanes[1::2]]
    counts = [sum(map(len, (r.taken["first_run"], r.taken["warm_up"], r.taken["latency"]))) for r in recorder.lanes]
    kernels = [_named(*each, request) for each in zip(placed, notes, counts[1 : len(lanes) : 2], strict=True)]
    taken = [tuple(record.taken["latency"]) for record in recorder.lanes]
    return measured_of(taken, kernels, tuple(floors), tuple(remarks))


def _subjects(placed: Sequence[Placed], floors: Iterable[str]) -> tuple[Subject, ...]:
    """What each lane measures, in their order."""
    found = []
    for each in placed:
        plain = subject_of(each.artifact)
        found += [plain, replace(plain, artifact=f"{plain.artifact}, kernels timed")]
    return (*found, *(Subject(f"the convolution on {target}", target, "float32", "") for target in floors))


def _named(placed: Placed, notes: Notes, runs: int, request: LayersRequest) -> KernelTimes:
    """In a child: it reads the file with the runtime's own tools, and the notes are a stranger's."""
    with open_session(placed.artifact.session(threads=request.threads), request.log) as session:
        return session.name_kernels(notes, runs, placed.bundle.runtime)


def _floors(
    transport: Transport,
    placed: Sequence[Placed],
    request: LayersRequest,
    stack: contextlib.ExitStack,
    remarks: list[str],
) -> Iterator[tuple[str, _FloorLane]]:
    """The convolution on each runtime, in the runner of the first artifact of that target."""
    first = {each.artifact.manifest.target.name: each for each in reversed(placed)}
    for target in dict.fromkeys(each.artifact.manifest.target.name for each in placed):
        try:
            floor = floor_file(target, request.log)
        except (UsageError, GateError) as error:
            remarks.append(f"{target} has no compute floor: {str(error).splitlines()[0]}")
            continue
        file = transport.push(floor.file, f"floors/{target}/{floor.file.name}", keep=True)
        with guarded_folder("acmix-inputs-") as here:
            names = write_inputs(here, "noise", floor.inputs)
            there = transport.push(here, f"floors/{target}/inputs", keep=True)
        bundle, folder = first[target].bundle, first[target].folder
        # Its outputs stay there: nobody asks for them.
        runner = stack.enter_context(start_runner(transport, bundle, folder, ()))
        yield target, _FloorLane(runner, file, [f"{there}/{name}" for name in names], request.threads)


@dataclass
class _FloorLane:
    """The convolution in a runner on the device."""

    runner: RemoteRunner
    file: str
    inputs: Sequence[str]
    threads: int
    ran: bool = False

    def load(self) -> Timed:
        return self.runner.load(self.file, self.threads)

    def run(self) -> Timed:
        given = () if self.ran else self.inputs
        self.ran = True
        return self.runner.time(given)
