"""Exit policies: the rules against other libraries, and every bad policy refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.policy import (
    RULES,
    Exit,
    Policy,
    Rule,
    check_policy,
    confidence,
    confidences,
    policy_of,
    read_policy,
    sensitivity,
    write_policy,
)

STAGES = ("small", "middle", "large")


def logits(*shape: int, scale: float = 3.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Normal float32 logits, the same every time."""
    return (np.random.default_rng(7).standard_normal(shape) * scale).astype(np.float32)


def test_the_rules_are_those_of_torch_and_scipy() -> None:
    values = logits(5, 4, 100)
    p = torch.softmax(torch.from_numpy(values).double(), -1)
    first, second = p.topk(2, -1).values.unbind(-1)
    np.testing.assert_allclose(confidences(values, "max_softmax"), first.numpy(), rtol=1e-12)
    np.testing.assert_allclose(confidences(values, "margin"), (first - second).numpy(), rtol=1e-10)
    np.testing.assert_allclose(confidences(values, "entropy"), 1 - entropy(p.numpy(), axis=-1, base=100), rtol=1e-10)


def test_confidences_near_one_keep_their_order() -> None:
    rows = np.zeros((3, 1000), np.float32)
    rows[:, 0] = (20, 24, 28)
    found = confidences(rows, "max_softmax")
    assert found[0] < found[1] < found[2] < 1


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("scale", [0.01, 3.0, 30.0, 500.0])
def test_the_runners_confidence_of_one_photo_decides_as_scipys_softmax(classes: int, scale: float) -> None:
    rng = np.random.default_rng(classes)
    rows = rng.standard_normal((500, classes)) * scale
    # Half of them as networks give them, half far from zero: the runner has two ways.
    rows[::2] += rng.uniform(-900, 900, (250, 1))
    rows = rows.astype(np.float32)
    expected = softmax(rows.astype(np.float64), axis=-1).max(-1)
    found = np.array([confidence(row, "max_softmax", "small") for row in rows])
    granted = 1e-5 * (1 - expected) + 1e-15
    assert (np.abs(found - expected) <= granted).all()
    # Thresholds as calibration sets them, between two photos: every photo ends where it ends by scipy.
    ranked, first = np.unique(expected, return_index=True)
    apart = np.flatnonzero(np.diff(ranked) > 4 * granted[first[:-1]])
    for threshold in (ranked[apart] + ranked[apart + 1]) / 2:
        assert ((found >= threshold) == (expected >= threshold)).all()


def test_the_runners_confidence_keeps_its_order_near_one_and_takes_classes_that_are_masked() -> None:
    row = np.full(1000, -np.inf, np.float32)
    row[0], found = 0, []
    for rest in (-20, -24, -28, -32):
        row[1] = rest
        found.append(1 - confidence(row, "max_softmax", "small"))
    np.testing.assert_allclose(found, np.exp([-20.0, -24, -28, -32]), rtol=0.02)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_logits_of_other_types_are_tested_in_float64(dtype: type) -> None:
    row = logits(100).astype(dtype)
    assert confidence(row, "max_softmax", "small") == confidences(row, "max_softmax")


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_no_change_of_logits_moves_a_confidence_by_more_than_the_stated_bound(rule: Rule, classes: int) -> None:
    rng = np.random.default_rng(0)
    before = rng.standard_normal((3000, classes)) * rng.uniform(0.1, 8, (3000, 1))
    # Pushing the largest logit is the worst direction for the first two rules.
    step = rng.standard_normal(before.shape) * 1e-3
    step[::2] = 0
    step[np.arange(0, 3000, 2), before[::2].argmax(1)] = 1e-3
    moved = np.abs(confidences(before + step, rule) - confidences(before, rule))
    bound = sensitivity(rule, classes) * np.linalg.norm(step, axis=1)
    assert (moved <= bound * (1 + 1e-9)).all()
    # A bound that nothing comes near would excuse everything.
    assert (moved / bound).max() > 0.1


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_confidence_that_is_no_number_is_refused_with_the_stage(rule: Rule, bad: float) -> None:
    broken = logits(10)
    broken[3] = bad
    with np.errstate(invalid="ignore"), pytest.raises(GateError, match=r"stage 'small' is nan.*NaN or infinity"):
        confidence(broken, rule, "small")


def test_a_written_policy_reads_back(tmp_path: Path) -> None:
    policy = policy_of("margin", STAGES, (0.25, 0.5), None)
    write_policy(tmp_path / "policy.json", policy)
    assert read_policy(tmp_path / "policy.json", STAGES) == policy
    assert policy.thresholds == (0.25, 0.5)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_policy_needs_a_threshold_for_all_stages_but_the_last(count: int) -> None:
    with pytest.raises(UsageError, match=f"{count} thresholds for 3 stages"):
        policy_of("max_softmax", STAGES, (0.5,) * count, None)


BAD: dict[str, tuple[Any, str]] = {
    "no threshold": ([["small", 0.5], ["middle", None], ["large", None]], "no threshold for stage 'middle'"),
    "stage missing": ([["small", 0.5], ["large", None]], "no exit for stage 'middle'"),
    "out of order": ([["middle", 0.5], ["small", 0.4], ["large", None]], "out of order: middle, small, large"),
    "last has one": ([["small", 0.5], ["middle", 0.4], ["large", 0.1]], "'large' the threshold 0.1.*always ends"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_bad_policy_file_is_refused_with_a_sentence(case: str, tmp_path: Path) -> None:
    exits, message = BAD[case]
    rows = [{"stage": stage, "threshold": threshold} for stage, threshold in exits]
    content = {"rule": "max_softmax", "exits": rows, "calibration": None, "schema_version": 1}
    (tmp_path / "policy.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read_policy(tmp_path / "policy.json", STAGES)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_threshold_that_is_no_number_is_refused(bad: float) -> None:
    policy = Policy("max_softmax", (Exit("small", bad), Exit("large", None)))
    with pytest.raises(UsageError, match="needs a finite number"):
        check_policy(policy, ("small", "large"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"{", "cannot be read"),
        (b'{"rule":"max_softmax","exits":[{"stage":"a","threshold":NaN}],"schema_version":1}', "cannot be read"),
        (b'{"rule":"luck","exits":[],"schema_version":1}', "cannot be read"),
        (b'{"rule":"margin","exits":[],"schema_version":9}', "schema version 9"),
        (b"[]", "cannot be read"),
    ],
)
def test_a_damaged_policy_file_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "policy.json").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_policy(tmp_path / "policy.json", STAGES)
