"""Cross-layer equalization: channels of unlike size made alike, by scales that cancel between layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.calibration.collect import Watched, each_sample
from acmix.calibration.layers import ATEN, Layer, layers, read, write
from acmix.toolkit.program import copy_program
from acmix.toolkit.rewrites._calls import arguments
from acmix.toolkit.samples import Samples
from acmix.toolkit.target import Array

ROUNDS = 40
SETTLED = 1e-3
LARGEST = 2.0**12
"""A scale is at most this, and at least its inverse: channels that hardly exist stay as they are."""

ELEMENTWISE = {
    getattr(ATEN, name).default
    for name in ("relu", "relu_", "leaky_relu", "leaky_relu_", "dropout", "dropout_", "clone", "contiguous", "alias")
}
SUMS = {ATEN.add.Tensor, ATEN.add_.Tensor, ATEN.sub.Tensor, ATEN.sub_.Tensor}
POOLS = {ATEN.max_pool2d.default, ATEN.avg_pool2d.default, ATEN.adaptive_avg_pool2d.default}
PADS = {ATEN.pad.default, ATEN.constant_pad_nd.default}
RESHAPES = {ATEN.reshape.default, ATEN.view.default, ATEN.flatten.using_ints}


@dataclass(frozen=True)
class Equalized:
    """One set of channels that was scaled: the nodes of the layers that write it and of those that read it.

    largest: the largest factor by which a channel became smaller or larger.
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    largest: float


@dataclass
class _Group:
    """Tensors that share their channels' scales: joined by what commutes with a positive factor a channel."""

    tensors: list[Node] = field(default_factory=list)
    producers: list[Layer] = field(default_factory=list)
    consumers: list[Layer] = field(default_factory=list)


def equalize(
    program: ExportedProgram, peaks: Mapping[str, Array] | None = None
) -> tuple[ExportedProgram, tuple[Equalized, ...]]:
    """A copy of the program in which the channels between layers are alike in size; its outputs stay the same.

    Channel c of what one layer writes is divided by s[c], and the next layer's weights for it are multiplied:
    s = sqrt(r1 / r2), where r1 is the largest weight that makes the channel and r2 the largest that reads it
    (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1),
    round after round until nothing changes. peaks: with the largest activations of `channel_peaks`, those stand
    for r1: what integers per tensor need, where weights have a scale for each channel.

    Between the layers: nothing, ReLU, leaky ReLU, pooling, zero padding, dropout, and sums, whose terms all get
    the same scales (a residual stream is one set of channels). Everything else that touches a channel, ReLU6,
    hard swish and outputs among them, leaves it as it is: they do not commute with a factor.
    """
    made = copy_program(program)
    groups = _groups(made)
    weights = {name: read(made, name) for group in groups for layer in _all(group) for name in _names(layer)}
    totals = [torch.ones(_channels(group, weights), dtype=torch.float64) for group in groups]
    firsts = [_activation_peaks(group, peaks) if peaks is not None else None for group in groups]
    for _ in range(ROUNDS):
        largest = 0.0
        for group, total, first in zip(groups, totals, firsts, strict=True):
            written = _written(group, weights) if first is None else first / total
            scales = _scales(written, _read(group, weights), total)
            _apply(group, weights, scales)
            total *= scales
            largest = max(largest, float(scales.log().abs().max()))
        if largest < SETTLED:
            break
    for name, value in weights.items():
        write(made, name, value)
    return made, tuple(_record(group, total) for group, total in zip(groups, totals, strict=True))


def channel_peaks(program: ExportedProgram, samples: Samples) -> dict[str, Array]:
    """The largest absolute value of each channel over the samples, of every tensor that `equalize` can scale."""
    known = _axes(program)
    axes = {t.name: axis for group in _groups(program) for t in group.tensors if (axis := known[t]) is not None}
    found: dict[str, Tensor] = {}

    def watch(node: str, value: Tensor) -> None:
        if node in axes:
            channels = value.abs().movedim(axes[node], 0).flatten(1).amax(1)
            found[node] = torch.maximum(found[node], channels) if node in found else channels

    run = Watched(program)
    for _, sample in each_sample(program, samples):
        run.outputs(sample, watch)
    return {node: np.asarray(value.double().numpy()) for node, value in found.items()}


def _record(group: _Group, total: Tensor) -> Equalized:
    producers, consumers = (tuple(layer.node.name for layer in s) for s in (group.producers, group.consumers))
    return Equalized(producers, consumers, float(torch.maximum(total, 1 / total).max()))


def _all(group: _Group) -> list[Layer]:
    return [*group.producers, *group.consumers]


def _names(layer: Layer) -> list[str]:
    return [name for name in (layer.weight, layer.bias) if name]


def _channels(group: _Group, weights: Mapping[str, Tensor]) -> int:
    return weights[group.producers[0].weight].shape[0]


def _written(group: _Group, weights: Mapping[str, Tensor]) -> Tensor:
    """The largest weight of each output channel, over the layers that write it."""
    return torch.stack([weights[layer.weight].abs().flatten(1).amax(1) for layer in group.producers]).amax(0)


def _read(group: _Group, weights: Mapping[str, Tensor]) -> Tensor:
    """The largest weight for each input channel, over the layers that read it."""
    sides = [_by_input(layer, weights[layer.weight]).abs().flatten(3).amax((1, 3)) for layer in group.consumers]
    return torch.stack([side.flatten() for side in sides]).amax(0)


def _by_input(layer: Layer, weight: Tensor) -> Tensor:
    """The weight as [groups, outputs of a group, inputs of a group, taps]."""
    return weight.reshape(layer.groups, weight.shape[0] // layer.groups, weight.shape[1], -1)


def _activation_peaks(group: _Group, peaks: Mapping[str, Array]) -> Tensor:
    return torch.stack([torch.from_numpy(peaks[tensor.name]) for tensor in group.tensors]).amax(0)


def _scales(written: Tensor, read_by: Tensor, total: Tensor) -> Tensor:
    """What to divide each channel by now; 1 for a channel that nobody writes or nobody reads."""
    alive = (written > 0) & (read_by > 0)
    logs = torch.where(alive, 0.5 * (written / read_by).log(), 0.0)
    # A factor that all channels share changes no integer.
    logs = torch.where(alive, logs - logs[alive].mean(), 0.0) if bool(alive.any()) else logs
    return (logs.exp() * total).clamp(1 / LARGEST, LARGEST) / total


def _apply(group: _Group, weights: dict[str, Tensor], scales: Tensor) -> None:
    for layer in group.producers:
        weight = weights[layer.weight]
        weights[layer.weight] = weight / scales.reshape(-1, *[1] * (weight.dim() - 1))
        if layer.bias:
            weights[layer.bias] = weights[layer.bias] / scales
    for layer in group.consumers:
        weight = weights[layer.weight]
        scaled = _by_input(layer, weight) * scales.reshape(layer.groups, 1, -1, 1)
        weights[layer.weight] = scaled.reshape(weight.shape)


def _axes(program: ExportedProgram) -> dict[Node, int | None]:
    """The axis of the channels in each tensor that a layer wrote, None where they are lost."""
    known = {layer.node: layer for layer in layers(program)}
    axes: dict[Node, int | None] = {}
    for node in program.graph.nodes:
        if node in known:
            axes[node] = _own_axis(known[node], node)
        elif node.op == "call_function":
            axes[node] = _axis_after(node, [axes.get(source) for source in node.all_input_nodes])
    return axes


def _rank(node: Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else 0


def _own_axis(layer: Layer, tensor: Node) -> int | None:
    """The channels' axis of a layer's input or output; None for a convolution without a batch axis."""
    if layer.is_linear:
        return _rank(tensor) - 1
    weight = arguments(layer.node)["weight"]
    return 1 if _rank(tensor) == _rank(weight) else None


def _axis_after(node: Node, axes: Sequence[int | None]) -> int | None:
    """The axis of the channels after a call that commutes with their scales; None when it does not."""
    axis = axes[0] if axes else None
    if axis is None or any(other != axis for other in axes) or not isinstance(node.target, OpOverload):
        return None
    given, source = arguments(node), node.all_input_nodes[0]
    if node.target in ELEMENTWISE:
        return axis
    if node.target in SUMS:
        shapes = {tuple(term.meta["val"].shape) for term in node.all_input_nodes}
        both = isinstance(given["self"], Node) and isinstance(given["other"], Node)
        return axis if both and len(shapes) == 1 else None
    if node.target in POOLS:
        return axis if axis == 1 and _rank(source) == 4 else None
    if node.target in PADS:
        plain = given.get("mode", "constant") == "constant" and not given["value"]
        return axis if plain and _rank(source) - axis > len(given["pad"]) // 2 else None
    if node.target is ATEN.mean.dim and given["dim"] is not None:
        gone = {int(dim) % _rank(source) for dim in given["dim"]}
        return None if axis in gone else axis if given["keepdim"] else axis - sum(dim < axis for dim in gone)
    if node.target in RESHAPES:
        before, after = (tuple(n.meta["val"].shape) for n in (source, node))
        flattened = axis == 1 and len(after) == 2 and after == before[:2]
        return axis if after == before or flattened else None
    return None


def _groups(program: ExportedProgram) -> list[_Group]:
    """Every set of channels that only layers write and read, in the order of the first that writes it."""
    known = {layer.node: layer for layer in layers(program)}
    axes = _axes(program)
    roots: dict[Node, Node] = {}

    def root(node: Node) -> Node:
        while roots.setdefault(node, node) is not node:
            node = roots[node]
        return node

    fixed: set[Node] = set()
    for node in program.graph.nodes:
        if node in known:
            layer = known[node]
            scalable = axes[node] is not None and (bool(layer.bias) or not layer.has_bias)
            fixed |= set() if scalable else {node}
            follows = axes.get(layer.source) == _own_axis(layer, layer.source) is not None
            fixed |= set() if follows else {layer.source}
            # What stands for its bias may be computed.
            fixed |= set(node.all_input_nodes) - {layer.source}
        elif axes.get(node) is not None:
            for source in node.all_input_nodes:
                roots[root(source)] = root(node)
        else:
            fixed |= {node, *node.all_input_nodes}
    unscaled = {root(node) for node in fixed}
    groups: dict[Node, _Group] = {}
    for node in program.graph.nodes:
        if axes.get(node) is not None and root(node) not in unscaled:
            group = groups.setdefault(root(node), _Group())
            group.tensors.append(node)
            group.producers.extend([known[node]] if node in known else [])
            group.consumers.extend(known[user] for user in node.users if user in known)
    return [group for group in groups.values() if group.producers and group.consumers]
