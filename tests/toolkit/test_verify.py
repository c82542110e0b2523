"""Agreement: metrics against hand-worked values, and verdicts that can fail."""

from __future__ import annotations

import numpy as np
import pytest

from acmix.toolkit.recipe import Tolerance
from acmix.toolkit.verify import SNR_LIMIT_DB, Compared, agree, cosine, prove, snr_db

STRICT = Tolerance(snr_db=60.0, max_abs=1e-6)


def compared(wanted: list[float], found: list[float], sample: str = "a") -> Compared:
    return Compared(sample, np.array([wanted], np.float32), np.array([found], np.float32))


def test_snr_is_ten_times_the_logarithm_of_signal_over_noise() -> None:
    assert snr_db(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(20.0)


def test_equal_outputs_have_the_largest_snr_and_nan_the_smallest() -> None:
    assert snr_db(np.array([1.0]), np.array([1.0])) == SNR_LIMIT_DB
    assert snr_db(np.array([1.0]), np.array([np.nan])) == -SNR_LIMIT_DB


def test_a_reference_of_zeros_has_no_signal_and_no_direction() -> None:
    assert snr_db(np.zeros(3), np.ones(3)) is None
    assert cosine(np.zeros(3), np.ones(3)) is None


def test_cosine_of_a_right_angle_is_zero() -> None:
    assert cosine(np.array([1.0, 0.0]), np.array([0.0, 2.0])) == pytest.approx(0.0)


def test_the_worst_sample_decides_and_is_named() -> None:
    rows = [compared([1, 2], [1, 2], "good"), compared([1, 2], [1, 2.1], "bad")]
    result = agree("logits", rows, STRICT, logits=True)
    assert not result.passed
    assert result.worst_sample == "bad"
    assert result.max_abs == pytest.approx(0.1, rel=1e-5)


def test_the_absolute_tolerance_counts_only_where_there_is_no_signal() -> None:
    assert agree("map", [compared([0, 0], [0, 5e-7])], STRICT, logits=False).passed
    assert not agree("map", [compared([0, 0], [0, 5e-6])], STRICT, logits=False).passed
    assert not agree("map", [compared([1e-6, 0], [1e-6, 5e-7])], STRICT, logits=False).passed


def test_top1_agreement_counts_samples_with_the_same_winner() -> None:
    rows = [compared([1, 2], [1, 2]), compared([1, 2], [3, 2])]
    assert agree("logits", rows, STRICT, logits=True).top1_agreement == 0.5
    assert agree("map", rows, STRICT, logits=False).top1_agreement is None


def test_nan_and_another_shape_fail() -> None:
    assert not agree("logits", [compared([1, 2], [1, float("nan")])], STRICT, logits=True).passed
    assert not agree("logits", [compared([1, 2], [1, 2, 3])], STRICT, logits=True).passed


def test_an_ill_conditioned_sample_is_asked_for_less_and_no_other_one() -> None:
    tolerance = Tolerance(snr_db=60.0, max_abs=1e-6, margin_db=10.0)
    poor = Compared("poor", np.array([3.0, 4.0]), np.array([3.0, 4.5]), attainable_db=25.0)
    result = agree("logits", [poor], tolerance, logits=True)
    assert result.passed
    assert result.asked_db == 15.0
    assert not agree("logits", [Compared("good", poor.wanted, poor.found, 90.0)], tolerance, logits=True).passed
    assert not agree("logits", [poor], Tolerance(snr_db=60.0, max_abs=1e-6), logits=True).passed


def test_no_samples_is_no_proof() -> None:
    assert not agree("logits", [], STRICT, logits=True).passed


def test_one_failing_output_fails_the_file() -> None:
    rows = [[compared([1, 2], [1, 2]), compared([1, 2], [2, 1])]]
    proof = prove(["a", "b"], rows, [STRICT, STRICT], logits=False, runtime="onnx", samples=())
    assert proof.verdict == "failed"
    assert [a.passed for a in proof.agreements] == [True, False]
