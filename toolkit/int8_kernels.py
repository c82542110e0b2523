"""The arithmetic of int8 kernels: what XNNPACK and ONNX Runtime give between two tensors of integers, to the bit.

A layer's products are summed in int32, exactly. The sum times one float32 (input scale x weight scale / output scale)
is rounded to the nearest integer, halves to the even one. Float arithmetic on the values of the integers comes near
that, and near a rounding edge it falls on the other side: one such value in the first layers of a deep network leaves
10 to 25 dB of its output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from acmix.toolkit.grid import ACTIVATIONS, COMPUTE
from acmix.toolkit.quantize import constant, graph_module
from acmix.toolkit.target import Int8Kernels

aten = torch.ops.aten
QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
DEQUANTIZE_CHANNELS = torch.ops.quantized_decomposed.dequantize_per_channel.default
PAIRS = frozenset({aten.add.Tensor, aten.mul.Tensor})
"""Of two activations."""
MEANS = frozenset({aten.mean.dim, aten.adaptive_avg_pool2d.default})

EXACT_FLOAT32 = 2.0**24
"""Below it every sum of integers is exact in float32, in any order."""
LEAST_RATIO, GREATEST_RATIO = 2.0**-10, 2.0**8
"""Of an operand's scale to the sum's, in XNNPACK's sums."""
UNSIGNED = 128
"""ONNX files hold activations as uint8: integers and zero points are so much larger."""


def with_kernels(pairs: ExportedProgram | GraphModule, kernels: Int8Kernels) -> GraphModule:
    """The program of pairs, with integers computed by a runtime's kernels wherever it fuses a layer with its pairs.

    A GraphModule is changed in place.
    """
    module = pairs if isinstance(pairs, GraphModule) else graph_module(pairs)
    for node in list(module.graph.nodes):
        if node.target is not QUANTIZE or node.args[5] is not torch.int8:
            continue
        found = _fused(node, kernels)
        if found is None:
            node.target = quantize if kernels == "onnxruntime" else node.target
            continue
        sources, compute = _kernel(module, node, *found, kernels)
        module.add_module(f"kernel_{node.name}", _Kernel(compute))
        with module.graph.inserting_before(node):
            made = module.graph.call_module(f"kernel_{node.name}", tuple(sources))
        node.replace_all_uses_with(made)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


class _Kernel(nn.Module):
    """One kernel with its constants, as a graph calls it."""

    def __init__(self, compute: Callable[..., Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, *integers: Tensor) -> Tensor:
        return self.compute(*integers)


def _fused(quantize: Node, kernels: Int8Kernels) -> tuple[Node, Node | None] | None:
    """The operator that a runtime fuses with the pairs around it, and its activation; None where it does not."""
    core = quantize.args[0]
    activation: Node | None = None
    assert isinstance(core, Node)
    if core.target in ACTIVATIONS and len(core.users) == 1:
        activation = core
        core = activation.args[0]
    if not isinstance(core, Node) or len(core.users) != 1:
        return None
    if core.target in COMPUTE:
        reads = _is(core.args[0], DEQUANTIZE) and _is(core.args[1], DEQUANTIZE_CHANNELS)
    elif core.target in PAIRS:
        reads = all(_is(one, DEQUANTIZE) for one in core.args[:2]) and not core.kwargs
        reads = reads and _in_range(core, quantize, kernels)
    else:
        reads = core.target in MEANS and _is(core.args[0], DEQUANTIZE) and _is_global(core)
    return (core, activation) if reads else None


def _in_range(pair: Node, quantize: Node, kernels: Int8Kernels) -> bool:
    """Whether a runtime has a kernel for these two scales: only XNNPACK multiplies, and it adds what it can shift."""
    if pair.target is aten.mul.Tensor:
        return kernels == "xnnpack"
    scales: list[Any] = [one.args[1] for one in (quantize, *pair.args[:2]) if isinstance(one, Node)]
    ratios = [float(scale) / float(scales[0]) for scale in scales[1:]]
    return kernels != "xnnpack" or all(LEAST_RATIO <= ratio < GREATEST_RATIO for ratio in ratios)


def _is_global(mean: Node) -> bool:
    """Whether it averages the whole map: an adaptive pool may leave more than one value of it."""
    return mean.target is aten.mean.dim or list(mean.args[1]) == [1, 1]  # type: ignore[arg-type]


def _is(node: Any, operator: Any) -> bool:
    return isinstance(node, Node) and node.target is operator


def _kernel(
    module: GraphModule, quantize: Node, core: Node, activation: Node | None, kernels: Int8Kernels
) -> tuple[list[Any], Callable[..., Tensor]]:
    """The integers that an operator reads, and the function in place of it and its pairs."""
    scale, zero_point = np.float32(quantize.args[1]), int(quantize.args[2])  # type: ignore[arg-type]
    ends = (zero_point, *_ends(activation, scale, zero_point))
    operands = core.args[:2] if core.target in PAIRS else core.args[:1]
    reads = [one for one in operands if isinstance(one, Node)]
    sources = [one.args[0] for one in reads]
    scales = [np.float32(one.args[1]) for one in reads]  # type: ignore[arg-type]
    zeros = [int(one.args[2]) for one in reads]  # type: ignore[arg-type]
    known: dict[str, Any] = {"ends": ends}
    if core.target in COMPUTE:
        weight, bias, multipliers = _layer_constants(module, core, scales[0], scale)
        known |= {"zero_point": zeros[0], "weight": weight, "bias": bias, "multipliers": multipliers}
        return sources, partial(layer, operator=core.target, rest=tuple(core.args[3:]), **known)
    if core.target is aten.add.Tensor:
        function = add_fixed_point if kernels == "xnnpack" else add_float
        return sources, partial(function, zeros=zeros, ratios=[float(s / scale) for s in scales], **known)
    if core.target is aten.mul.Tensor:
        return sources, partial(multiply, zeros=zeros, ratio=float(scales[0] * scales[1] / scale), **known)
    axes, keep = _axes(core)
    return sources, partial(mean, zero_point=zeros[0], axes=axes, keep=keep, ratio=float(scales[0] / scale), **known)


def _ends(activation: Node | None, scale: np.float32, zero_point: int) -> tuple[int, int]:
    """The least and the greatest integer that an activation lets through."""
    bounds: Sequence[Any] = (None, None)
    if activation is not None:
        fixed: Mapping[Any, Sequence[Any]] = {aten.relu.default: (0.0, None), aten.relu6.default: (0.0, 6.0)}
        given = [*activation.args[1:], None, None]
        default = (-1.0, 1.0) if activation.target is aten.hardtanh.default else (None, None)
        bounds = fixed.get(activation.target, [d if g is None else g for g, d in zip(given, default, strict=False)])
    low, high = (None if b is None else int(np.rint(np.float32(b) / scale)) + zero_point for b in bounds)
    return max(-128, -128 if low is None else low), min(127, 127 if high is None else high)


def _layer_constants(
    module: GraphModule, core: Node, read: np.float32, made: np.float32
) -> tuple[Tensor, Tensor | None, Tensor]:
    """A layer's weight and bias as integers, and what its sums are multiplied with, a channel each."""
    weight, scales = (constant(module, one) for one in core.args[1].args[:2])  # type: ignore[union-attr, arg-type]
    bias = core.args[2] if len(core.args) > 2 else None
    units = None
    if isinstance(bias, Node):
        units = torch.round(constant(module, bias).double() / (scales.double() * float(read)))
    return weight.float(), units, torch.from_numpy(read * scales.numpy() / made)


def _axes(core: Node) -> tuple[tuple[int, ...], bool]:
    if core.target is aten.mean.dim:
        return tuple(core.args[1]), bool(core.args[2] if len(core.args) > 2 else False)  # type: ignore[arg-type]
    return (2, 3), True


def quantize(x: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    """Float to integers by division, as ONNX Runtime; XNNPACK and torch multiply with the inverse of the scale."""
    steps = torch.round(x / torch.tensor(scale, dtype=torch.float32)) + zero_point
    return steps.clamp(low, high).to(dtype)


def layer(
    integers: Tensor,
    operator: Callable[..., Tensor],
    zero_point: int,
    weight: Tensor,
    bias: Tensor | None,
    multipliers: Tensor,
    rest: tuple[Any, ...],
    ends: tuple[int, int, int],
) -> Tensor:
    """A convolution or linear layer on integers.  ends: zero point, least and greatest integer of the result."""
    shape = (1, -1, 1, 1) if operator is aten.conv2d.default else (-1,)
    total = exact_sums(operator, integers.float() - zero_point, weight, rest)
    if bias is not None:
        total = total + bias.reshape(shape)
    return _held(torch.round(total.float() * multipliers.reshape(shape)), ends)


def exact_sums(operator: Callable[..., Tensor], values: Tensor, weight: Tensor, rest: tuple[Any, ...] = ()) -> Tensor:
    """The sums of a layer without bias, exact, as float64; values and weight are whole numbers in float32.

    In float32 where no sum can pass 2^24, over some of the channels at a time where it can.
    """
    groups = rest[3] if len(rest) > 3 else 1
    largest = float(values.abs().max())
    parts = 1
    while True:
        chunks = torch.arange(weight.shape[1]).chunk(parts)
        if all(float(weight[:, c].abs().flatten(1).sum(1).max()) * largest < EXACT_FLOAT32 for c in chunks):
            break
        if groups != 1 or len(chunks) == weight.shape[1]:
            return operator(values.double(), weight.double(), None, *rest)
        parts *= 2
    if parts == 1:
        return operator(values, weight, None, *rest).double()
    axis = 1 if operator is aten.conv2d.default else -1
    return torch.stack(
        [operator(values.index_select(axis, c), weight[:, c], None, *rest).double() for c in chunks]
    ).sum(0)


def add_fixed_point(
    one: Tensor, other: Tensor, zeros: Sequence[int], ratios: Sequence[float], ends: tuple[int, int, int]
) -> Tensor:
    """A sum as XNNPACK makes it: ratios of scales as whole numbers of 21 bits, shifted back with rounding."""
    shift = 20 - (math.frexp(max(ratios))[1] - 1)
    factors = [round(math.ldexp(ratio, shift)) for ratio in ratios]
    terms = [(t.long() - z) * factor for t, z, factor in zip((one, other), zeros, factors, strict=True)]
    return _held((terms[0] + terms[1] + (1 << (shift - 1))) >> shift, ends)


def add_float(
    one: Tensor, other: Tensor, zeros: Sequence[int], ratios: Sequence[float], ends: tuple[int, int, int]
) -> Tensor:
    """A sum as ONNX Runtime makes it: fused multiply-adds in float32 on uint8, all zero points taken off at once."""
    # float64 holds each product and sum in full: rounded once, as a fused multiply-add rounds. Of the zero points
    # nothing in its source is fused: its compiler does that.
    second = np.float32(ratios[1]) * np.float32(zeros[1] + UNSIGNED)
    both = np.float32(float(np.float32(ratios[0])) * (zeros[0] + UNSIGNED) + float(second))
    total = (other.double() + UNSIGNED) * ratios[1] + float(np.float32(ends[0] + UNSIGNED) - both)
    total = ((one.double() + UNSIGNED) * ratios[0] + total.float().double()).float()
    return _held(torch.round(total) - UNSIGNED - ends[0], ends)


def multiply(one: Tensor, other: Tensor, zeros: Sequence[int], ratio: float, ends: tuple[int, int, int]) -> Tensor:
    """A product of two activations: exact, times one float32."""
    product = (one.float() - zeros[0]) * (other.float() - zeros[1])
    return _held(torch.round(product * ratio), ends)


def mean(
    integers: Tensor, zero_point: int, axes: tuple[int, ...], keep: bool, ratio: float, ends: tuple[int, int, int]
) -> Tensor:
    """An average: the exact sum times one float32."""
    count = math.prod(integers.shape[axis] for axis in axes)
    total = (integers.double() - zero_point).sum(axes, keepdim=keep)
    return _held(torch.round(total.float() * float(np.float32(ratio) / np.float32(count))), ends)


def _held(steps: Tensor, ends: tuple[int, int, int]) -> Tensor:
    zero_point, low, high = ends
    return (steps + zero_point).clamp(low, high).to(torch.int8)
