"""What was measured of several artifacts, operator by operator, with the modules of their network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from acmix.toolkit.artifact import Artifact
from acmix.toolkit.compute_floor import MACS
from acmix.toolkit.errors import AcmixError, GateError, UsageError
from acmix.toolkit.evaluate import rebuild
from acmix.toolkit.kernels import KernelTime, KernelTimes
from acmix.toolkit.layer_times import Floor, LayerTimes, OperatorTime

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


@dataclass(frozen=True)
class Measured:
    """Of each artifact its runs, with and without a profiler, and its kernels; of targets their floors.

    kernels: their times are of the profiled runs and of those before them. remarks: what a reader must know.
    """

    plain: tuple[tuple[int, ...], ...]
    profiled: tuple[tuple[int, ...], ...]
    kernels: tuple[KernelTimes, ...]
    floors: dict[str, Floor]
    remarks: tuple[str, ...]


def measured_of(
    taken: Sequence[tuple[int, ...]], kernels: Sequence[KernelTimes], floors: Sequence[str], remarks: tuple[str, ...]
) -> Measured:
    """taken: of each artifact its plain and its profiled runs, then those of each target's floor."""
    pairs = 2 * len(kernels)
    found = {target: Floor(MACS, ns) for target, ns in zip(floors, taken[pairs:], strict=True)}
    return Measured(tuple(taken[0:pairs:2]), tuple(taken[1:pairs:2]), tuple(kernels), found, remarks)


@dataclass(frozen=True)
class NetworkFound:
    """The network that artifacts were made from, None with a reason where it cannot be built again."""

    network: object
    missing: str


def check_one_network(artifacts: Sequence[Artifact]) -> None:
    """UsageError for artifacts of several networks or weights."""
    first = artifacts[0].manifest.model
    for artifact in artifacts:
        model = artifact.manifest.model
        if (model.name, model.weights.digest) != (first.name, first.weights.digest):
            raise UsageError(
                f"{artifacts[0].name} and {artifact.name} are of different networks or weights: "
                "their modules cannot stand side by side.\nProfile the layers of each on its own."
            )


def find_network(artifacts: Sequence[Artifact], model: str | None) -> NetworkFound:
    """The network of artifacts of one; UsageError where `model` names another."""
    network, missing = rebuild(artifacts[0], model)
    if network is None and model is not None:
        raise UsageError(f"--model {model} is not what {artifacts[0].name} was made from: {missing}.")
    return NetworkFound(network, missing)


def placed_layers(
    artifacts: Sequence[Artifact],
    measured: Measured,
    found: NetworkFound,
    request: LayersRequest,
    report: Callable[[str], None],
) -> tuple[tuple[LayerTimes, ...], tuple[str, ...]]:
    """Each artifact's operators with their modules, and every remark."""
    report("finding the modules")
    remarks = list(measured.remarks)
    if found.network is None:
        remarks.append(f"no time is mapped to modules: {found.missing}")
    placed = _placed(artifacts, [one.kernels for one in measured.kernels], found.network, request, remarks)
    layers = []
    for i, (artifact, operators) in enumerate(zip(artifacts, placed, strict=True)):
        floor = measured.floors.get(artifact.manifest.target.name)
        if floor and artifact.manifest.recipe.activations.startswith("int"):
            remarks.append(QUANTIZED_FLOOR.format(name=artifact.name))
            floor = None
        kept = tuple(_last(one, len(measured.profiled[i])) for one in operators)
        told = measured.kernels[i].measured_by
        layers.append(_layer_times(artifact, kept, measured.profiled[i], measured.plain[i], told, floor))
    return tuple(layers), tuple(remarks)


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
