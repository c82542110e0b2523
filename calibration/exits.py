"""Exit thresholds from what every stage said of every photo: an operating point, its curve, and a picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from acmix.calibration.aims import GEOMETRIC_ROWS, GEOMETRIC_UNIT, OperatingAim
from acmix.calibration.shares import accuracy_interval, fewest_photos, most_lost
from acmix.toolkit.errors import UsageError
from acmix.toolkit.policy import (
    OUT_OF_REACH,
    Calibration,
    Interval,
    OperatingPoint,
    Policy,
    Rule,
    confidences,
    policy_of,
    probabilities,
)

Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

GRID = {2: 400, 3: 40, 4: 14}
"""How many thresholds a stage are tried, by the number of stages; with more stages, the geometric rows alone."""
DRAWS = 4000
BUDGETS = 50
"""How many budgets of regret are tried, in equal steps, for what labels bear out."""


@dataclass(frozen=True)
class Answers:
    """What every stage said of every photo, all stages having run.

    confidences, right, regret: [stages, photos].  right is against the labels, or against the last stage where there
    are none.  regret: what the last stage gives its own answer, as a probability, beyond what it gives this stage's.
    costs: of each stage alone, in `unit`.
    """

    confidences: Float64s
    right: Bools
    regret: Float64s
    labelled: bool
    costs: tuple[float, ...]
    unit: Literal["ms", "MMAC"]

    @property
    def stages(self) -> int:
        return len(self.confidences)


def answers(
    logits: npt.NDArray[Any],
    labels: Sequence[int] | None,
    rule: Rule,
    costs: Sequence[float],
    unit: Literal["ms", "MMAC"],
) -> Answers:
    """From logits [stages, photos, classes]; raises UsageError for NaN, and for costs that do not fit."""
    if logits.ndim != 3 or not logits.shape[1] or len(costs) != len(logits):
        raise UsageError(
            f"logits of shape {logits.shape} and {len(costs)} costs; calibration needs [stages, photos, classes], "
            "one photo or more, and one cost a stage."
        )
    sure = confidences(logits, rule)
    if not np.isfinite(sure).all():
        stage, photo = (int(i) for i in np.argwhere(~np.isfinite(sure))[0])
        raise UsageError(
            f"stage {stage + 1} has a confidence of {sure[stage, photo]} on photo {photo + 1}: its logits are no "
            "numbers.\nVerify the stage's file before calibrating: acmix verify."
        )
    said = logits.argmax(-1)
    truth = said[-1] if labels is None else np.asarray(labels)
    last = probabilities(logits[-1])
    regret = last.max(-1) - np.take_along_axis(last, said.T, -1).T
    return Answers(sure, said == truth, regret, labels is not None, tuple(costs), unit)


def geometric_rates(row: float, stages: int) -> Float64s:
    """The exit distribution of one row of the published tables: q_k proportional to (row / 20)^k, k from 1."""
    shares = np.power(row / GEOMETRIC_UNIT, np.arange(1, stages + 1))
    scaled: Float64s = shares / shares.sum()
    return scaled


def thresholds_for_rates(sure: Float64s, rates: Sequence[float] | Float64s) -> tuple[float, ...]:
    """Thresholds that let floor(N rate) of the N photos end at each stage, the surest of those still running.

    sure: confidences [stages, photos].  Between two photos the threshold lies in the middle, so that none is on it.
    """
    running = np.ones(sure.shape[1], bool)
    thresholds = []
    for stage, rate in zip(sure[:-1], rates, strict=False):
        ranked = np.sort(stage[running])[::-1]
        leaving = min(int(sure.shape[1] * rate + 1e-9), len(ranked))
        thresholds.append(_between(ranked, leaving))
        running &= stage < thresholds[-1]
    return tuple(thresholds)


def _between(ranked: Float64s, leaving: int) -> float:
    """A threshold that the first `leaving` of descending confidences reach, and none after them but their equals."""
    if not leaving:
        return OUT_OF_REACH
    below = float(ranked[leaving]) if leaving < len(ranked) else 0.0
    return (float(ranked[leaving - 1]) + below) / 2


@dataclass(frozen=True)
class _Outcomes:
    """Candidates: thresholds [K, stages - 1], shares that end at each stage [K, stages]; cost, accuracy, regret [K]."""

    thresholds: Float64s
    rates: Float64s
    cost: Float64s
    accuracy: Float64s
    regret: Float64s

    def point(self, number: int) -> OperatingPoint:
        return OperatingPoint(
            tuple(self.thresholds[number].tolist()),
            tuple(self.rates[number].tolist()),
            float(self.cost[number]),
            float(self.accuracy[number]),
        )


def exits_at(found: Answers, thresholds: Float64s) -> npt.NDArray[np.int64]:
    """The stage that answers each photo, [K, photos], for thresholds [K, stages - 1]."""
    ends = found.confidences[None, :-1] >= thresholds[:, :, None]
    last = np.ones((len(thresholds), 1, ends.shape[2]), bool)
    first: npt.NDArray[np.int64] = np.concatenate([ends, last], 1).argmax(1)
    return first


def _outcomes(found: Answers, thresholds: Float64s) -> _Outcomes:
    ends = exits_at(found, thresholds)
    rates = np.stack([(ends == stage).mean(1) for stage in range(found.stages)], 1)
    spent = np.cumsum(found.costs)[ends].mean(1)
    right, regret = (
        np.take_along_axis(each[None], ends[:, None], 1)[:, 0].mean(1) for each in (found.right, found.regret)
    )
    return _Outcomes(thresholds, rates, spent, right, regret)


def outcome_of(found: Answers, thresholds: Sequence[float]) -> OperatingPoint:
    """What given thresholds make of these answers."""
    return _outcomes(found, np.asarray(thresholds, float).reshape(1, -1)).point(0)


def _candidates(found: Answers) -> Float64s:
    """Thresholds that are worth trying, [K, stages - 1]: the geometric rows, and a grid where that is affordable."""
    stages = found.stages
    rows = [thresholds_for_rates(found.confidences, geometric_rates(p, stages)) for p in range(1, GEOMETRIC_ROWS + 1)]
    # Running every stage keeps every budget.
    rows.append((OUT_OF_REACH,) * (stages - 1))
    if stages in GRID:
        steps = [_quantiles(stage, GRID[stages]) for stage in found.confidences[:-1]]
        rows += list(itertools.product(*steps))
    return np.unique(np.asarray(rows, float).reshape(len(rows), stages - 1), axis=0)


def _quantiles(sure: Float64s, count: int) -> list[float]:
    ranked = np.sort(sure)[::-1]
    leaving = np.unique(np.linspace(0, len(ranked), count + 1).round().astype(int))
    return [_between(ranked, int(n)) for n in leaving]


def _front(tried: _Outcomes) -> tuple[OperatingPoint, ...]:
    """The candidates that no other beats in cost and accuracy, cheapest first."""
    points: list[OperatingPoint] = []
    for number in np.lexsort((-tried.accuracy, tried.cost)).tolist():
        if not points or tried.accuracy[number] > points[-1].accuracy:
            points.append(tried.point(number))
    return tuple(points)


def _within_budget(tried: _Outcomes, most: float) -> OperatingPoint:
    """The cheapest candidate whose regret stays below, and whose stricter neighbours' regret does too.

    Regret, not right and wrong answers: those of 50 photos tell half a point from nothing only by luck, and thresholds
    that they choose lose twice as much on other photos (tests/benchmarks/exit_draws.py).  A looser threshold between
    two that fail has luck with a few photos, and none with the next ones.
    """
    fails = tried.regret > most + 1e-9
    bad = tried.thresholds[fails]
    lucky = np.array([bool((bad >= row - 1e-12).all(1).any()) for row in tried.thresholds])
    fine = np.flatnonzero(~(fails | lucky))
    order = np.lexsort((-tried.accuracy[fine], tried.cost[fine]))
    return tried.point(int(fine[order[0]]))


def _surely_within(found: Answers, tried: _Outcomes, aim: OperatingAim) -> OperatingPoint:
    """The loosest budget of regret whose labelled answers, and those of every stricter budget, bear the aim out.

    Budgets are tried from none on, and the first whose bound is too high ends the search: so the choice has no luck
    that a single test of 95 % would not have.  Labels play no part in which thresholds a budget means.
    """
    most, photos = aim.values[0] / 100, found.confidences.shape[1]
    if not found.labelled:
        raise UsageError(
            f"--exits {aim.text} counts right answers, and the photos have no labels.\n"
            f"Add labels, or write accuracy={aim.values[0]:g}, which needs none."
        )
    if photos < (needed := fewest_photos(most)):
        raise UsageError(
            f"--exits {aim.text}: {photos} photos cannot tell so little from nothing, even where no answer changes.\n"
            f"Give {needed} labelled photos or many more, or write accuracy={aim.values[0]:g}."
        )
    chosen = _within_budget(tried, 0.0)
    for budget in np.linspace(0, most, BUDGETS + 1)[1:].tolist():
        point = _within_budget(tried, budget)
        ends = exits_at(found, np.asarray(point.thresholds)[None])[0]
        right = found.right[ends, np.arange(photos)]
        lost, gained = int((found.right[-1] & ~right).sum()), int((right & ~found.right[-1]).sum())
        if most_lost(lost, gained, photos) > most:
            break
        chosen = point
    return chosen


def _within_cost(tried: _Outcomes, most: float, unit: str) -> OperatingPoint:
    fine = np.flatnonzero(tried.cost <= most + 1e-9)
    if not len(fine):
        raise UsageError(
            f"--exits cost={most:g}: the cheapest way through costs {tried.cost.min():.4g} {unit}, when every photo "
            "ends at the first stage.\nAsk for more, or take a smaller first stage."
        )
    order = np.lexsort((tried.cost[fine], -tried.accuracy[fine]))
    return tried.point(int(fine[order[0]]))


def choose(found: Answers, aim: OperatingAim, tried: _Outcomes | None = None) -> OperatingPoint:
    """The operating point for an aim, on these answers; raises UsageError when there is none."""
    stages = found.stages
    if aim.aim == "thresholds" and len(aim.values) != stages - 1:
        raise UsageError(f"--exits {aim.text}: {stages} stages need {stages - 1} thresholds; the last always ends.")
    if aim.aim == "rates" and len(aim.values) != stages:
        raise UsageError(f"--exits {aim.text}: {stages} stages need {stages} rates.")
    if aim.aim == "thresholds":
        return outcome_of(found, aim.values)
    if aim.aim in ("rates", "geometric"):
        rates = geometric_rates(aim.values[0], stages) if aim.aim == "geometric" else aim.values
        return outcome_of(found, thresholds_for_rates(found.confidences, rates))
    tried = tried or _outcomes(found, _candidates(found))
    if aim.aim == "accuracy":
        return _within_budget(tried, aim.values[0] / 100)
    if aim.aim == "surely":
        return _surely_within(found, tried, aim)
    return _within_cost(tried, aim.values[0], found.unit)


def calibrate(
    found: Answers, aim: OperatingAim, rule: Rule, stages: Sequence[str], samples: tuple[str, str], seed: int = 0
) -> Policy:
    """A policy for an aim, with what to expect of it and the whole curve.  samples: their name and digest."""
    tried = _outcomes(found, _candidates(found))
    point = choose(found, aim, tried)
    record = Calibration(
        aim.text,
        *samples,
        found.confidences.shape[1],
        found.labelled,
        found.unit,
        found.costs,
        point.exit_rates,
        cost_interval(point, found, seed),
        accuracy_interval(point.accuracy, found.confidences.shape[1]),
        float(found.right[-1].mean()),
        _front(tried),
    )
    return policy_of(rule, stages, point.thresholds, record)


def cost_interval(point: OperatingPoint, found: Answers, seed: int = 0) -> Interval:
    """The mean cost with a bootstrap interval: exit counts drawn again from the rates.

    Half a photo is added to every exit: an exit that none of 50 photos took is rare, not impossible.
    """
    photos = found.confidences.shape[1]
    counts = np.asarray(point.exit_rates) * photos + 0.5
    drawn = np.random.default_rng(seed).multinomial(photos, counts / counts.sum(), DRAWS) / photos
    low, high = np.percentile(drawn @ np.cumsum(found.costs), (2.5, 97.5))
    return Interval(point.cost, float(low), float(high))
