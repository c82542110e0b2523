"""Group and instance norm by means that stay in the delegate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments, is_floating
from acmix.toolkit.rewrites._graph import Emit, add_constant, calls, emit_before, remove_unused, replace, shape_of
from acmix.toolkit.rewrites._norms import emit_norm, shaped_parameters

ATEN = torch.ops.aten


@dataclass(frozen=True)
class GroupNorm:
    """Replace a group norm, or an instance norm by its input's own statistics, by its formula.

    1. x is [N, C, ...] of fixed shape and rank 2 to 5, in G groups of k = C / G channels.
    2. mean(t) averages each channel over space, then the k channels of each group: a convolution to G channels by
       weights 1 / k, and one back to C channels by ones (none for k = 1; no way back for G = 1).
       d = x - mean(x), y = d gamma / sqrt(mean(d d) + eps) + beta: centred first, so float16 keeps its digits.

        group_norm(x, G, gamma, beta, eps)   becomes   mean, conv2d, conv2d, sub, mul, rsqrt, mul, add

    XNNPACK in ExecuTorch 1.5.1 has no such norm; litert-torch transposes to put the groups together. 64 channels
    of 56 x 56 with a convolution before and after: 0.75 to 0.33 ms on ExecuTorch, 0.44 to 0.31 ms on TFLite.
    """

    name: str = "group_norm"
    claim: str = "exact"
    targets: tuple[str, ...] = ("executorch", "tflite")

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        times = sum(_replace(program, node) for node in calls(program, ATEN.group_norm.default))
        times += sum(_replace(program, node) for node in calls(program, ATEN.instance_norm.default))
        if times:
            remove_unused(program)
        return times


def _replace(program: ExportedProgram, norm: Node) -> bool:
    given = arguments(norm)
    x = given["input"]
    shape = shape_of(x)
    if shape is None or not 2 <= len(shape) <= 5 or not is_floating(x) or not given.get("use_input_stats", True):
        return False
    if given.get("running_mean") is not None:
        return False
    emit = emit_before(program, norm)
    flat = _as_map(emit, x, shape)
    mean = _Mean(program, emit, shape[1], int(given.get("num_groups", shape[1])))
    parameters = shaped_parameters(program, emit, norm, (1, -1, 1, 1))
    result = emit_norm(emit, flat, mean.of, given["eps"], parameters, scale_first=True)
    replace(program, norm, result if len(shape) == 4 else emit(ATEN.reshape.default, result, list(shape)))
    return True


def _as_map(emit: Emit, x: Node, shape: tuple[int, ...]) -> Node:
    """x seen as [N, C, h, w]."""
    if len(shape) == 4:
        return x
    space = shape[2:] if len(shape) > 2 else (1,)
    rows, columns = (space[0], math.prod(space[1:])) if len(space) > 1 else (1, space[0])
    return emit(ATEN.reshape.default, x, [*shape[:2], rows, columns])


class _Mean:
    """The mean of each group: [N, C, h, w] to [N, C, 1, 1], or to [N, 1, 1, 1] for one group."""

    def __init__(self, program: ExportedProgram, emit: Emit, channels: int, groups: int) -> None:
        self.program, self.emit, self.groups, self.each = program, emit, groups, channels // groups
        self.weights: tuple[Node, Node] | None = None

    def of(self, x: Node) -> Node:
        mean = self.emit(ATEN.mean.dim, x, [2, 3], True)
        if self.each == 1:
            return mean
        together, back = self.weights or self._make_weights(x.meta["val"].dtype)
        nothing = (None, [1, 1], [0, 0], [1, 1], self.groups)
        mean = self.emit(ATEN.conv2d.default, mean, together, *nothing)
        return mean if self.groups == 1 else self.emit(ATEN.conv2d.default, mean, back, *nothing)

    def _make_weights(self, dtype: torch.dtype) -> tuple[Node, Node]:
        share = torch.full((self.groups, self.each, 1, 1), 1 / self.each, dtype=dtype)
        ones = torch.ones(self.groups * self.each, 1, 1, 1, dtype=dtype)
        together = add_constant(self.program, "group_share", share)
        self.weights = (together, together if self.groups == 1 else add_constant(self.program, "group_ones", ones))
        return self.weights


REWRITE = GroupNorm()
