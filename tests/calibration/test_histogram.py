"""The growing histogram, against numpy's on the same edges and against the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acmix.calibration.histogram import AT_ONCE, BINS, Histogram, fitting_exponent

PARTS = st.lists(
    st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=20), min_size=1, max_size=6
)


def filled(parts: list[list[float]]) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(torch.tensor(part, dtype=torch.float32))
    return histogram


def test_zeros_are_counted_apart() -> None:
    histogram = filled([[0.0, 0.0, 1.0], [0.0, -2.0]])
    means, counts = histogram.occupied()
    assert histogram.zeros == 3
    assert histogram.total == 5
    assert means.tolist() == [-2.0, 1.0]
    assert counts.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("cuts", [(100, 2000), (0, 5000), (100, 2 * AT_ONCE + 3000)], ids=str)
def test_the_counts_are_numpys_on_the_same_edges(cuts: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(3.0, 10.0, cuts[1] + 3000).astype(np.float32)
    values[::7] = 0.0
    histogram = Histogram()
    for part in np.split(values, cuts):
        histogram.add(torch.from_numpy(part))
    edges = (histogram.first + np.arange(BINS + 1)) * 2.0**histogram.exponent
    wanted, _ = np.histogram(values[values != 0], edges)
    np.testing.assert_array_equal(histogram.counts.numpy(), wanted)
    sums, _ = np.histogram(values, edges, weights=values.astype(np.float64))
    np.testing.assert_allclose(histogram.sums.numpy(), sums, rtol=1e-9, atol=1e-6)
    assert histogram.zeros == (values == 0).sum()


def test_at_least_half_of_the_bins_lie_in_the_range() -> None:
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (-3.7, 0.2), (0.0, 6.0), (-5.1, 0.0), (-1e-3, 1e4)):
        width = 2.0 ** fitting_exponent(low, high)
        assert BINS / 2 - 1 <= (high - low) / width <= BINS


@settings(max_examples=60, deadline=None)
@given(parts=PARTS)
def test_the_order_of_the_samples_changes_no_count(parts: list[list[float]]) -> None:
    forwards, backwards = filled(parts), filled(parts[::-1])
    assert (forwards.exponent, forwards.first, forwards.zeros) == (backwards.exponent, backwards.first, backwards.zeros)
    assert torch.equal(forwards.counts, backwards.counts)


@settings(max_examples=60, deadline=None)
@given(parts=PARTS)
def test_growing_loses_no_value(parts: list[list[float]]) -> None:
    histogram = filled(parts)
    values = np.array([value for part in parts for value in part])
    means, counts = histogram.occupied()
    assert histogram.total == len(values)
    assert (histogram.low, histogram.high) == (min(values.min(), 0.0), max(values.max(), 0.0))
    assert float(means @ counts) == pytest.approx(float(values.sum()), rel=1e-9, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(parts=PARTS, share=st.floats(0.0, 1.0))
def test_a_quantile_has_its_share_below_and_above_to_one_bin(parts: list[list[float]], share: float) -> None:
    histogram = filled(parts)
    values = np.array([value for part in parts for value in part])
    found, width = histogram.quantile(share), 2.0**histogram.exponent
    assert (values <= found + width).sum() >= share * len(values) - 1e-6
    assert (values < found - width).sum() <= share * len(values) + 1e-6


def test_a_constant_tensor_and_one_of_zeros_have_a_quantile() -> None:
    assert filled([[2.5, 2.5]]).quantile(0.5) == 2.5
    assert filled([[0.0, 0.0]]).quantile(0.5) == 0.0
    assert Histogram().quantile(0.5) == 0.0


def test_the_widest_and_the_narrowest_values_of_float32_fit() -> None:
    histogram = filled([[1e-30, -1e-38], [3e38, -3e38]])
    assert histogram.total == 4
    assert histogram.quantile(1.0) == pytest.approx(3e38)
