"""The sum over an unfold's taps under weights of every pixel's own: found, and built from slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from acmix.toolkit.rewrites._graph import Emit, shape_of
from acmix.toolkit.rewrites._memory import is_written_between
from acmix.toolkit.rewrites._movement import RESHAPES

ATEN = torch.ops.aten
MOST_AXES = 4


@dataclass(frozen=True)
class WeightedSum:
    """total = sum(view * weights, axis): view shows an unfold, and `axis` of it holds its taps alone.

    weights: at the end of views that only add or split axes, `shape` is what the product sees.
    """

    total: Node
    view: tuple[int, ...]
    weights: Node
    shape: tuple[int, ...]
    axis: int


def find(unfold: Node, taps: int) -> WeightedSum | None:
    """The weighted sum that is all that becomes of this unfold, if it is one."""
    view = _only_reader(unfold)
    while view is not None and view.target in RESHAPES and (after := _only_reader(view)) and after.target in RESHAPES:
        view = after
    product = _only_reader(view) if view is not None else None
    total = _only_reader(product) if product is not None else None
    if view is None or product is None or total is None or view.target not in RESHAPES:
        return None
    if product.target is not ATEN.mul.Tensor or total.target is not ATEN.sum.dim_IntList or "dtype" in total.kwargs:
        return None
    operands = [argument for argument in product.args if argument is not view]
    shape, unfolded = shape_of(view), shape_of(unfold)
    if len(operands) != 1 or not isinstance(operands[0], Node) or shape is None or unfolded is None:
        return None
    axis = _tap_axis(shape, unfolded, taps)
    summed = total.args[1]
    if axis is None or not isinstance(summed, list) or [int(str(a)) % len(shape) for a in summed] != [axis]:
        return None
    weights = operands[0]
    seen = shape_of(weights)
    if seen is None or len(seen) > len(shape) or shape_of(product) != shape:
        return None
    if isinstance(unfold.args[0], Node) and is_written_between(unfold.args[0], unfold, total):
        return None
    full = (1,) * (len(shape) - len(seen)) + seen
    if full[axis] != taps:
        return None
    return WeightedSum(total, shape, _before_views(weights, total), full, axis)


def _before_views(weights: Node, total: Node) -> Node:
    """The weights before the reshapes that show them, as long as `total` can still read them there."""
    while weights.target in RESHAPES and isinstance(weights.args[0], Node) and shape_of(weights.args[0]):
        if is_written_between(weights.args[0], weights, total):
            break
        weights = weights.args[0]
    return weights


def _only_reader(node: Node) -> Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].op == "call_function" else None


def _tap_axis(view: Sequence[int], unfolded: Sequence[int], taps: int) -> int | None:
    """The axis of the view that is exactly the taps: places behind it, images and channels before."""
    for axis, size in enumerate(view):
        if size == taps and math.prod(view[axis + 1 :]) == unfolded[-1]:
            return axis
    return None


def emit_sum(emit: Emit, found: WeightedSum, maps: Sequence[Node]) -> Node:
    """maps: for each tap, the image there, [N * C, H, W].  The same total, in its own shape."""
    image = (*found.view[: found.axis], *found.view[found.axis + 1 :])
    weight = (*found.shape[: found.axis], *found.shape[found.axis + 1 :])
    image, weight = _fewest_axes(image, weight)
    outer = math.prod(found.shape[: found.axis])
    weights = emit(ATEN.reshape.default, found.weights, [outer, len(maps), -1])
    terms = [
        emit(
            ATEN.mul.Tensor,
            emit(ATEN.reshape.default, tap, list(image)),
            emit(ATEN.reshape.default, emit(ATEN.slice.Tensor, weights, 1, i, i + 1), list(weight)),
        )
        for i, tap in enumerate(maps)
    ]
    total = terms[0]
    for term in terms[1:]:
        total = emit(ATEN.add.Tensor, total, term)
    return emit(ATEN.reshape.default, total, list(shape_of(found.total) or ()))


def _fewest_axes(image: Sequence[int], weight: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both shapes as they are up to rank 4; above, with neighbouring axes joined that broadcast alike."""
    if len(image) <= MOST_AXES:
        return tuple(image), tuple(weight)
    joined: list[tuple[int, int]] = []
    for size, own in zip(image, weight, strict=True):
        if size == own == 1:
            continue
        if joined and (joined[-1][0] == joined[-1][1]) == (size == own):
            joined[-1] = (joined[-1][0] * size, joined[-1][1] * own)
        else:
            joined.append((size, own))
    return tuple(i for i, _ in joined), tuple(w for _, w in joined)
