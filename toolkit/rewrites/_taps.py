"""Neighbourhoods of an image by slices of stride 1: what unfold is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.fx import Node

from acmix.toolkit.rewrites._graph import Emit

ATEN = torch.ops.aten
MOST_PARTS = 5
"""TFLite's XNNPACK delegate leaves a concatenation of more inputs out."""


@dataclass(frozen=True)
class Window:
    """How an unfold walks along one axis, and where it finds its places.

    size, dilation, padding, stride: as in nn.Unfold.  length: pixels before padding.
    """

    length: int
    size: int
    dilation: int
    padding: int
    stride: int

    @property
    def places(self) -> int:
        return (self.length + 2 * self.padding - self.dilation * (self.size - 1) - 1) // self.stride + 1

    @property
    def lies_side_by_side(self) -> bool:
        return self.stride == self.size and (self.dilation == 1 or self.size == 1)

    @property
    def after(self) -> int:
        """Zeros after the last pixel (negative: pixels to drop), so that a whole number of strides results."""
        strides = self.places + self.dilation * (self.size - 1) // self.stride
        return strides * self.stride - self.length - self.padding


def padded(emit: Emit, x: Node, rows: Window, columns: Window) -> Node:
    """x, [B, H, W], with the zeros that its windows reach and without the pixels that they do not."""
    for axis, window in ((1, rows), (2, columns)):
        if window.after < 0:
            x = emit(ATEN.slice.Tensor, x, axis, 0, window.length + window.after)
    widths = [columns.padding, max(columns.after, 0), rows.padding, max(rows.after, 0)]
    return emit(ATEN.constant_pad_nd.default, x, widths, 0.0) if any(widths) else x


def taps(emit: Emit, x: Node, window: Window, axis: int) -> list[Node]:
    """x at each tap of the window along the axis: `places` long.  x is padded already.

    A stride of s parts the axis into s phases first: every slice then has stride 1.
    """
    if window.stride == 1:
        starts = (i * window.dilation for i in range(window.size))
        return [_slice(emit, x, axis, start, window.places) for start in starts]
    *shape, length = (int(n) for n in x.meta["val"].shape[: axis + 1])
    behind = [int(n) for n in x.meta["val"].shape[axis + 1 :]]
    parted = emit(ATEN.reshape.default, x, [math.prod(shape), length // window.stride, window.stride, *behind])
    phases: dict[int, Node] = {}
    result = []
    for i in range(window.size):
        start, phase = divmod(i * window.dilation, window.stride)
        if phase not in phases:
            sliced = emit(ATEN.slice.Tensor, parted, 2, phase, phase + 1)
            phases[phase] = emit(ATEN.reshape.default, sliced, [*shape, length // window.stride, *behind])
        result.append(_slice(emit, phases[phase], axis, start, window.places))
    return result


def _slice(emit: Emit, x: Node, axis: int, start: int, length: int) -> Node:
    if start == 0 and length == x.meta["val"].shape[axis]:
        return x
    return emit(ATEN.slice.Tensor, x, axis, start, start + length)


def joined(emit: Emit, parts: Sequence[Node], axis: int) -> Node:
    """The parts one behind the other, by concatenations of five or fewer.

    Those of the second level have rank 2: TFLite's converter makes one concatenation of two of the same shape.
    """
    if len(parts) <= MOST_PARTS:
        return emit(ATEN.cat.default, list(parts), axis) if len(parts) > 1 else parts[0]
    shape = [int(n) for n in parts[0].meta["val"].shape]
    shape[axis] = sum(int(part.meta["val"].shape[axis]) for part in parts)
    groups = max(2, len(parts) // MOST_PARTS)
    ends = [i * len(parts) // groups for i in range(groups + 1)]
    halves = [joined(emit, parts[a:b], axis) for a, b in pairwise(ends)]
    flat = [emit(ATEN.reshape.default, half, [math.prod(shape[:axis]), -1]) for half in halves]
    return emit(ATEN.reshape.default, joined(emit, flat, 1), shape)
