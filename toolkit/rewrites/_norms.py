"""What the norms share: (x - mean) / deviation, centred before it is squared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments
from acmix.toolkit.rewrites._graph import Emit, add_constant, constant_value

ATEN = torch.ops.aten


def emit_norm(
    emit: Emit,
    x: Node,
    mean: Callable[[Node], Node],
    epsilon: float,
    parameters: tuple[Node | None, Node | None],
    scale_first: bool,
) -> Node:
    """d weight / sqrt(mean(d d) + epsilon) + bias, d = x - mean(x): float16 would not survive mean(x x) - mean(x)^2.

    scale_first: weight and deviation lie along the same axes, so their quotient is as small as they are.
    """
    weight, bias = parameters
    centred = emit(ATEN.sub.Tensor, x, mean(x))
    scale = emit(ATEN.rsqrt.default, emit(ATEN.add.Tensor, mean(emit(ATEN.mul.Tensor, centred, centred)), epsilon))
    if weight is not None and scale_first:
        scale = emit(ATEN.mul.Tensor, scale, weight)
    result = emit(ATEN.mul.Tensor, centred, scale)
    if weight is not None and not scale_first:
        result = emit(ATEN.mul.Tensor, result, weight)
    return result if bias is None else emit(ATEN.add.Tensor, result, bias)


def shaped_parameters(
    program: ExportedProgram, emit: Emit, norm: Node, shape: Sequence[int]
) -> tuple[Node | None, Node | None]:
    """A norm's weight and bias in a shape that fits its result; None for one that it lacks."""
    given = arguments(norm)
    weight, bias = (
        None if given[name] is None else _reshaped(program, emit, given[name], shape) for name in ("weight", "bias")
    )
    return weight, bias


def _reshaped(program: ExportedProgram, emit: Emit, parameter: Node, shape: Sequence[int]) -> Node:
    value = constant_value(program, parameter)
    if value is None:
        return emit(ATEN.reshape.default, parameter, list(shape))
    return add_constant(program, f"{parameter.name}_shaped", value.reshape(*shape).contiguous())
