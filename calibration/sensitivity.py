"""Sensitivity: what int8 in one module alone costs the network's outputs, for every module that can have it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node

from acmix.calibration.simulation import Simulation, end_of, macs_of, total_macs, units, weight_of
from acmix.toolkit.errors import UsageError
from acmix.toolkit.grid import Grid, choose_grid
from acmix.toolkit.quantize import graph_module
from acmix.toolkit.quantized import Calibrated, example_inputs
from acmix.toolkit.samples import Samples
from acmix.toolkit.target import Array
from acmix.toolkit.verify import SNR_LIMIT_DB, same_top1

SCHEMA_VERSION = 1
Advance = Callable[[int], None]
"""Called with the number of samples that are done."""


@dataclass(frozen=True)
class Cost:
    """What rounding costs, over all samples.

    snr_db: power of the float outputs over that of the difference, of the worst output; None for outputs of zeros.
    top1_agreement: share of samples whose largest score stays the same one. top1: share that is right.
    Both are of the first output; None where that is not one row of scores, top1 also where there are no labels.
    """

    snr_db: float | None
    top1_agreement: float | None
    top1: float | None


@dataclass(frozen=True)
class ModuleCost:
    """One module whose layers, with the tensors that they read and write, are int8 while all else is float."""

    module: str
    layers: tuple[str, ...]
    cost: Cost
    macs: int
    macs_share: float
    weights_share: float


@dataclass(frozen=True)
class Sensitivity:
    """Every module that can be int8, the most harmful first. whole: all of them together. seconds: to find out."""

    modules: tuple[ModuleCost, ...]
    whole: Cost
    float_top1: float | None
    samples_name: str
    samples_count: int
    seconds: float
    schema_version: int = SCHEMA_VERSION


@dataclass
class Tally:
    """Sums over samples, of which a Cost is made."""

    signal: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    same: int = 0
    right: int = 0
    count: int = 0

    def add(self, wanted: Sequence[Array], found: Sequence[Array], label: int | None) -> None:
        """Take in the float outputs of one sample, and those to judge."""
        self.signal = self.signal or [0.0] * len(wanted)
        self.noise = self.noise or [0.0] * len(wanted)
        for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
            reference = a.astype(np.float64)
            self.signal[i] += float(np.square(reference).sum())
            self.noise[i] += float(np.square(b.astype(np.float64) - reference).sum())
        self.same += same_top1(wanted[0], found[0])
        self.right += label is not None and int(found[0].argmax()) == label
        self.count += 1

    def cost(self, scores: bool, labelled: bool) -> Cost:
        """scores: whether the first output is one row of scores."""
        ratios = [_ratio_db(s, n) for s, n in zip(self.signal, self.noise, strict=True)]
        known = [ratio for ratio in ratios if ratio is not None]
        return Cost(
            min(known, default=None),
            self.same / self.count if scores else None,
            self.right / self.count if scores and labelled else None,
        )


def _ratio_db(signal: float, noise: float) -> float | None:
    if not math.isfinite(noise):
        return -SNR_LIMIT_DB
    if signal == 0.0:
        return None
    return min(10 * math.log10(signal / noise), SNR_LIMIT_DB) if noise else SNR_LIMIT_DB


def is_scores(outputs: Sequence[Array]) -> bool:
    """Whether the first output is one row of scores, of two classes or more."""
    return bool(outputs) and outputs[0].size == outputs[0].shape[-1] > 1


def require_classes(samples: Samples, classes: int) -> None:
    """Raise UsageError for a label that no score stands for."""
    for identifier, label in zip(samples.identifiers, samples.labels or (), strict=False):
        if not 0 <= label < classes:
            raise UsageError(
                f"{samples.name}: {identifier} has label {label}, and the network tells {classes} classes apart.\n"
                f"Labels are 0 to {classes - 1}, in the order of its scores: number them so in labels.csv, or as "
                "folder names."
            )


def sensitivity(
    calibrated: Calibrated, samples: Samples, asked: Sequence[str] = (), advance: Advance = lambda done: None
) -> Sensitivity:
    """Round each module alone, on every sample, and compare with the float program. asked: nodes that are float.

    One float run a sample is kept in memory; a module's run starts from it and computes only what comes after.
    """
    begin = time.perf_counter()
    assert calibrated.ranges is not None
    module = graph_module(calibrated.program)
    grid = choose_grid(module.graph, calibrated.ranges, (*asked, *calibrated.kept))
    parts = {n: tuple(x for x in layers if x.name in grid.weights) for n, layers in units(module.graph).items()}
    parts = {name: layers for name, layers in parts.items() if layers}
    trials = [_Trial(module, grid_of(grid, layers), layers) for layers in parts.values()]
    tallies = [Tally() for _ in trials]
    whole, plain = Tally(), Tally()
    everything = Simulation(module, grid)
    scores = False
    for done, (inputs, label, wanted, values) in enumerate(_float_runs(module, samples), start=1):
        scores = is_scores(wanted)
        if scores and done == 1:
            require_classes(samples, wanted[0].size)
        plain.add(wanted, wanted, label)
        whole.add(wanted, everything.outputs(inputs), label)
        for trial, tally in zip(trials, tallies, strict=True):
            tally.add(wanted, trial.outputs(inputs, values), label)
        advance(done)
    labelled = samples.labels is not None
    total = total_macs(calibrated.program, example_inputs(calibrated.program))
    weights = sum(weight_of(module, layer).numel() for layers in parts.values() for layer in layers)
    made = [
        _module_cost(module, name, layers, tally.cost(scores, labelled), (total, weights))
        for (name, layers), tally in zip(parts.items(), tallies, strict=True)
    ]
    made.sort(key=lambda one: SNR_LIMIT_DB if one.cost.snr_db is None else one.cost.snr_db)
    return Sensitivity(
        tuple(made),
        whole.cost(scores, labelled),
        plain.cost(scores, labelled).top1,
        samples.name,
        len(samples),
        time.perf_counter() - begin,
    )


def by_noise_per_mac(found: Sensitivity) -> tuple[ModuleCost, ...]:
    """The order in which modules are worth keeping in float: noise that goes for each multiply-accumulate."""

    def worth(one: ModuleCost) -> float:
        ratio = SNR_LIMIT_DB if one.cost.snr_db is None else one.cost.snr_db
        return float(10 ** (-ratio / 10)) / max(one.macs, 1)

    return tuple(sorted(found.modules, key=worth, reverse=True))


def grid_of(grid: Grid, layers: Sequence[Node]) -> Grid:
    """The part of a grid that belongs to some layers: their weights, what they read, what they write."""
    edges = {(n.args[0].name, n.name) for n in layers if isinstance(n.args[0], Node) and n.args[0].name in grid.tensors}
    written = {end_of(n).name for n in layers} & grid.produced
    names = written | {source for source, _ in edges}
    tensors = {name: replace(grid.tensors[name], node=name) for name in names}
    return Grid(tensors, frozenset(written), frozenset(edges), frozenset(n.name for n in layers))


class _Trial:
    """The program with one module rounded, and which of the float values that leaves as they are."""

    def __init__(self, module: GraphModule, grid: Grid, layers: Sequence[Node]) -> None:
        self.simulation = Simulation(module, grid)
        self.changed = _after(module.graph, layers)

    def outputs(self, inputs: Sequence[Array], values: dict[Node, Any]) -> list[Array]:
        known = {node: value for node, value in values.items() if node not in self.changed}
        return self.simulation.outputs(inputs, known)


def _after(graph: Graph, layers: Sequence[Node]) -> set[Node]:
    found = set(layers)
    for node in graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _float_runs(
    module: GraphModule, samples: Samples
) -> Iterator[tuple[tuple[Array, ...], int | None, list[Array], dict[Node, Any]]]:
    """Each sample with its label, its float outputs, and every value on the way; none where the graph overwrites."""
    labels = samples.labels or (None,) * len(samples)
    overwrites = any(isinstance(n.target, OpOverload) and n.target._schema.is_mutable for n in module.graph.nodes)
    run = Simulation(module, Grid({}, frozenset(), frozenset(), frozenset()), keep_values=not overwrites)
    for sample, label in zip(samples, labels, strict=True):
        wanted = run.outputs(sample)
        # Whoever reads the outputs later must not find them changed.
        values = {} if overwrites else {n: v for n, v in run.env.items() if n.op != "output"}
        yield sample, label, [array.copy() for array in wanted], values


def _module_cost(
    module: GraphModule, name: str, layers: Sequence[Node], cost: Cost, totals: tuple[int, int]
) -> ModuleCost:
    macs = sum(macs_of(module, layer) for layer in layers)
    weights = sum(weight_of(module, layer).numel() for layer in layers)
    return ModuleCost(
        name, tuple(n.name for n in layers), cost, macs, macs / max(totals[0], 1), weights / max(totals[1], 1)
    )
