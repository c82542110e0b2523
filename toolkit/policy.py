"""An exit policy: how sure a stage has to be for its answer to stand; policy.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from acmix.toolkit.errors import GateError, UsageError

Rule = Literal["max_softmax", "margin", "entropy"]
"""How sure a stage is, 0 to 1: its largest probability; that minus the second; 1 - entropy / log(classes)."""

POLICY = "policy.json"
CALIBRATE = "Calibrate again: acmix exits FOLDER --photos PHOTOS."
SCHEMA_VERSION = 1

SAFE_LOGITS = (-40.0, 70.0)
"""Where the largest of a stage's float32 logits has to lie for their powers of e to need no shift: 1e8 of the largest
sum up to less than infinity, and what is too small for float32 would not change a float64."""
NEAR_ONE = 1.01
"""Where the sum of all powers is less than so many times the largest, the others are summed without it: in float32
they would be lost beside it, and with them the order of confidences near 1."""

OUT_OF_REACH = 1.000001
"""A threshold that no confidence reaches."""

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Exit:
    """A stage and the confidence with which it ends the run; None for the last, which always does."""

    stage: str
    threshold: float | None


@dataclass(frozen=True)
class Interval:
    """A mean with the percentile bootstrap interval over photos, 95 % wide."""

    mean: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value lies inside."""
        return self.low <= value <= self.high

    def for_others(self, photos: int, others: int) -> Interval:
        """The same for the mean over `others` new photos: they differ from the truth too, as the `photos` did."""
        wider = math.sqrt(1 + photos / others)
        return Interval(
            self.mean, self.mean - wider * (self.mean - self.low), self.mean + wider * (self.high - self.mean)
        )


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds of all stages but the last, and what they gave on the calibration photos.

    exit_rates: the share of photos that ended at each stage, 0 to 1.  cost: mean, in the calibration's unit.
    accuracy: share of right answers; where photos have no labels, of answers that are the last stage's.
    """

    thresholds: tuple[float, ...]
    exit_rates: tuple[float, ...]
    cost: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Where a policy's thresholds come from.

    costs: of each stage alone, in `unit`.  last_accuracy: of always running every stage.
    """

    operating_point: str
    samples: str
    digest: str
    photos: int
    labelled: bool
    unit: Literal["ms", "MMAC"]
    costs: tuple[float, ...]
    exit_rates: tuple[float, ...]
    expected_cost: Interval
    expected_accuracy: Interval
    last_accuracy: float
    curve: tuple[OperatingPoint, ...] = ()


@dataclass(frozen=True)
class Policy:
    """policy.json: the rule, one exit a stage in the order of the stages, and its calibration if there was one."""

    rule: Rule
    exits: tuple[Exit, ...]
    calibration: Calibration | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Of every stage but the last."""
        return tuple(e.threshold for e in self.exits if e.threshold is not None)


def policy_of(
    rule: Rule, stages: Sequence[str], thresholds: Sequence[float], calibration: Calibration | None
) -> Policy:
    """A checked policy; raises UsageError as `check_policy` does."""
    pairs = zip(stages, [*thresholds, None], strict=False)
    made = Policy(rule, tuple(Exit(stage, threshold) for stage, threshold in pairs), calibration)
    if len(thresholds) != len(stages) - 1:
        raise UsageError(
            f"{len(thresholds)} thresholds for {len(stages)} stages; all but the last need one: {len(stages) - 1}.\n"
            f"Give one each for {', '.join(stages[:-1]) or 'no stage'}."
        )
    check_policy(made, stages)
    return made


def check_policy(policy: Policy, stages: Sequence[str]) -> None:
    """Raise UsageError unless the policy has one usable threshold for each stage but the last, in their order."""
    names = [e.stage for e in policy.exits]
    wanted = ", ".join(stages)
    if sorted(names) != sorted(stages):
        lacking = [stage for stage in stages if stage not in names]
        trouble = f"has no exit for stage {lacking[0]!r}" if lacking else f"has exits for {', '.join(names)}"
        raise UsageError(f"the exit policy {trouble}; the stages are {wanted}.\n{CALIBRATE}")
    if names != list(stages):
        raise UsageError(
            f"the exit policy lists its stages out of order: {', '.join(names)}; they run as {wanted}.\n"
            "Put the exits in the order of the stages."
        )
    for number, one in enumerate(policy.exits):
        last = number == len(stages) - 1
        if one.threshold is None and not last:
            raise UsageError(
                f"the exit policy has no threshold for stage {one.stage!r}; only the last stage goes without.\n"
                f"{CALIBRATE}"
            )
        if one.threshold is not None and (last or not math.isfinite(one.threshold)):
            fault = "is the last and always ends" if last else "needs a finite number"
            raise UsageError(
                f"the exit policy gives stage {one.stage!r} the threshold {one.threshold}, but that stage {fault}.\n"
                f"Correct {POLICY}. {CALIBRATE}"
            )


def read_policy(path: Path, stages: Sequence[str]) -> Policy:
    """The policy of a file, checked against the stages; raises UsageError with a sentence for every defect."""
    if not path.is_file():
        raise UsageError(f"{path} is missing: without thresholds no stage can end.\n{CALIBRATE}")
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data).get("schema_version")
        if version != SCHEMA_VERSION:
            raise UsageError(f"{path} has schema version {version}; this acmix reads {SCHEMA_VERSION}.\n{CALIBRATE}")
        policy = msgspec.json.decode(data, type=Policy)
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, OSError) as error:
        raise UsageError(f"{path} cannot be read: {error}\n{CALIBRATE}") from error
    check_policy(policy, stages)
    return policy


def write_policy(path: Path, policy: Policy) -> None:
    """Write policy.json, indented."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(policy), indent=1) + b"\n")


def _powers(logits: npt.NDArray[Any]) -> Float64s:
    """exp(logits - largest) over the last axis: the largest is 1.

    In float64, so that confidences near 1 keep their order.
    """
    values: Float64s = logits.astype(np.float64)
    values -= values.max(-1, keepdims=True)
    return np.exp(values, out=values)


def probabilities(logits: npt.NDArray[Any]) -> Float64s:
    """Softmax over the last axis, in float64."""
    powers = _powers(logits)
    scaled: Float64s = powers / powers.sum(-1, keepdims=True)
    return scaled


def _max_softmax(powers: Float64s) -> Float64s:
    sure: Float64s = 1 / powers.sum(-1)
    return sure


def _margin(powers: Float64s) -> Float64s:
    second = np.partition(powers, -2, axis=-1)[..., -2]
    difference: Float64s = (1 - second) / powers.sum(-1)
    return difference


def _entropy(powers: Float64s) -> Float64s:
    p = powers / powers.sum(-1, keepdims=True)
    # The limit of p log p at 0 is 0.
    chaos = -(p * np.log(np.maximum(p, 1e-300))).sum(-1)
    order: Float64s = 1 - chaos / math.log(p.shape[-1])
    return order


RULES: dict[Rule, Callable[[Float64s], Float64s]] = {
    "max_softmax": _max_softmax,
    "margin": _margin,
    "entropy": _entropy,
}


def confidences(logits: npt.NDArray[Any], rule: Rule) -> Float64s:
    """How sure each row [..., classes] is, 0 to 1; NaN where the logits are."""
    return RULES[rule](_powers(logits))


def exit_test(rule: Rule, stage: str) -> Callable[[npt.NDArray[Any]], float]:
    """How sure a stage is of one photo, as a function of its logits [classes], always as many.

    That function raises GateError when they are no numbers.  The runner waits for it right after a network has
    emptied the caches, where whatever is looked up and each function of numpy costs some microseconds and a thousand
    numbers next to nothing.  So the default rule is a closure around its constants, and argmax, exp and dot are all
    that it calls, no reduction, no conversion.  1 minus what it gives is right to a ten-thousandth of itself.
    """

    exact = partial(_checked_confidence, rule=rule, stage=stage)
    if rule != "max_softmax":
        return exact
    exp, (low, high), near = np.exp, SAFE_LOGITS, NEAR_ONE
    total: Callable[[npt.NDArray[Any]], np.float32] | None = None

    def quick(logits: npt.NDArray[Any]) -> float:
        nonlocal total
        first = logits.argmax()
        if not low < logits.item(first) < high:
            return exact(logits)
        if total is None:
            if logits.dtype != np.float32:
                return exact(logits)
            total = np.ones(logits.size, np.float32).dot
        powers = exp(logits)
        # Python's floats: numpy's own scalars cost as much as an array.
        largest: float = powers.item(first)
        everything = float(total(powers))
        if everything < near * largest:
            powers[first] = 0
            everything = largest + float(total(powers))
        return largest / everything

    return quick


def _checked_confidence(logits: npt.NDArray[Any], rule: Rule, stage: str) -> float:
    found = float(confidences(logits, rule))
    if not math.isfinite(found):
        raise GateError(
            f"the confidence of stage {stage!r} is {found}: its logits hold NaN or infinity.\n"
            "No exit can be chosen; verify the stage's file: acmix verify."
        )
    return found


def confidence(logits: npt.NDArray[Any], rule: Rule, stage: str) -> float:
    """How sure a stage is of one photo, as the runner's exit test says it; raises as that does."""
    return exit_test(rule, stage)(logits.reshape(-1))


def sensitivity(rule: Rule, classes: int) -> float:
    """The most that a confidence changes for logits that change by 1 in Euclidean norm: a bound of its gradient.

    Of p_i the gradient is p_i (e_i - p), of norm at most sqrt(2) / 4.  Of the entropy its square is at most the
    variance of log p, below log(C)^2 / 4 + 1 (Reeb and Wolf, 2015).
    """
    largest = math.sqrt(2) / 4
    bounds: dict[Rule, float] = {
        "max_softmax": largest,
        "margin": 2 * largest,
        "entropy": math.sqrt(0.25 + 1 / math.log(classes) ** 2),
    }
    return bounds[rule]
