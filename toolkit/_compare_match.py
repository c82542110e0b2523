"""Which node of a captured program a value of a saved file is: found by its numbers on several samples."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from acmix.toolkit.target import Array

LARGEST_RANK = 4
SAME_DB = 3.0
"""Matches this close to the best one are equal; the node that is computed first is taken."""


@dataclass(frozen=True)
class Match:
    """A node, and the order of the value's axes (those of size 1 left out) that gives the node's own order."""

    node: str
    axes: tuple[int, ...] | None = None


def aligned(array: Array, match: Match) -> Array:
    """The value flattened in the order of its node."""
    return array.ravel() if match.axes is None else np.squeeze(array).transpose(match.axes).ravel()


def match_values(
    values: Mapping[str, Sequence[Array]], nodes: Mapping[str, Sequence[Array]], least_db: float
) -> dict[str, Match]:
    """The node of each value: the one with the best SNR over all samples, `least_db` or more.

    values, nodes: one array a sample. Values without a node (padding, layout the file needs) are left out.
    """
    by_size: dict[int, list[tuple[str, _Prints]]] = defaultdict(list)
    for name, arrays in nodes.items():
        by_size[arrays[0].size].append((name, _prints(arrays)))
    found = {}
    for name, arrays in values.items():
        own = _prints(arrays)
        near = [node for node, prints in by_size[arrays[0].size] if _may_match(own, prints, least_db)]
        scored = [(ratio, one) for node in near for ratio, one in _candidates(arrays, nodes[node], node)]
        best = max((ratio for ratio, _ in scored), default=-math.inf)
        if best >= least_db:
            found[name] = next(one for ratio, one in scored if ratio >= best - SAME_DB)
    return found


@dataclass(frozen=True)
class _Prints:
    """Sums that no order of the axes changes."""

    norm: float
    total: float
    absolute: float
    size: int


def _prints(arrays: Sequence[Array]) -> _Prints:
    flat = np.concatenate([array.ravel() for array in arrays]).astype(np.float64)
    return _Prints(float(np.linalg.norm(flat)), float(flat.sum()), float(np.abs(flat).sum()), flat.size)


def _may_match(one: _Prints, other: _Prints, least_db: float) -> bool:
    """Whether two values can be `least_db` close: their sums differ by no more than such a noise allows."""
    noise = other.norm * 10 ** (-least_db / 20)
    spread = noise * math.sqrt(other.size)
    near_sums = abs(one.total - other.total) <= spread and abs(one.absolute - other.absolute) <= spread
    return other.norm > 0 and abs(one.norm - other.norm) <= noise and near_sums


def _candidates(arrays: Sequence[Array], nodes: Sequence[Array], node: str) -> Iterator[tuple[float, Match]]:
    for axes in _orders(arrays[0].shape, nodes[0].shape):
        match = Match(node, axes)
        yield _snr_db([aligned(array, match) for array in arrays], nodes), match


def _orders(shape: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, ...] | None]:
    """As it lies, then every order of the axes that gives the wanted shape."""
    yield None
    sizes, goal = ([n for n in one if n != 1] for one in (shape, wanted))
    if len(sizes) == len(goal) <= LARGEST_RANK:
        for axes in permutations(range(len(sizes))):
            if list(axes) != sorted(axes) and [sizes[axis] for axis in axes] == goal:
                yield axes


def _snr_db(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    signal = noise = 0.0
    for one, other in zip(found, wanted, strict=True):
        reference = other.ravel().astype(np.float64)
        signal += float(np.square(reference).sum())
        noise += float(np.square(one.astype(np.float64) - reference).sum())
    if not math.isfinite(noise) or signal == 0:
        return -math.inf
    return 10 * math.log10(signal / noise) if noise else math.inf
