"""Accuracy of an adaptive artifact on photos, its exits, and whether both are what its calibration expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from acmix.toolkit.adaptive.artifact import AdaptiveArtifact, WayProof
from acmix.toolkit.adaptive.engine import Trace
from acmix.toolkit.adaptive.observe import every_stage
from acmix.toolkit.adaptive.photos import Photos
from acmix.toolkit.adaptive.proof import exit_of, margins, prove_way
from acmix.toolkit.adaptive.reference import agreement_db
from acmix.toolkit.adaptive.runner import Loaded, load_adaptive
from acmix.toolkit.policy import Calibration

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class AdaptiveEvaluation:
    """An adaptive artifact on a set of photos.  Shares are 0 to 1; None where there is nothing to compare with.

    top1, top5: at the policy's exits.  last_top1: of always running every stage.
    expected_cost: of these photos' exits, in the unit and at the stage costs of the calibration.
    cost_as_expected, accuracy_as_expected: whether they lie in the intervals that the calibration predicted, for so
    many new photos.
    way: against eager float32; None without the networks' source.
    """

    artifact: str
    samples: str
    digest: str
    photos: int
    exit_rates: tuple[float, ...]
    top1: float | None
    top5: float | None
    last_top1: float | None
    mean_macs: float
    expected_cost: float | None
    unit: str
    cost_as_expected: bool | None
    accuracy_as_expected: bool | None
    way: WayProof | None = None
    eager_missing: str = ""
    schema_version: int = SCHEMA_VERSION


def evaluate_adaptive(
    artifact: AdaptiveArtifact,
    photos: Photos,
    eager: Loaded | None,
    missing: str = "",
    advance: Callable[[int], None] | None = None,
) -> AdaptiveEvaluation:
    """Run every photo through all stages, and judge it at the exit where the policy ends it."""
    with load_adaptive(artifact) as loaded:
        traces = every_stage(loaded, photos, advance)
    ends = [exit_of(trace, artifact.policy) for trace in traces]
    rates = tuple(ends.count(stage) / len(ends) for stage in range(len(artifact.manifest.stages)))
    calibration = artifact.policy.calibration
    cost = None if calibration is None else float(np.dot(rates, np.cumsum(calibration.costs)))
    top1 = _share(traces, ends, photos.labels, 1)
    last = [len(artifact.manifest.stages) - 1] * len(traces)
    way = None
    if eager is not None:
        granted = margins(artifact.manifest.stages, agreement_db(artifact))
        way = prove_way(photos.identifiers, every_stage(eager, photos), traces, artifact.policy, granted)
    return AdaptiveEvaluation(
        artifact.name,
        photos.name,
        photos.digest,
        len(photos),
        rates,
        top1,
        _share(traces, ends, photos.labels, 5),
        _share(traces, last, photos.labels, 1),
        float(np.dot(rates, artifact.manifest.exit_macs)),
        cost,
        "" if calibration is None else calibration.unit,
        None
        if calibration is None or cost is None
        else calibration.expected_cost.for_others(calibration.photos, len(photos)).holds(cost),
        _as_expected(calibration, top1, len(photos)),
        way,
        missing,
    )


def _as_expected(calibration: Calibration | None, top1: float | None, photos: int) -> bool | None:
    if calibration is None or top1 is None or not calibration.labelled:
        return None
    return calibration.expected_accuracy.for_others(calibration.photos, photos).holds(top1)


def _share(traces: Sequence[Trace], ends: Sequence[int], labels: Sequence[int] | None, count: int) -> float | None:
    if labels is None:
        return None
    rows = zip(traces, ends, labels, strict=True)
    hits = [
        label in np.argsort(-trace.stages[end].logits, kind="stable")[:count].tolist() for trace, end, label in rows
    ]
    return sum(hits) / len(hits)
