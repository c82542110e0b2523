"""Observers: from the values that a tensor takes on, sample by sample, to the one range that its integers express."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from acmix.calibration.histogram import Floats, Histogram
from acmix.toolkit.errors import UsageError
from acmix.toolkit.ranges import Observer, Range

MOMENTUM = 0.01
PERCENTILE = 99.99
SEARCHES: set[Observer] = {"percentile", "mse", "entropy"}
"""Those that need a histogram."""
LEVELS = 256
SHRINK = 0.98
CANDIDATES = 228
"""0.98 ** 228 is 0.01: outliers up to a hundred times the rest can be cut."""
BLOCK = 16
"""Candidate ranges at a time: with the bins of a histogram they fill half a cache of 1 MB, and nothing is allocated."""


@dataclass
class Observation:
    """What is kept of one tensor over the samples: as much as its observers need.

    extremes: the least and the largest value on each sample, in the samples' order; 0 of no value.
    histogram: None where no observer searches in it.
    """

    histogram: Histogram | None = None
    extremes: list[tuple[float, float]] = field(default_factory=list)

    def add(self, values: Tensor) -> None:
        """Take in the tensor's values on one sample, of any shape; they are finite."""
        if not values.numel():
            self.extremes.append((0.0, 0.0))
            return
        low, high = (float(end) for end in torch.aminmax(values))
        self.extremes.append((low, high))
        if self.histogram is not None:
            self.histogram.add(values)


def start(observers: Collection[Observer]) -> Observation:
    """Nothing observed yet, with room for what these observers need."""
    return Observation(Histogram() if SEARCHES & set(observers) else None)


def found_range(observation: Observation, observer: Observer, percentile: float = PERCENTILE) -> Range:
    """The range that an observer makes of what was seen; 0 to 0 of a tensor that had no value but 0."""
    histogram = observation.histogram
    if observer == "minmax":
        return widest_range(observation.extremes)
    if observer == "moving_average":
        return average_range(observation.extremes)
    assert histogram is not None
    if observer == "percentile":
        return percentile_range(histogram, percentile)
    return mse_range(histogram) if observer == "mse" else entropy_range(histogram)


def widest_range(extremes: Sequence[tuple[float, float]]) -> Range:
    """Of all samples, 0 included."""
    return Range(min([0.0, *(low for low, _ in extremes)]), max([0.0, *(high for _, high in extremes)]))


def average_range(extremes: Sequence[tuple[float, float]]) -> Range:
    """The ends averaged sample by sample, with a weight of 0.01 for the newest, as torch does."""
    low, high = extremes[0] if extremes else (0.0, 0.0)
    for newest_low, newest_high in extremes[1:]:
        low += MOMENTUM * (newest_low - low)
        high += MOMENTUM * (newest_high - high)
    return with_zero(low, high)


def with_zero(low: float, high: float) -> Range:
    """The least range that holds both and 0."""
    return Range(min(low, 0.0), max(high, 0.0))


def percentile_range(histogram: Histogram, percentile: float = PERCENTILE) -> Range:
    """Without the outermost values: (100 - percentile) % of all on either side.

    Raises UsageError when the percentile is not above 50, or above 100.
    """
    if not 50.0 < percentile <= 100.0:
        raise UsageError(f"the percentile is {percentile}; it is above 50 and at most 100.\nTake {PERCENTILE}.")
    return with_zero(histogram.quantile(1.0 - percentile / 100.0), histogram.quantile(percentile / 100.0))


def squared_error(values: Floats, counts: Floats, low: Floats, high: Floats, levels: int = LEVELS) -> Floats:
    """The summed squared error of rounding `values` to integers, for each candidate range low[i] to high[i].

    scale = (high - low) / (levels - 1), and the zero point is rounded: what every runtime computes.
    """
    scale = ((high - low) / (levels - 1))[:, None]
    zero_point = np.rint(-low[:, None] / scale)
    error, room = np.empty(len(low)), np.empty((BLOCK, len(values)))
    for first in range(0, len(low), BLOCK):
        part = slice(first, first + BLOCK)
        step, least = scale[part], -zero_point[part]
        off = room[: len(step)]
        np.rint(np.divide(values, step, out=off), out=off)
        np.minimum(np.maximum(off, least, out=off), least + (levels - 1), out=off)
        np.square(np.subtract(np.multiply(off, step, out=off), values, out=off), out=off)
        error[part] = off @ counts
    return error


def mse_range(histogram: Histogram, levels: int = LEVELS) -> Range:
    """The range with the least expected squared error, clipping and rounding together.

    Both ends shrink together first, then each alone in turn, until neither gets better: outliers on both sides
    pay only when both go.
    """
    whole = Range(histogram.low, histogram.high)
    values, counts = histogram.occupied()
    if whole.low == whole.high:
        return whole
    shrinks = SHRINK ** np.arange(CANDIDATES + 1.0)

    def best(lows: Floats, highs: Floats) -> tuple[float, float, float]:
        errors = squared_error(values, counts, lows, highs, levels)
        found = int(errors.argmin())
        return float(errors[found]), float(lows[found]), float(highs[found])

    error, low, high = best(whole.low * shrinks, whole.high * shrinks)
    while True:
        before = error
        for lows, highs in ((whole.low * shrinks, None), (None, whole.high * shrinks)):
            fixed_low, fixed_high = np.full_like(shrinks, low), np.full_like(shrinks, high)
            tried = best(fixed_low if lows is None else lows, fixed_high if highs is None else highs)
            if tried[0] < error:
                error, low, high = tried
        if error >= before:
            return Range(low, high)


def entropy_range(histogram: Histogram, levels: int = LEVELS) -> Range:
    """The range whose integers keep most of the distribution: least Kullback-Leibler divergence (TensorRT's method).

    Each candidate cuts at -threshold and threshold. Reference: the bins inside, with what is cut added to the
    outermost. Candidate: the bins inside, averaged over those that share an integer. Zeros are left out, since
    their spike after a ReLU would hide the rest.
    """
    whole = Range(histogram.low, histogram.high)
    counts = histogram.counts.double().numpy()
    occupied = np.flatnonzero(counts)
    if not len(occupied):
        return whole
    bins = histogram.first + np.arange(len(counts))
    # The threshold is counted in bins from 0: bin -1 is as far as bin 0.
    distance = np.where(bins >= 0, bins, -1 - bins)
    furthest = int(distance[occupied].max()) + 1
    # With as many integers as bins nothing is averaged: no threshold can be told from another.
    sides = 2 if whole.low < 0.0 < whole.high else 1
    least = min(levels // sides, furthest)
    step = max(1, (furthest - least) // 128)
    # The widest first, so that a tie keeps the most.
    thresholds = [furthest, *range(furthest - step, least - 1, -step)]
    losses = [_divergence(counts, distance < threshold, levels) for threshold in thresholds]
    threshold = thresholds[int(np.argmin(losses))] * 2.0**histogram.exponent
    return Range(max(whole.low, -threshold), min(whole.high, threshold))


def _divergence(counts: Floats, inside: np.ndarray[tuple[int], np.dtype[np.bool_]], levels: int) -> float:
    """Of the clipped distribution from the rounded one, both normalised."""
    places = np.flatnonzero(inside)
    kept = counts[places]
    reference = kept.copy()
    reference[0] += counts[: places[0]].sum()
    reference[-1] += counts[places[-1] + 1 :].sum()
    level = np.arange(len(kept)) * levels // len(kept)
    held = np.bincount(level, (kept > 0).astype(np.float64))
    average = np.bincount(level, kept) / np.maximum(held, 1.0)
    candidate = np.where(kept > 0, average[level], 0.0)
    if candidate.sum() == 0.0:
        return math.inf
    known = reference > 0
    p = reference[known] / reference.sum()
    # Outliers may be added to an outermost bin that was empty.
    q = np.maximum(candidate[known] / candidate.sum(), 1e-12)
    return float(np.sum(p * np.log(p / q)))
