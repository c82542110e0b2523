"""The grid: which tensors of a captured program become integers, by one rule for every runtime that takes pairs.

Integers are worth having where a convolution or a linear layer with constant weights reads them; they flow on through
whatever only moves, adds or pools them, so that no runtime has to leave int8 between two such layers. All else stays
float: a softmax, a normalisation, a product of two activations (LSNet's predicted taps among them) has no range that
calibration could fix, or no int8 kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.fx import Graph, Node

from acmix.toolkit.ranges import QuantizedTensor, Range, Ranges

aten = torch.ops.aten

COMPUTE = frozenset({aten.conv2d.default, aten.linear.default})
"""Read a constant weight; int8 kernels exist everywhere."""
ACTIVATIONS = frozenset({aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default})
"""Fuse into the layer before them: no integers in between."""
MOVES = frozenset(
    {
        aten.max_pool2d.default,
        aten.permute.default,
        aten.transpose.int,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.view.default,
        aten.reshape.default,
        aten.slice.Tensor,
        aten.flatten.using_ints,
        aten.dropout.default,
        aten.contiguous.default,
    }
)
"""Give back values that they were given: same scale in and out."""
POOLS = frozenset({aten.mean.dim, aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default})
"""Average: the result has a narrower range of its own.

With one scale before and after, each fourth average of 2 x 2 integers would lie on a rounding edge, and fall as the
last bit of a runtime's float sum says.
"""
JOINS = frozenset({aten.add.Tensor, aten.cat.default})

STATISTICS = frozenset({aten.rsqrt.default, aten.sqrt.default, aten.reciprocal.default, aten.log.default})
"""Turn small errors of what they read into large ones, and give values over orders of magnitude."""
ELEMENTWISE = frozenset(
    {
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.neg.default,
        aten.abs.default,
        aten.pow.Tensor_Scalar,
        aten.clamp.default,
    }
)

SMALLEST_SCALE = 2.0**-30
"""Of a tensor that was zero on every sample."""


@dataclass(frozen=True)
class Grid:
    """What becomes integers.

    tensors: by the name of the node that makes them. produced: those that are integers for every reader; the others
    are rounded only for the layers of `edges`. weights: the nodes of `COMPUTE` whose weights are int8.
    """

    tensors: dict[str, QuantizedTensor]
    produced: frozenset[str]
    edges: frozenset[tuple[str, str]]
    weights: frozenset[str]


def integers(values: Range, node: str, bits: int = 8) -> QuantizedTensor:
    """Scale and zero point of a range, asymmetric, signed: 0 is exact."""
    levels = 2**bits - 1
    lowest = -(2 ** (bits - 1))
    scale = max((values.high - values.low) / levels, SMALLEST_SCALE)
    zero_point = lowest + round(-values.low / scale)
    return QuantizedTensor(node, float(np.float32(scale)), int(np.clip(zero_point, lowest, lowest + levels)), bits)


def has_constant_weight(node: Node) -> bool:
    """Whether a layer of COMPUTE reads its weight from the program itself."""
    return node.target in COMPUTE and isinstance(node.args[1], Node) and node.args[1].op == "get_attr"


def statistics_layers(graph: Graph) -> frozenset[str]:
    """The layers that make a variance or spread its inverse, by name: 256 levels hold neither."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.target in STATISTICS:
            found |= _nearest_layers(node, lambda n: n.all_input_nodes) | _nearest_layers(node, lambda n: list(n.users))
    return frozenset(found)


def _nearest_layers(start: Node, neighbours: Callable[[Node], list[Node]]) -> set[str]:
    """Layers with constant weights that only elementwise operators and moves separate from a node."""
    found: set[str] = set()
    seen, waiting = {start}, [start]
    while waiting:
        for node in neighbours(waiting.pop()):
            if node in seen:
                continue
            seen.add(node)
            if has_constant_weight(node):
                found.add(node.name)
            elif node.target in ELEMENTWISE | MOVES:
                waiting.append(node)
    return found


def choose_grid(graph: Graph, ranges: Ranges, kept_float: Iterable[str] = ()) -> Grid:
    """The grid of a program's graph. `kept_float`: names of layers whose weights and inputs stay float."""
    kept = frozenset(kept_float)
    layers = [n for n in graph.nodes if has_constant_weight(n) and n.name not in kept]
    produced = _produced(graph, layers)
    edges = {
        (source.name, layer.name)
        for layer in layers
        if isinstance(source := layer.args[0], Node) and source not in produced
    }
    named = {n.name: n for n in graph.nodes}
    group = _shared_scales(graph, produced)
    tensors: dict[str, QuantizedTensor] = {}
    for name in [*(n.name for n in produced), *(source for source, _ in edges)]:
        members = group.get(named[name], [named[name]])
        found = [ranges.tensors[m.name] for m in members if m.name in ranges.tensors]
        if found:
            whole = Range(min(r.low for r in found), max(r.high for r in found))
            tensors[name] = integers(whole, name)
    return Grid(
        tensors,
        frozenset(n.name for n in produced if n.name in tensors),
        frozenset((source, layer) for source, layer in edges if source in tensors),
        frozenset(layer.name for layer in layers),
    )


def _fused(layer: Node) -> Node:
    """The activation that a runtime fuses into a layer, or the layer itself."""
    readers = list(layer.users)
    return readers[0] if len(readers) == 1 and readers[0].target in ACTIVATIONS else layer


def _produced(graph: Graph, layers: list[Node]) -> set[Node]:
    """Outputs of integer layers, and what flows from them through moves, pools and joins."""
    ends = {_fused(layer) for layer in layers}
    produced: set[Node] = set()
    for node in graph.nodes:
        if node in ends:
            produced.add(node)
        elif node.target in MOVES | POOLS | JOINS | ACTIVATIONS or pads_with_zeros(node):
            sources = node.all_input_nodes
            fused = len(sources) == 1 and sources[0].target in JOINS and len(sources[0].users) == 1
            if sources and all(s in produced for s in sources) and node.op == "call_function":
                produced.add(node)
                if node.target in ACTIVATIONS and fused:
                    produced.discard(sources[0])
    return produced


def pads_with_zeros(node: Node) -> bool:
    """Whether a padding commutes with rounding: zero is on every grid."""
    if node.target is not aten.pad.default:
        return False
    mode = node.args[2] if len(node.args) > 2 else "constant"
    value = node.args[3] if len(node.args) > 3 else None
    return mode == "constant" and not value


def _shared_scales(graph: Graph, produced: set[Node]) -> Mapping[Node, list[Node]]:
    """Groups of tensors with one scale: what a move reads and makes, and a concatenation's parts and whole."""
    group = {node: [node] for node in produced}
    for node in graph.nodes:
        shares = node.target in MOVES or node.target is aten.cat.default or pads_with_zeros(node)
        if node not in produced or not shares:
            continue
        for source in node.all_input_nodes:
            if source in produced and group[source] is not group[node]:
                merged = group[node] + group[source]
                for member in merged:
                    group[member] = merged
    return group
