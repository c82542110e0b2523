"""Exit calibration against loops that are written out, and its intervals against photos that it has not seen."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from acmix.calibration.aims import parse_aim
from acmix.calibration.curve import check_picture, draw
from acmix.calibration.exits import (
    Answers,
    answers,
    calibrate,
    choose,
    cost_interval,
    geometric_rates,
    outcome_of,
    thresholds_for_rates,
)
from acmix.calibration.shares import accuracy_interval, fewest_photos, most_lost
from acmix.toolkit.adaptive.table import published_thresholds
from acmix.toolkit.errors import UsageError
from acmix.toolkit.policy import policy_of

STAGES = ("one", "two", "three")


def made_answers(stages: int, photos: int, seed: int = 0) -> Answers:
    """Stages that grow better: how sure each is tells how likely it is right."""
    rng = np.random.default_rng(seed)
    ease = rng.uniform(size=photos)
    sure = np.clip(
        ease[None] ** (1 / (1 + np.arange(stages)[:, None])) * 0.9 + rng.normal(0, 0.05, (stages, photos)), 0.01, 0.99
    )
    right = rng.uniform(size=(stages, photos)) < sure**0.5
    # Regret without doubt: the last stage knows when it is right.
    regret = right[-1].astype(float) - right
    return Answers(sure, right, regret, True, tuple(float(10 * 2**s) for s in range(stages)), "ms")


def walked(found: Answers, thresholds: tuple[float, ...]) -> tuple[list[int], float, float]:
    """Exits, mean cost and accuracy, photo by photo."""
    exits, spent, hits = [], 0.0, 0
    for photo in range(found.confidences.shape[1]):
        stage = 0
        while stage < found.stages - 1 and found.confidences[stage, photo] < thresholds[stage]:
            stage += 1
        exits.append(stage)
        spent += sum(found.costs[: stage + 1])
        hits += bool(found.right[stage, photo])
    return exits, spent / len(exits), hits / len(exits)


def test_an_outcome_is_what_walking_every_photo_gives() -> None:
    found = made_answers(4, 200)
    thresholds = (0.8, 0.6, 0.7)
    exits, cost, accuracy = walked(found, thresholds)
    point = outcome_of(found, thresholds)
    assert point.exit_rates == tuple(exits.count(stage) / 200 for stage in range(4))
    assert (point.cost, point.accuracy) == (pytest.approx(cost), pytest.approx(accuracy))


def test_thresholds_for_rates_are_those_of_the_authors_loop() -> None:
    found = made_answers(3, 157)
    rates = geometric_rates(17, 3)
    thresholds = thresholds_for_rates(found.confidences, rates)
    # The published algorithm: of the photos that still run, the surest floor(N q_k) leave.
    gone: set[int] = set()
    for stage in range(2):
        ranked = sorted((i for i in range(157) if i not in gone), key=lambda i: -found.confidences[stage, i])
        leaving = ranked[: int(157 * rates[stage])]
        assert all(found.confidences[stage, i] >= thresholds[stage] for i in leaving)
        assert all(found.confidences[stage, i] < thresholds[stage] for i in ranked[len(leaving) :])
        gone |= set(leaving)


def test_the_geometric_family_is_the_published_one() -> None:
    np.testing.assert_allclose(geometric_rates(20, 4), [0.25] * 4)
    np.testing.assert_allclose(geometric_rates(10, 3), np.array([4, 2, 1]) / 7)
    np.testing.assert_allclose(geometric_rates(39, 5).sum(), 1)


def test_the_accuracy_budget_is_met_at_the_least_cost_of_all_thresholds() -> None:
    found = made_answers(2, 60, seed=3)
    point = choose(found, parse_aim("accuracy=3"))
    least = found.right[-1].mean() - 0.03
    tried = []
    for threshold in [0.0, *sorted(found.confidences[0] + 1e-9), 1.1]:
        _, cost, accuracy = walked(found, (threshold,))
        tried.append((threshold, cost, accuracy))
    # The loosest threshold from which on every stricter one keeps the budget.
    fine = [(cost, t) for t, cost, _ in tried if all(a >= least - 1e-9 for u, _, a in tried if u >= t)]
    assert point.cost == pytest.approx(min(fine)[0])
    assert point.accuracy >= least - 1e-9


def test_paired_answers_bound_what_is_lost_as_often_as_they_say() -> None:
    rng, photos = np.random.default_rng(0), 2000
    for lost, gained in ((0.004, 0.002), (0.02, 0.01), (0.1, 0.1)):
        draws = rng.multinomial(photos, (lost, gained, 1 - lost - gained), 1000)
        held = [most_lost(int(b), int(c), photos) >= lost - gained for b, c, _ in draws]
        assert 0.92 <= np.mean(held) <= 0.985
    # Two intervals of their own would leave 2 points open where the answers are the same.
    assert most_lost(0, 0, photos) < 0.001
    needed = fewest_photos(0.005)
    assert most_lost(0, 0, needed) <= 0.005 < most_lost(0, 0, needed - 1)


def test_right_answers_are_kept_surely_where_regret_says_too_little() -> None:
    population = made_answers(2, 40_000, seed=5)
    # A last stage that doubts itself: half of what is lost counts as regret.
    population = replace(population, regret=population.regret / 2)
    aim = parse_aim("surely=2")
    for seed in range(4):
        drawn = np.random.default_rng(seed).permutation(40_000)
        few, others = picked(population, drawn[:1500]), picked(population, drawn[1500:])
        last = others.right[-1].mean()
        sure, usual = (outcome_of(others, choose(few, one).thresholds) for one in (aim, parse_aim("accuracy=2")))
        assert last - usual.accuracy > 0.025
        assert last - sure.accuracy <= 0.02
        assert usual.cost < sure.cost < 0.95 * sum(others.costs)


def picked(found: Answers, photos: Any) -> Answers:
    """Some of the photos."""
    kept = (each[:, photos] for each in (found.confidences, found.right, found.regret))
    return Answers(*kept, found.labelled, found.costs, found.unit)


def test_without_labels_nothing_is_sure() -> None:
    with pytest.raises(UsageError, match=r"surely=1 counts right answers.*no labels.\n.*write accuracy=1,"):
        choose(replace(made_answers(2, 2000), labelled=False), parse_aim("surely=1"))


def test_regret_is_what_the_last_stage_holds_against_an_answer() -> None:
    logits = np.random.default_rng(1).standard_normal((3, 40, 10)).astype(np.float32) * 2
    found = answers(logits, None, "max_softmax", (1.0, 1.0, 1.0), "MMAC")
    p = torch.softmax(torch.from_numpy(logits[-1]).double(), -1)
    for stage, photo in itertools.product(range(3), range(40)):
        wanted = p[photo].max() - p[photo, int(logits[stage, photo].argmax())]
        assert found.regret[stage, photo] == pytest.approx(float(wanted))
    assert (found.regret[-1] == 0).all()
    # A budget of nothing allows the answers that are the last stage's, and no other.
    point = choose(found, parse_aim("accuracy=0"))
    assert point.accuracy == 1


def test_a_mean_cost_is_kept_at_the_best_accuracy() -> None:
    found = made_answers(3, 80, seed=1)
    point = choose(found, parse_aim("cost=30"))
    assert point.cost <= 30
    grid = np.linspace(0, 1.01, 26)
    others = [walked(found, pair) for pair in itertools.product(grid, grid)]
    assert point.accuracy >= max(accuracy for _, cost, accuracy in others if cost <= 30) - 0.02


def test_without_labels_the_last_stage_is_the_truth() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 50, 10)).astype(np.float32)
    found = answers(logits, None, "max_softmax", (1.0, 2.0), "MMAC")
    assert not found.labelled
    assert found.right[-1].all()
    np.testing.assert_array_equal(found.right[0], logits[0].argmax(-1) == logits[1].argmax(-1))


@pytest.mark.parametrize(
    ("shape", "costs", "spoilt", "message"),
    [
        ((2, 5, 3), (1.0,), False, "one cost a stage"),
        ((2, 0, 3), (1.0, 2.0), False, "one photo or more"),
        ((2, 5, 3), (1.0, 2.0), True, "stage 2 has a confidence of nan on photo 4"),
    ],
)
def test_logits_that_cannot_be_calibrated_are_refused(
    shape: tuple[int, ...], costs: tuple[float, ...], spoilt: bool, message: str
) -> None:
    logits = np.zeros(shape, np.float32)
    if spoilt:
        logits[1, 3, 0] = np.nan
    with pytest.raises(UsageError, match=message):
        answers(logits, None, "max_softmax", costs, "ms")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "accuracy",
        "accuracy=",
        "accuracy=x",
        "accuracy=1,2",
        "accuracy=nan",
        "luck=3",
        "surely=0",
        "surely=1e-310",
        "surely=1,2",
        "cost=-1",
        "rates=0.5,0.6",
        "geometric=0",
        "geometric=0.5",
        "geometric=40",
    ],
)
def test_an_operating_point_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--exits"):
        parse_aim(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thresholds=0.5", "3 stages need 2 thresholds"),
        ("rates=0.5,0.5", "3 stages need 3 rates"),
        ("cost=5", "the cheapest way through costs 10 ms"),
        ("surely=0.5", r"40 photos cannot tell so little.*\nGive 327 labelled photos or many more"),
    ],
)
def test_an_operating_point_that_the_stages_cannot_have_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose(made_answers(3, 40), parse_aim(text))


def test_the_curve_only_climbs_and_holds_the_chosen_point_or_better() -> None:
    found = made_answers(3, 120)
    policy = calibrate(found, parse_aim("accuracy=1"), "max_softmax", STAGES, ("made", "0"))
    record = policy.calibration
    assert record is not None
    costs, shares = zip(*((point.cost, point.accuracy) for point in record.curve), strict=True)
    assert all(a < b for a, b in itertools.pairwise(costs))
    assert all(a < b for a, b in itertools.pairwise(shares))
    assert any(
        p.cost <= record.expected_cost.mean + 1e-9 and p.accuracy >= record.expected_accuracy.mean - 1e-9
        for p in record.curve
    )


def test_the_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    population = made_answers(3, 20_000, seed=9)
    thresholds = (0.7, 0.75)
    truth = outcome_of(population, thresholds)
    rng = np.random.default_rng(0)
    hits = np.zeros(2)
    for draw_number in range(300):
        chosen = rng.choice(20_000, 50, replace=False)
        parts = (each[:, chosen] for each in (population.confidences, population.right, population.regret))
        few = Answers(*parts, True, population.costs, "ms")
        point = outcome_of(few, thresholds)
        hits += (
            cost_interval(point, few, draw_number).holds(truth.cost),
            accuracy_interval(point.accuracy, 50).holds(truth.accuracy),
        )
    assert (hits / 300 > 0.9).all()
    assert (hits / 300 < 0.995).all()


def test_new_photos_lie_in_the_interval_for_others_as_often_as_it_says() -> None:
    population = made_answers(2, 20_000, seed=4)
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        chosen = rng.choice(20_000, 80, replace=False)
        few, others = (population.right[0, part].mean() for part in (chosen[:50], chosen[50:]))
        hits += accuracy_interval(float(few), 50).for_others(50, 30).holds(float(others))
    assert 0.9 < hits / 400 < 0.995


def test_an_exit_that_no_photo_took_is_not_held_for_impossible() -> None:
    found = made_answers(2, 50)
    interval = cost_interval(outcome_of(found, (0.0,)), found)
    assert interval.mean == 10
    assert interval.high > 10


def test_given_thresholds_are_drawn_only_with_a_calibration(tmp_path: Path) -> None:
    policy = policy_of("max_softmax", STAGES, (0.5, 0.5), None)
    with pytest.raises(UsageError, match="there is no curve to draw"):
        draw(tmp_path / "curve.png", policy)
    made = calibrate(made_answers(3, 40), parse_aim("geometric=20"), "max_softmax", STAGES, ("made", "0"))
    with pytest.raises(UsageError, match="no known suffix"):
        draw(tmp_path / "curve.docx", made)
    with pytest.raises(UsageError, match="no known suffix"):
        check_picture(Path("curve"))
    draw(tmp_path / "curve.svg", made)
    assert b"<svg" in (tmp_path / "curve.svg").read_bytes()


TABLE = [[0.9, 0.8, -1e8], [0.7, 0.6, -1e8]]
KEPT: dict[str, Any] = {
    "lists": TABLE,
    "a tensor": torch.tensor(TABLE),
    "numpy": np.asarray(TABLE),
    "numpy float32": np.asarray(TABLE, np.float32),
    "a list of arrays": [np.asarray(row) for row in TABLE],
    "a list of scalars": [[np.float64(value) for value in row] for row in TABLE],
}


@pytest.mark.parametrize("kept", list(KEPT))
def test_a_published_table_is_taken_as_it_stands(kept: str, tmp_path: Path) -> None:
    file = tmp_path / "gfnet.pth.tar"
    torch.save({"fc": {"fc_2.weight": torch.zeros(2)}, "dynamic_threshold": KEPT[kept]}, file)
    np.testing.assert_allclose(published_thresholds(str(file)), [[0.9, 0.8], [0.7, 0.6]], rtol=1e-6)


class OddArray:
    """Pickled as a numpy array whose dtype is torch's."""

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = np.zeros(1).__reduce__()[0]
        return rebuild, (np.ndarray, (0,), b"b"), (1, (1, 2), torch.float32, False, bytes(8))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (OddArray(), "cannot be read"),
        (None, "has no table 'dynamic_threshold'"),
        ([[0.9, 0.8, 0.5]], "out of the way"),
        ([0.9, -1e8], "out of the way"),
        ([[0.9, "much", -1e8]], "cannot be read"),
        ([[0.9, -1e8], [0.8, 0.7, -1e8]], "cannot be read"),
        ([[float("nan"), -1e8]], "cannot be read"),
        (np.asarray([["a", "b"]], object), "wants to run|cannot be read"),
    ],
)
def test_a_file_without_a_usable_table_is_refused(table: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "gfnet.pth.tar"
    content = {"fc": torch.zeros(2)}
    torch.save(content if table is None else {**content, "dynamic_threshold": table}, file)
    with pytest.raises(UsageError, match=message):
        published_thresholds(str(file))
