"""A captured program with its integers simulated while it runs: many grids on one program, none of them exported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils.flop_counter import FlopCounterMode

from acmix.toolkit.grid import ACTIVATIONS, COMPUTE, Grid, has_constant_weight
from acmix.toolkit.prepare import flat_tensors
from acmix.toolkit.quantize import constant, graph_module, rounded_bias, rounded_weight, weight_scales
from acmix.toolkit.quantized import module_of
from acmix.toolkit.ranges import QuantizedTensor
from acmix.toolkit.target import Array

SCALE_BYTES = 4


class Simulation(fx.Interpreter):
    """Runs a program's graph and rounds where a grid says so: the numbers of `acmix.toolkit.quantize`, on the fly."""

    def __init__(self, module: GraphModule, grid: Grid, keep_values: bool = False) -> None:
        super().__init__(module, garbage_collect_values=not keep_values)
        self.grid = grid
        self.reads = {layer: grid.tensors[source] for source, layer in grid.edges}
        self.constants = {n: _constants(module, n, grid) for n in module.graph.nodes if n.name in grid.weights}

    def outputs(self, inputs: Sequence[Array], known: Mapping[Node, Any] | None = None) -> list[Array]:
        """The outputs on one sample. known: values of nodes that need not be computed again."""
        tensors = [torch.from_numpy(np.array(array)) for array in inputs]
        with torch.no_grad():
            found = self.run(*tensors, initial_env=dict(known) if known else None, enable_io_processing=False)
        return [tensor.contiguous().numpy() for tensor in flat_tensors(found)]

    def run_node(self, n: Node) -> Any:
        """Compute one node, on integers where it has them, and round its result where that is one."""
        value = self._layer(n) if n in self.constants else super().run_node(n)
        return rounded(value, self.grid.tensors[n.name]) if n.name in self.grid.produced else value

    def _layer(self, node: Node) -> Any:
        arguments, named = self.fetch_args_kwargs_from_env(node)
        weight, bias = self.constants[node]
        value = arguments[0]
        if node.name in self.reads:
            value = rounded(value, self.reads[node.name])
        rest = arguments[2:] if bias is None else (bias, *arguments[3:])
        assert callable(node.target)
        return node.target(value, weight, *rest, **named)


def rounded(value: Tensor, tensor: QuantizedTensor) -> Tensor:
    """What a tensor's integers stand for."""
    half = 2 ** (tensor.bits - 1)
    return torch.fake_quantize_per_tensor_affine(value, tensor.scale, tensor.zero_point, -half, half - 1)


def _constants(module: GraphModule, layer: Node, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """The rounded weight and bias of a layer; None for a bias that stays as it is."""
    weight, read = weight_of(module, layer), layer.args[0]
    given = layer.args[2] if len(layer.args) > 2 else None
    if not isinstance(given, Node) or given.op != "get_attr":
        return rounded_weight(weight), None
    tensor = grid.tensors.get(read.name) if isinstance(read, Node) else None
    if tensor is None:
        return rounded_weight(weight), None
    bias = constant(module, given)
    scales = weight_scales(weight, bias, tensor.scale)
    return rounded_weight(weight, scales), rounded_bias(bias, scales * tensor.scale)


def units(graph: fx.Graph) -> dict[str, tuple[Node, ...]]:
    """The layers that can be int8, by the user's own module; by their node where no module is known."""
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if has_constant_weight(node):
            found.setdefault(module_of(node) or node.name, []).append(node)
    return {name: tuple(nodes) for name, nodes in found.items()}


def end_of(layer: Node) -> Node:
    """The node whose result a runtime writes: the activation that is fused into a layer, or the layer."""
    readers = list(layer.users)
    return readers[0] if len(readers) == 1 and readers[0].target in ACTIVATIONS else layer


def weight_of(module: GraphModule, layer: Node) -> Tensor:
    """The constant weight of a layer."""
    assert isinstance(layer.args[1], Node)
    return constant(module, layer.args[1])


def macs_of(module: GraphModule, layer: Node) -> int:
    """Multiply-accumulates of one convolution or linear layer."""
    made: Sequence[int] = layer.meta["val"].shape
    return math.prod(made) * math.prod(weight_of(module, layer).shape[1:])


def total_macs(program: ExportedProgram, inputs: Sequence[Tensor]) -> int:
    """Multiply-accumulates of one inference: convolutions and matrix products, those without int8 form too."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        graph_module(program)(*inputs)
    flops: int = counter.get_total_flops()
    return flops // 2


def size_bytes(module: GraphModule, int8: frozenset[str]) -> int:
    """Of the constants in a file whose layers named in `int8` have int8 weights and a scale for each channel."""
    total, seen = 0, set()
    for node in module.graph.nodes:
        if node.op != "get_attr" or node.target in seen:
            continue
        seen.add(node.target)
        tensor = constant(module, node)
        layers = [u for u in node.users if u.target in COMPUTE and len(u.args) > 1 and u.args[1] is node]
        if layers and all(user.name in int8 for user in layers) and len(layers) == len(node.users):
            total += tensor.numel() + SCALE_BYTES * tensor.shape[0]
        else:
            total += tensor.numel() * tensor.element_size()
    return total
