"""Where the time goes on this host: artifacts of one network with every kernel timed, beside themselves untouched.

Each artifact runs in two processes, one with its runtime's profiler and one without, and on each runtime a large
convolution runs too; all of them are interleaved run by run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from acmix.toolkit import machine
from acmix.toolkit.artifact import Artifact, check_digests, executed_by
from acmix.toolkit.compute_floor import MACS, floor_file
from acmix.toolkit.errors import AcmixError, GateError, UsageError
from acmix.toolkit.evaluate import rebuild
from acmix.toolkit.execute import file_inputs
from acmix.toolkit.joining import own_file
from acmix.toolkit.kernels import KernelTime
from acmix.toolkit.layer_times import Floor, LayerReport, LayerTimes, OperatorTime
from acmix.toolkit.measure import Plan, Recorder, Timed, Watch, measure
from acmix.toolkit.profile import interface_of
from acmix.toolkit.samples import Probes
from acmix.toolkit.session import Answer, Session, SessionRequest, open_session
from acmix.toolkit.state.reading import files_below, identify, read_state, run_here
from acmix.toolkit.target import Array

WARM_UP_LIMIT_S = 3.0
QUANTIZED_FLOOR = "the compute floor is a float32 convolution: {name} computes with integers and has no floor here"


@dataclass(frozen=True)
class LayersRequest:
    """How to measure. runs: at least so many of each process.  model: as --model, for a network of one's own.

    cpus: where the runtimes run.  scratch: an empty folder.
    """

    runs: int
    threads: int
    cpus: tuple[int, ...]
    scratch: Path
    log: Path
    model: str | None = None


def profile_layers(artifacts: Sequence[Artifact], request: LayersRequest, report: Callable[[str], None]) -> LayerReport:
    """Time every kernel of artifacts of one network, and say of which module it is.

    Raises UsageError for artifacts of several networks, one that was changed or cannot run here, and an emulated
    machine; GateError when a runtime fails.
    """
    _check(artifacts)
    network, missing = rebuild(artifacts[0], request.model)
    if network is None and request.model is not None:
        raise UsageError(f"--model {request.model} is not what {artifacts[0].name} was made from: {missing}.")
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
        _run([*lanes, *floors.values()], request, recorder, report)
        kernels = [lane.session.kernels() for lane in lanes[1::2]]
    taken = [tuple(record.taken["latency"]) for record in recorder.lanes]
    found = {target: Floor(MACS, ns) for target, ns in zip(floors, taken[len(lanes) :], strict=True)}
    report("finding the modules")
    if network is None:
        remarks.append(f"no time is mapped to modules: {missing}")
    placed = _placed(artifacts, [one.kernels for one in kernels], network, request, remarks)
    layers = []
    for i, (artifact, operators) in enumerate(zip(artifacts, placed, strict=True)):
        plain, profiled = taken[2 * i], taken[2 * i + 1]
        floor = found.get(artifact.manifest.target.name)
        if floor and artifact.manifest.recipe.activations.startswith("int"):
            remarks.append(QUANTIZED_FLOOR.format(name=artifact.name))
            floor = None
        kept = tuple(_last(one, len(profiled)) for one in operators)
        layers.append(_layer_times(artifact, kept, profiled, plain, kernels[i].measured_by, floor))
    model = artifacts[0].manifest.model.name
    return LayerReport(model, tuple(layers), request.threads, request.cpus, machine.describe(), tuple(remarks))


def _check(artifacts: Sequence[Artifact]) -> None:
    first = artifacts[0].manifest.model
    for artifact in artifacts:
        model = artifact.manifest.model
        if (model.name, model.weights.digest) != (first.name, first.weights.digest):
            raise UsageError(
                f"{artifacts[0].name} and {artifact.name} are of different networks or weights: "
                "their modules cannot stand side by side.\nProfile the layers of each on its own."
            )
        check_digests(artifact)
        by, reason = executed_by(artifact)
        if by != "runtime":
            raise UsageError(f"{artifact.name} cannot be profiled on this host: {reason}")
    if signs := identify(files_below(Path("/")), run_here).emulation:
        raise UsageError(
            f"this machine is emulated ({', '.join(map(str, signs))}): where its time goes says nothing about a device."
            "\nProfile the layers on a real machine."
        )


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


def _run(lanes: Sequence[_Lane], request: LayersRequest, recorder: Recorder, report: Callable[[str], None]) -> None:
    read_text = files_below(Path("/"))
    identity = identify(read_text, run_here)
    watch = Watch(lambda thorough: read_state(identity, read_text, run_here, thorough=thorough), report)
    measure(lanes, Plan(request.runs, 0.0, 1, WARM_UP_LIMIT_S), recorder, watch)


def _placed(
    artifacts: Sequence[Artifact],
    kernels: Sequence[Sequence[KernelTime]],
    network: object,
    request: LayersRequest,
    remarks: list[str],
) -> list[list[OperatorTime]]:
    """Every kernel with its module; all of them unmapped, with a remark, where the network cannot be captured again."""
    # Imported here: all the rest needs no torch.
    from acmix.toolkit import capture
    from acmix.toolkit._layer_modules import nodes_of, place

    unmapped = [place(some, {}, {}) for some in kernels]
    if not isinstance(network, capture.Network):
        return unmapped
    try:
        captured = capture.capture(network, sorted({artifact.manifest.target.name for artifact in artifacts}))
    except AcmixError as error:
        remarks.append(f"no time is mapped to modules: {str(error).splitlines()[0]}")
        return unmapped
    placed = []
    for i, (artifact, some) in enumerate(zip(artifacts, kernels, strict=True)):
        folder = request.scratch / str(i)
        folder.mkdir()
        try:
            steps, nodes = nodes_of(artifact, captured, folder, request.log)
        except (UsageError, GateError) as error:
            remarks.append(f"{artifact.name}: no time is mapped to modules: {str(error).splitlines()[0]}")
            steps, nodes = {}, {}
        placed.append(place(some, steps, nodes))
    return placed


def _last(operator: OperatorTime, runs: int) -> OperatorTime:
    """Without the first run and the warm-up."""
    return replace(operator, times_ns=operator.times_ns[-runs:])


def _layer_times(
    artifact: Artifact,
    operators: tuple[OperatorTime, ...],
    profiled: tuple[int, ...],
    plain: tuple[int, ...],
    measured_by: str,
    floor: Floor | None,
) -> LayerTimes:
    manifest = artifact.manifest
    placed = manifest.placement.operators
    return LayerTimes(
        artifact.name,
        manifest.target.name,
        manifest.recipe.name,
        manifest.files[0].sha256,
        operators,
        profiled,
        plain,
        len(placed),
        sum(operator.macs for operator in placed),
        measured_by,
        floor,
    )
