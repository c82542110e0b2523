"""The quantized form of a captured program: calibrated once, one grid, and a simulation that runs in torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode

from acmix.toolkit.conditioning import Attainable, HalfRounding
from acmix.toolkit.grid import (
    ACTIVATIONS,
    COMPUTE,
    JOINS,
    MOVES,
    POOLS,
    Grid,
    choose_grid,
    has_constant_weight,
    pads_with_zeros,
    statistics_layers,
)
from acmix.toolkit.half_kernels import HalfProgram
from acmix.toolkit.int8_kernels import with_kernels
from acmix.toolkit.prepare import flat_tensors
from acmix.toolkit.program import copy_program, quiet
from acmix.toolkit.quantize import graph_module, quantize
from acmix.toolkit.ranges import Array, KeptFloat, QuantizedTensor, Ranges
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.samples import Samples
from acmix.toolkit.target import Int8Kernels
from acmix.toolkit.verify import snr_db

PERTURBATION = 1e-4
"""Relative, of every product and sum: a hundredth of a step, as far as int8 kernels stray when they scale."""

Simulation = Callable[[Sequence[Array]], list[Array]]


@dataclass(frozen=True)
class Calibrated:
    """A float program with its weights mended for quantization, and the ranges of its tensors.

    repairs: what was done to the weights, in words, and what is to be said of the ranges.
    kept: the nodes that stay float besides those that were asked for.
    """

    program: ExportedProgram
    ranges: Ranges | None
    repairs: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


class Calibrator(Protocol):
    """Finds the ranges of a captured program over samples; acmix.calibration has the one there is."""

    @property
    def samples(self) -> Samples: ...
    @property
    def remarks(self) -> tuple[str, ...]:
        """What is to be said of the samples."""

    def __call__(self, program: ExportedProgram, recipe: Recipe, kept: Sequence[str]) -> Calibrated:
        """kept: the layers that stay float, whose weights need no mending."""


@dataclass(frozen=True)
class Quantized:
    """One captured program, quantized: float with mended weights, and with pairs. Equal networks but for rounding."""

    calibrated: Calibrated
    grid: Grid
    pairs: ExportedProgram
    kept_float: tuple[KeptFloat, ...]


def quantize_program(
    program: ExportedProgram, recipe: Recipe, calibrator: Calibrator | None, kept: Sequence[str] = ()
) -> Quantized:
    """Calibrate where the recipe has integer activations, choose the grid, and write the pairs."""
    program = functional(program)
    calibrated = Calibrated(program, None)
    asked = frozenset(kept)
    if recipe.needs_ranges:
        kept = tuple(asked | statistics_layers(graph_module(program).graph))
        if calibrator is None:
            raise ValueError(f"recipe {recipe.name} needs ranges")
        calibrated = calibrator(program, recipe, kept)
        asked |= frozenset(calibrated.kept)
        kept = tuple(dict.fromkeys((*kept, *calibrated.kept)))
        calibrated = dataclasses.replace(calibrated, kept=kept)
    graph = graph_module(calibrated.program).graph
    if calibrated.ranges is not None:
        grid = choose_grid(graph, calibrated.ranges, kept)
    else:
        layers = (n.name for n in graph.nodes if has_constant_weight(n) and n.name not in kept)
        grid = Grid({}, frozenset(), frozenset(), frozenset(layers))
    pairs = quantize(calibrated.program, grid, example_inputs(calibrated.program))
    return Quantized(calibrated, grid, pairs, kept_float(list(graph.nodes), grid, asked))


def functional(program: ExportedProgram) -> ExportedProgram:
    """The same program without operators that write in place, and with paddings in numbers: what the grid knows."""
    calls = [n for n in program.graph.nodes if n.op == "call_function" and isinstance(n.target, torch._ops.OpOverload)]
    if any(n.target._schema.is_mutable for n in calls):
        with quiet():
            program = program.run_decompositions({})
    elif any(n.target is torch.ops.aten.conv2d.padding for n in calls):
        program = copy_program(program)
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.conv2d.padding:
            _write_padding(node)
    program.graph_module.recompile()
    return program


def _write_padding(node: Node) -> None:
    """'valid', and 'same' where both sides get the same; any other convolution stays as it is, and float."""
    defaults: tuple[Any, ...] = (None, None, None, [1, 1], "valid", [1, 1], 1)
    given: list[Any] = [*node.args, *defaults[len(node.args) :]]
    weight, (stride, padding, dilation, groups) = given[1], given[3:]
    assert isinstance(weight, Node)
    reach = [d * (k - 1) for k, d in zip(weight.meta["val"].shape[2:], dilation, strict=True)]
    if padding == "same" and any(r % 2 for r in reach):
        return
    amounts = [r // 2 if padding == "same" else 0 for r in reach]
    node.target = torch.ops.aten.conv2d.default
    node.args = (*given[:3], stride, amounts, dilation, groups)


def example_inputs(program: ExportedProgram) -> tuple[Tensor, ...]:
    """Zeros of the shapes that a program takes."""
    wanted = set(program.graph_signature.user_inputs)
    return tuple(
        torch.zeros(tuple(n.meta["val"].shape), dtype=n.meta["val"].dtype)
        for n in program.graph.nodes
        if n.op == "placeholder" and n.name in wanted
    )


def placed_by_file(program: ExportedProgram, tensors: Sequence[QuantizedTensor], weights: Grid) -> ExportedProgram:
    """The program with its pairs where a saved file holds integers: what such a file has to agree with."""
    named = {node.name: node for node in graph_module(program).graph.nodes}
    known: dict[str, QuantizedTensor] = {}
    for tensor in sorted(tensors, key=lambda one: one.for_all):
        if tensor.node in named:
            known[tensor.node] = tensor
    produced = frozenset(name for name, tensor in known.items() if tensor.for_all)
    edges = frozenset(
        (name, reader.name)
        for name in known.keys() - produced
        for reader in named[name].users
        if _reads_integers(reader, weights.weights, produced)
    )
    sources = {source for source, _ in edges}
    tensors_read = {name: tensor for name, tensor in known.items() if name in produced or name in sources}
    return quantize(program, Grid(tensors_read, produced, edges, weights.weights), example_inputs(program))


def _reads_integers(reader: Node, layers: Collection[str], produced: Collection[str]) -> bool:
    """Whether a reader is a layer with int8 weights, computes on integers itself, or moves values for such ones.

    produced: what integer operators make. What is rounded after a float operator is none of it: a float sum of a map
    and a layer's result reads the map as it is.
    """
    if reader.name in layers:
        return True
    ends = [reader, *(one for one in reader.users if one.target in ACTIVATIONS and len(reader.users) == 1)]
    if reader.target in COMPUTING_ON_INTEGERS and any(one.name in produced for one in ends):
        return True
    moves = reader.target in MOVES or pads_with_zeros(reader)
    return moves and bool(reader.users) and all(_reads_integers(one, layers, produced) for one in reader.users)


def simulate(
    pairs: ExportedProgram,
    rounding: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    kernels: Int8Kernels | None = None,
) -> Simulation:
    """Run a program of pairs in torch: the integers of the file, by a runtime's kernels or in float arithmetic."""
    module: nn.Module = HalfProgram(pairs) if kernels == "coreml" else graph_module(pairs)
    if kernels is not None and kernels != "coreml":
        module = with_kernels(pairs, kernels)

    def run(inputs: Sequence[Array]) -> list[Array]:
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs]
        with torch.no_grad(), rounding():
            return [t.contiguous().numpy() for t in flat_tensors(module(*tensors))]

    return run


def attainable_by(
    pairs: ExportedProgram, half_arithmetic: bool = False, typical_rms: Sequence[float] = ()
) -> Attainable:
    """What a simulation keeps of itself when its sums are rounded otherwise.

    A value next to a rounding edge falls on its other side, and every rounding behind it may follow: a deep network
    keeps 25 dB of its int8 outputs, whatever runs it.
    """
    roundings = [HalfRounding] if half_arithmetic else [functools.partial(_Perturbed, whole) for whole in (False, True)]
    runs = [simulate(pairs, rounding) for rounding in roundings]

    def measure(inputs: Sequence[Array], outputs: Sequence[Array]) -> tuple[float | None, ...]:
        typical = typical_rms or (0.0,) * len(outputs)
        found = [[snr_db(*part) for part in zip(outputs, run(inputs), typical, strict=True)] for run in runs]
        return tuple(None if None in one else min(one) for one in zip(*found, strict=True))

    return measure


class _Perturbed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds relative noise of one seed to the results of sums and products.

    whole_channels: the same for all values of a channel, which is what another kernel does to an even part of an image:
    all its roundings go the same way.
    """

    SUMS = frozenset(
        {
            torch.ops.aten.convolution.default,
            torch.ops.aten.addmm.default,
            torch.ops.aten.mm.default,
            torch.ops.aten.bmm.default,
            torch.ops.aten.add.Tensor,
            torch.ops.aten.mean.dim,
        }
    )

    def __init__(self, whole_channels: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.whole_channels = whole_channels
        self.generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self.SUMS and result.is_floating_point():
            shape = [n if not self.whole_channels or i == 1 else 1 for i, n in enumerate(result.shape)]
            return result * (1 + PERTURBATION * torch.randn(shape, generator=self.generator))
        return result


STATISTIC = "it makes or spreads a statistic of a normalisation, which 256 levels do not hold"
COMPUTING_ON_INTEGERS = MOVES | POOLS | JOINS | {torch.ops.aten.mul.Tensor, torch.ops.aten.sigmoid.default}
"""Of a file that says itself which tensors are integers."""
INTEGER_OPERATORS = COMPUTE | MOVES | POOLS | JOINS | ACTIVATIONS


def kept_float(nodes: Sequence[Node], grid: Grid, asked: frozenset[str]) -> tuple[KeptFloat, ...]:
    """What computes in float in a quantized program, a kind of operator at a time, and why."""
    found: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for node in nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        reason = _reason(node, grid, asked)
        if reason:
            found[str(node.target).removeprefix("aten."), reason].append(node)
    return tuple(
        KeptFloat(kind, len(members), reason, tuple(dict.fromkeys(map(module_of, members)))[:8])
        for (kind, reason), members in sorted(found.items())
    )


def module_of(node: Node) -> str:
    """The path of the module that a node came from, as in the user's own network; '' at the top."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack.values()))[0] if stack else ""


def _reason(node: Node, grid: Grid, asked: frozenset[str]) -> str:
    if node.name in asked:
        return "kept float as asked"
    if node.target in COMPUTE:
        if node.name in grid.weights:
            return ""
        return STATISTIC if has_constant_weight(node) else "its weights are computed: no scale can be fixed"
    if not grid.tensors or node.name in grid.produced or node.target in ACTIVATIONS:
        return ""
    if node.target in INTEGER_OPERATORS:
        return "" if _between_layers(node, grid) else "what it reads is float"
    return "no int8 form of it that every runtime has"


def _between_layers(node: Node, grid: Grid) -> bool:
    """A sum whose activation is fused: the activation's result is the integer."""
    return len(node.users) == 1 and next(iter(node.users)).name in grid.produced
