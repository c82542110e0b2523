"""Observers, against values worked out by hand, torchao's own, and searches by brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver

from acmix.calibration.histogram import Floats, Histogram
from acmix.calibration.observers import (
    entropy_range,
    found_range,
    mse_range,
    percentile_range,
    squared_error,
    start,
)
from acmix.toolkit.errors import UsageError
from acmix.toolkit.ranges import OBSERVERS, Observer, Range


def seen(samples: list[Tensor], observer: Observer) -> Range:
    observation = start((observer,))
    for sample in samples:
        observation.add(sample)
    return found_range(observation, observer)


def histogram_of(values: Floats) -> Histogram:
    histogram = Histogram()
    histogram.add(torch.from_numpy(values))
    return histogram


def naive_error(values: Floats, low: float, high: float) -> float:
    """Written apart: one value at a time, with python's own rounding."""
    scale = (high - low) / 255
    zero_point = round(-low / scale)
    total = 0.0
    for value in values.tolist():
        integer = min(max(round(value / scale) + zero_point, 0), 255)
        total += ((integer - zero_point) * scale - value) ** 2
    return total


def error_of(values: Floats, found: Range) -> float:
    return float(squared_error(values, np.ones_like(values), np.array([found.low]), np.array([found.high]))[0])


def least_error(values: Floats) -> float:
    """The least squared error over a fine grid of both ends."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    fractions = np.concatenate([np.linspace(0.004, 0.2, 60), np.linspace(0.21, 1.0, 80)])
    pairs = [(a, b) for a in (low * fractions if low else [0.0]) for b in (high * fractions if high else [0.0])]
    lows, highs = (np.array(side) for side in zip(*pairs, strict=True))
    ones = np.ones_like(values)
    return min(
        float(squared_error(values, ones, lows[i : i + 500], highs[i : i + 500]).min())
        for i in range(0, len(lows), 500)
    )


SAMPLES = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0]), torch.tensor([0.5, 10.0])]


def test_minmax_is_the_least_and_the_largest_of_all_samples() -> None:
    assert seen(SAMPLES, "minmax") == Range(-1.0, 10.0)


def test_moving_average_gives_a_new_sample_a_weight_of_one_hundredth() -> None:
    # low: 1, then 1 + 0.01 * (-1 - 1) = 0.98, then 0.98 + 0.01 * (0.5 - 0.98) = 0.9752; 0 is put in at the end.
    # high: 2, then 2.01, then 2.01 + 0.01 * 7.99 = 2.0899.
    found = seen(SAMPLES, "moving_average")
    assert found.low == 0.0
    assert found.high == pytest.approx(2.0899)


@pytest.mark.parametrize("kind", ["minmax", "moving_average"])
def test_the_running_observers_are_torchaos(kind: Observer) -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = MinMaxObserver() if kind == "minmax" else MovingAverageMinMaxObserver()
    samples = [torch.randn(50, generator=generator) * (i + 1) for i in range(6)]
    for sample in samples:
        theirs(sample)
    found = seen(samples, kind)
    assert found.low == pytest.approx(float(theirs.min_val), rel=1e-5)
    assert found.high == pytest.approx(float(theirs.max_val), rel=1e-5)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_tensor_of_zeros_has_a_range_of_zeros(observer: Observer) -> None:
    assert seen([torch.zeros(4), torch.zeros(4)], observer) == Range(0.0, 0.0)
    assert seen([torch.zeros(0)], observer) == Range(0.0, 0.0)


@settings(max_examples=40, deadline=None)
@given(
    observer=st.sampled_from(OBSERVERS),
    values=st.lists(st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=9), min_size=1, max_size=4),
)
def test_every_range_holds_zero_and_nothing_beyond_the_values(observer: Observer, values: list[list[float]]) -> None:
    found = seen([torch.tensor(part, dtype=torch.float32) for part in values], observer)
    every = [value for part in values for value in part]
    assert min(*every, 0.0) <= found.low <= 0.0 <= found.high <= max(*every, 0.0)


def test_a_percentile_cuts_the_same_share_as_numpy() -> None:
    values = np.random.default_rng(0).standard_normal(100_000)
    found = percentile_range(histogram_of(values), 99.9)
    assert found.low == pytest.approx(np.percentile(values, 0.1), abs=0.02)
    assert found.high == pytest.approx(np.percentile(values, 99.9), abs=0.02)


@pytest.mark.parametrize("percentile", [50.0, 0.01, 100.1])
def test_a_percentile_that_leaves_no_range_is_refused(percentile: float) -> None:
    with pytest.raises(UsageError, match="percentile"):
        percentile_range(histogram_of(np.array([1.0])), percentile)


def test_the_squared_error_is_that_of_rounding_value_by_value() -> None:
    values = np.random.default_rng(1).standard_normal(300) * 3
    for low, high in ((-4.0, 9.0), (-1.0, 1.0), (0.0, 2.5), (-3.3, 0.0)):
        assert error_of(values, Range(low, high)) == pytest.approx(naive_error(values, low, high), rel=1e-9)


def distributions() -> dict[str, Floats]:
    rng = np.random.default_rng(2)
    gauss = rng.standard_normal(2000)
    return {
        "gauss": gauss,
        "after a relu": np.maximum(gauss, 0.0),
        "after a relu6": np.clip(gauss * 4, 0.0, 6.0),
        "long tails": rng.standard_t(2, 2000),
        "one outlier": np.concatenate([gauss, [60.0]]),
        "outliers on both sides": np.concatenate([gauss, [80.0, -75.0]]),
        "skewed": rng.lognormal(0.0, 1.0, 2000) - 0.5,
        "negative": -np.abs(gauss) * 2,
    }


@pytest.mark.parametrize("kind", distributions())
def test_mse_comes_within_two_percent_of_a_search_of_both_ends(kind: str) -> None:
    values = distributions()[kind]
    found = error_of(values, mse_range(histogram_of(values)))
    assert found <= 1.02 * least_error(values)


@pytest.mark.parametrize("kind", distributions())
def test_mse_is_no_worse_than_torchaos_histogram_observer(kind: str) -> None:
    values = distributions()[kind]
    theirs = HistogramObserver(dtype=torch.uint8, quant_min=0, quant_max=255)
    theirs(torch.from_numpy(values).float())
    low, high = (float(end) for end in theirs._non_linear_param_search())
    ours = error_of(values, mse_range(histogram_of(values)))
    assert ours <= 1.01 * error_of(values, Range(min(low, 0.0), max(high, 0.0)))


def naive_divergence(counts: list[float], inside: int, levels: int) -> float:
    """Of one-sided bins, loop by loop, as TensorRT's slides say it."""
    kept = counts[:inside]
    reference = [*kept[:-1], kept[-1] + sum(counts[inside:])]
    candidate = [0.0] * inside
    shares: dict[int, list[int]] = {}
    for i in range(inside):
        shares.setdefault(int(i / inside * levels), []).append(i)
    for share in shares.values():
        held = [i for i in share if kept[i] > 0]
        for i in held:
            candidate[i] = sum(kept[j] for j in share) / len(held)
    p = [value / sum(reference) for value in reference]
    q = [value / sum(candidate) for value in candidate]
    return sum(a * float(np.log(a / max(b, 1e-12))) for a, b in zip(p, q, strict=True) if a > 0)


def test_entropy_finds_the_threshold_of_a_loop_over_the_same_candidates() -> None:
    values = np.abs(np.random.default_rng(3).standard_normal(1500))
    values[:3] = [9.0, 10.0, 12.0]
    histogram = histogram_of(values)
    found = entropy_range(histogram)
    counts = histogram.counts[-histogram.first :].tolist()
    furthest = max(i for i, count in enumerate(counts) if count) + 1
    step = max(1, (furthest - 256) // 128)
    thresholds = list(range(furthest, 255, -step))
    losses = [naive_divergence(counts[:furthest], threshold, 256) for threshold in thresholds]
    best = thresholds[int(np.argmin(losses))] * 2.0**histogram.exponent
    assert found == Range(0.0, min(best, 12.0))
    assert found.high < 12.0


def test_entropy_keeps_a_uniform_tensor_whole() -> None:
    found = entropy_range(histogram_of(np.linspace(-3.0, 1.0, 40_000)))
    assert found.low == pytest.approx(-3.0, rel=0.02)
    assert found.high == pytest.approx(1.0, rel=0.02)
