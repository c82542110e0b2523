"""The arithmetic of a Core ML file with integers: float16 between the integers, as the file says, to the bit.

Scales, constants and the result of every operator are float16; each operator computes in float32 and rounds once.
coremltools changes one thing: of a sum between two pairs it divides all three scales by that of the second operand,
so that this one needs no factor (its pass distributive_quantized_binary_op_scale_normalization).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from acmix.toolkit.int8_kernels import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE, quantize
from acmix.toolkit.quantize import graph_module

aten = torch.ops.aten
SMALLEST, LARGEST = float(np.nextafter(np.float16(0), np.float16(1))), float(np.finfo(np.float16).max)
"""A ratio of scales outside leaves a sum as it is."""
SIXTH = float(np.float32(1 / 6))
ONE_THREAD = threading.Lock()
"""Of sigmoid_hard, in float32: coremltools leaves the factors of activations so."""


def half(tensor: Tensor) -> Tensor:
    """The nearest values that float16 has, as float32."""
    return tensor.half().float()


def half_number(value: Any) -> float:
    """The nearest number that float16 has."""
    return float(np.float16(value))


class HalfProgram(nn.Module):
    """A program of pairs, computed as Core ML's definition computes its file."""

    def __init__(self, pairs: ExportedProgram) -> None:
        super().__init__()
        self.module = graph_module(pairs)
        _normalise_sums(self.module)

    def forward(self, *inputs: Tensor) -> Any:
        with _one_thread():
            return _Run(self.module).run(*inputs, enable_io_processing=False)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Files are evaluated on one thread (acmix.toolkit.session), and sums of floats depend on how they are split."""
    # Targets are exported side by side, and the number is the process's.
    with ONE_THREAD:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _normalise_sums(module: GraphModule) -> None:
    """What coremltools does to each sum between pairs, with or without a relu behind it."""
    for node in list(module.graph.nodes):
        if node.target is not aten.add.Tensor or node.kwargs or len(node.users) != 1:
            continue
        last = next(iter(node.users))
        if last.target is aten.relu.default and len(last.users) == 1:
            last = next(iter(last.users))
        operands = [one for one in node.args[:2] if isinstance(one, Node) and one.target is DEQUANTIZE]
        if last.target is not QUANTIZE or len(operands) != 2:
            continue
        first, second, made = (np.float32(one.args[1]) for one in (*operands, last))
        ratios = [float(scale / second) for scale in (first, made)]
        if not all(SMALLEST <= ratio <= LARGEST for ratio in ratios):
            continue
        with module.graph.inserting_before(node):
            node.args = tuple(
                module.graph.call_function(DEQUANTIZE, (one.args[0], scale, *one.args[2:]))
                for one, scale in zip(operands, (ratios[0], 1.0), strict=True)
            )
        last.update_arg(1, ratios[1])
    module.graph.eliminate_dead_code()


class _Run(fx.Interpreter):
    """One inference; scales, constants and results are rounded."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)

    def run_node(self, n: Node) -> Any:
        return pytree.tree_map_only(Tensor, lambda t: half(t) if t.is_floating_point() else t, super().run_node(n))

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        exact = target in KEEP_NUMBERS
        numbers = tuple(half_number(a) if isinstance(a, float) and not exact else a for a in args)
        return SPELLED.get(target, target)(*numbers, **kwargs)


def _dequantize(integers: Tensor, scale: float, zero_point: int, *limits: Any) -> Tensor:
    return (integers.float() - zero_point) * scale


def _dequantize_channels(integers: Tensor, scales: Tensor, zero_points: Tensor, axis: int, *limits: Any) -> Tensor:
    shape = [-1 if a == axis else 1 for a in range(integers.dim())]
    return (integers.float() - zero_points.reshape(shape)) * scales.reshape(shape)


def _hard_sigmoid(x: Tensor) -> Tensor:
    return torch.clamp(SIXTH * x + 0.5, 0, 1)


def _hard_swish(x: Tensor) -> Tensor:
    kept = torch.where(x >= -3, x, torch.zeros_like(x))
    return kept * half(_hard_sigmoid(kept))


def _divide(x: Tensor, by: Tensor | float) -> Tensor:
    return x / by if isinstance(by, Tensor) else x * half_number(1 / by)


SPELLED: Mapping[Any, Callable[..., Tensor]] = {
    QUANTIZE: quantize,
    DEQUANTIZE: _dequantize,
    DEQUANTIZE_CHANNELS: _dequantize_channels,
    aten.hardsigmoid.default: _hard_sigmoid,
    aten.hardswish.default: _hard_swish,
    aten.div.Tensor: _divide,
}
"""Operators that coremltools writes as others, or that torch computes otherwise."""
KEEP_NUMBERS = frozenset({aten.leaky_relu.default, aten.elu.default, aten.div.Tensor})
"""Operators whose factors coremltools leaves in float32."""
