"""Proof of the way: for fixed thresholds the artifact takes the exits and crops of eager float32, photo by photo."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from acmix.toolkit.adaptive.artifact import WayProof
from acmix.toolkit.adaptive.engine import Trace
from acmix.toolkit.adaptive.spec import Crop, Photo, Resize, Stage
from acmix.toolkit.policy import Policy, confidence, sensitivity
from acmix.toolkit.verify import Verdict


@dataclass(frozen=True)
class Margins:
    """How much a file may differ from eager and still be within its tolerance.

    agreement_db: the least that any network of it was asked for.  room: pixels that a crop's corner can move, by
    the crop's value.
    """

    agreement_db: float
    room: Mapping[str, tuple[int, int]]

    def of_norm(self, norm: float) -> float:
        """The Euclidean error that the agreement grants a vector of this norm."""
        return float(norm * 10 ** (-self.agreement_db / 20))


def margins(stages: Sequence[Stage], agreement_db: float) -> Margins:
    """The margins of an adaptive model whose networks agree with eager to `agreement_db`."""
    sizes: dict[str, tuple[int, int]] = {}
    room = {}
    for step in (step for stage in stages for step in stage.steps):
        if isinstance(step, Photo):
            sizes[step.gives] = step.preprocess.crop
        elif isinstance(step, Resize):
            sizes[step.gives] = step.size
        elif isinstance(step, Crop):
            height, width = sizes[step.source]
            room[step.gives] = (height - step.size[0], width - step.size[1])
            sizes[step.gives] = step.size
    return Margins(agreement_db, room)


@dataclass(frozen=True)
class _Compared:
    """One photo: what was equal, the largest errors with the margins that were granted, what explains a difference."""

    photo: str
    same_exit: bool
    same_crops: bool
    same_answer: bool
    confidence_error: float
    confidence_margin: float
    place_error: float
    place_margin: float
    explained: bool

    @property
    def same(self) -> bool:
        return self.same_exit and self.same_crops


def prove_way(
    photos: Sequence[str], wanted: Sequence[Trace], found: Sequence[Trace], policy: Policy, granted: Margins
) -> WayProof:
    """Compare traces of eager and of the artifact, both through every stage, at the policy's thresholds."""
    rows = [_compare(*row, policy, granted) for row in zip(photos, wanted, found, strict=True)]
    unexplained = [row for row in rows if not row.same and not row.explained]
    worst = max(rows, key=lambda row: (not row.same and not row.explained, row.confidence_error), default=None)
    verdict: Verdict = "failed" if unexplained else "passed"
    return WayProof(
        verdict,
        len(rows),
        sum(row.same_exit for row in rows),
        sum(row.same_crops for row in rows),
        sum(row.same_answer for row in rows),
        sum(not row.same and row.explained for row in rows),
        max((row.confidence_error for row in rows), default=0.0),
        max((row.confidence_margin for row in rows), default=0.0),
        max((row.place_error for row in rows), default=0.0),
        max((row.place_margin for row in rows), default=0.0),
        worst.photo if worst else "",
    )


def exit_of(trace: Trace, policy: Policy) -> int:
    """Where a trace through every stage would have ended under a policy."""
    for number, (stage, one) in enumerate(zip(trace.stages, policy.exits, strict=True)):
        if one.threshold is None or confidence(stage.logits, policy.rule, stage.stage) >= one.threshold:
            return number
    raise AssertionError("the last exit of a checked policy has no threshold")


def _compare(photo: str, wanted: Trace, found: Trace, policy: Policy, granted: Margins) -> _Compared:
    ends = exit_of(wanted, policy), exit_of(found, policy)
    parting = min(ends)
    places = list(_places(wanted, found, parting, granted))
    # Behind a corner that fell on the next pixel the two look at different patches: nothing is compared there.
    moved = next((place for place in places if not place.same), None)
    compared = parting + 1 if moved is None else moved.stage
    sure = [_confidences(number, wanted, found, policy, granted) for number in range(compared)]
    same_answer = wanted.stages[ends[0]].logits.argmax() == found.stages[ends[1]].logits.argmax()
    return _Compared(
        photo,
        ends[0] == ends[1],
        moved is None,
        bool(same_answer),
        max((one.error for one in sure), default=0.0),
        max((one.margin for one in sure), default=0.0),
        max((place.error for place in places if moved is None or place.stage <= moved.stage), default=0.0),
        max((place.margin for place in places), default=0.0),
        # What came first explains the rest: a corner near its next pixel, or the confidence where the two part.
        moved.near if moved is not None else sure[parting].near,
    )


@dataclass(frozen=True)
class _Confidence:
    error: float
    margin: float
    near: bool


def _confidences(number: int, wanted: Trace, found: Trace, policy: Policy, granted: Margins) -> _Confidence:
    stage = wanted.stages[number]
    threshold = policy.exits[number].threshold
    sure = confidence(stage.logits, policy.rule, stage.stage)
    other = confidence(found.stages[number].logits, policy.rule, stage.stage)
    bound = sensitivity(policy.rule, stage.logits.size)
    margin = bound * granted.of_norm(float(np.linalg.norm(stage.logits.astype(np.float64))))
    near = threshold is not None and abs(sure - threshold) <= margin
    return _Confidence(abs(sure - other), margin, near)


@dataclass(frozen=True)
class _Place:
    stage: int
    same: bool
    error: float
    margin: float
    near: bool


def _places(wanted: Trace, found: Trace, last: int, granted: Margins) -> Iterator[_Place]:
    """Every crop up to stage number `last`."""
    for number, (a, b) in enumerate(zip(wanted.stages[: last + 1], found.stages[: last + 1], strict=True)):
        for value, corner in a.corners.items():
            room = np.asarray(granted.room[value], np.float64)
            action = a.actions[value].reshape(2).astype(np.float64)
            exact = action * room
            other = b.actions[value].reshape(2).astype(np.float64) * room
            margin = granted.of_norm(float(np.linalg.norm(action))) * float(room.max())
            error = float(np.abs(exact - other).max())
            # Of the row and the column, those that moved have to be near the next pixel.
            moved = np.asarray(corner) != np.asarray(b.corners[value])
            near = np.abs(exact - np.rint(exact))[moved] <= margin
            yield _Place(number, not moved.any(), error, margin, bool(near.all()))
