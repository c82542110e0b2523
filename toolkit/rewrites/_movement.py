"""Operators that only move elements, and what a chain of them does: one permutation of the axes' factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Any

import torch
from torch.fx import Node

from acmix.toolkit.rewrites._graph import shape_of

ATEN = torch.ops.aten
RESHAPES = {
    ATEN.view.default,
    ATEN.reshape.default,
    ATEN._unsafe_view.default,
    ATEN.flatten.using_ints,
    ATEN.unflatten.int,
    ATEN.unsqueeze.default,
    ATEN.squeeze.default,
    ATEN.squeeze.dim,
    ATEN.squeeze.dims,
}
COPIES = {ATEN.contiguous.default, ATEN.clone.default, ATEN.alias.default}
PERMUTES = {ATEN.permute.default, ATEN.transpose.int, ATEN.movedim.intlist, ATEN.movedim.int}
MOST_GROUPS = 8
MOVES = RESHAPES | COPIES | PERMUTES | {ATEN.unfold.default}


@dataclass(frozen=True)
class Factor:
    """A factor of an axis: its size, and its place among the factors of the source, outermost first."""

    place: tuple[int, ...]
    size: int


Axes = tuple[tuple[Factor, ...], ...]
"""For each axis of a tensor, the factors of the source that it holds, outermost first."""


def axes_of(shape: Sequence[int]) -> Axes:
    """The axes of a tensor that nothing has moved yet."""
    return tuple((Factor((i,), size),) if size != 1 else () for i, size in enumerate(shape))


def moved(axes: Axes, node: Node) -> Axes | None:
    """The axes after one more operator of MOVES; None when it cuts across factors, or overlaps."""
    before, after = tuple(math.prod(f.size for f in axis) for axis in axes), shape_of(node)
    if after is None or 0 in before:
        return None
    if node.target in RESHAPES:
        return _cut(axes, after)
    if node.target in PERMUTES:
        order = _order(node, len(axes))
        return tuple(axes[i] for i in order)
    if node.target is ATEN.unfold.default:
        axis, size, step = (int(str(a)) for a in node.args[1:4])
        axis %= len(axes)
        if size != step or before[axis] % size:
            return None
        parts = _cut((axes[axis],), (before[axis] // size, size))
        return None if parts is None else (*axes[:axis], parts[0], *axes[axis + 1 :], parts[1])
    return axes


def _order(node: Node, rank: int) -> list[int]:
    """The permutation that the operator makes, found by trying it."""
    # The axis of size i stands where axis i goes.
    probe = torch.empty(tuple(range(rank)), device="meta")
    turned: Any = node.target(probe, *node.args[1:])  # type: ignore[operator]
    return [int(size) for size in turned.shape]


def _cut(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """All factors in order, dealt out to new axes; a factor that is too large is split."""
    rest = [factor for axis in axes for factor in axis][::-1]
    result = []
    for size in shape:
        axis: list[Factor] = []
        while size > 1:
            factor = rest.pop()
            if size % factor.size and factor.size % size:
                return None
            if factor.size > size:
                rest.append(Factor((*factor.place, 1), factor.size // size))
                factor = Factor((*factor.place, 0), size)
            axis.append(factor)
            size //= factor.size
        result.append(tuple(axis))
    return tuple(result)


@dataclass(frozen=True)
class Step:
    """One reshape and one permutation of at most `most` axes."""

    shape: tuple[int, ...]
    order: tuple[int, ...]


def steps(axes: Axes, most: int) -> list[Step] | None:
    """How to get from the source to these axes by reshapes and permutations of rank `most` (4 or more) or less.

    The last permutation leaves the elements in their final order: one reshape to the wanted shape follows.
    None for so many groups of factors that the search would take minutes.
    """
    wanted = [factor for axis in axes for factor in axis]
    order = tuple(sorted(range(len(wanted)), key=lambda i: wanted[i].place))
    places = {factor: i for i, factor in enumerate(order)}
    sizes = tuple(wanted[i].size for i in order)
    groups, permutation = _merged(tuple(places[i] for i in range(len(wanted))), sizes)
    if len(groups) <= most:
        return [Step(groups, permutation)] if len(groups) > 1 else []
    if len(groups) > MOST_GROUPS:
        return None
    done: list[Step] = []
    state = tuple(range(len(groups)))
    for first, middle, last in _swaps(permutation):
        ends = (0, first, middle, last, len(state))
        blocks = [state[a:b] for a, b in pairwise(ends)]
        done.append(Step(tuple(math.prod(groups[i] for i in block) for block in blocks), (0, 2, 1, 3)))
        state = (*blocks[0], *blocks[2], *blocks[1], *blocks[3])
    return done


def _merged(permutation: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Factors that follow each other before and after are one: their sizes, in source order, and the permutation."""
    runs: list[list[int]] = []
    for i in permutation:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    ranked = sorted(runs)
    return tuple(math.prod(sizes[i] for i in run) for run in ranked), tuple(ranked.index(run) for run in runs)


@lru_cache(maxsize=256)
def _swaps(wanted: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """The fewest swaps of neighbouring blocks [first, middle) and [middle, last) that sort range(n) as wanted."""
    start = tuple(range(len(wanted)))
    reached: dict[tuple[int, ...], tuple[tuple[int, int, int], ...]] = {start: ()}
    front = [start]
    while wanted not in reached:
        found = []
        for state in front:
            for first, middle, last in combinations(range(len(wanted) + 1), 3):
                after = state[:first] + state[middle:last] + state[first:middle] + state[last:]
                if after not in reached:
                    reached[after] = (*reached[state], (first, middle, last))
                    found.append(after)
        front = found
    return reached[wanted]
