"""Proof: the saved file, reloaded in its own runtime, against eager float32."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from acmix.toolkit.recipe import Tolerance
from acmix.toolkit.target import Array

Verdict = Literal["passed", "failed", "not executed"]


@dataclass(frozen=True)
class Agreement:
    """One output over all samples, against eager float32.

    snr_db, cosine: of the worst sample; None when the reference is all zeros. max_abs: over all samples.
    top1_agreement: share of samples whose largest logit is the same one; None where outputs are no logits.
    """

    output: str
    samples: int
    snr_db: float | None
    max_abs: float
    cosine: float | None
    top1_agreement: float | None
    worst_sample: str
    tolerance: Tolerance
    passed: bool


@dataclass(frozen=True)
class SampleSet:
    """Which inputs a proof used."""

    name: str
    count: int
    digest: str


@dataclass(frozen=True)
class Proof:
    """What running the saved file showed. `not executed` is not a pass: reason says why."""

    verdict: Verdict
    runtime: str
    agreements: tuple[Agreement, ...] = ()
    samples: tuple[SampleSet, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Compared:
    """One output of one sample: what eager gave, what the file gave."""

    sample: str
    wanted: Array
    found: Array


SNR_LIMIT_DB = 300.0
"""JSON has no infinity: equal outputs get this ratio, outputs with NaN its negative."""


def snr_db(wanted: Array, found: Array) -> float | None:
    """Signal-to-noise ratio in dB, within +-SNR_LIMIT_DB; None when there is no signal."""
    reference = wanted.astype(np.float64).ravel()
    signal = float(np.square(reference).sum())
    noise = float(np.square(found.astype(np.float64).ravel() - reference).sum())
    if math.isnan(noise) or math.isinf(noise):
        return -SNR_LIMIT_DB
    if signal == 0.0:
        return None
    return min(10 * math.log10(signal / noise), SNR_LIMIT_DB) if noise else SNR_LIMIT_DB


def cosine(wanted: Array, found: Array) -> float | None:
    """Cosine of the angle between the two, None when either is all zeros."""
    a, b = wanted.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms and math.isfinite(norms) else None


def same_top1(wanted: Array, found: Array) -> bool:
    """Whether the largest entry of the last axis is the same one."""
    return int(wanted.ravel().argmax()) == int(found.ravel().argmax())


def agree(output: str, compared: Sequence[Compared], tolerance: Tolerance, logits: bool) -> Agreement:
    """Compare one output over all samples; a sample of another shape or with NaN where eager has none fails."""
    ratios: list[tuple[float, str]] = []
    differences, cosines, top1 = [0.0], [], 0
    passed = bool(compared)
    for one in compared:
        if one.wanted.shape != one.found.shape:
            return Agreement(
                output,
                len(compared),
                -SNR_LIMIT_DB,
                sys.float_info.max,
                None,
                None,
                one.sample,
                tolerance,
                False,
            )
        ratio = snr_db(one.wanted, one.found)
        difference = float(np.abs(one.found.astype(np.float64) - one.wanted.astype(np.float64)).max(initial=0.0))
        difference = difference if math.isfinite(difference) else sys.float_info.max
        differences.append(difference)
        cosines.append(cosine(one.wanted, one.found))
        top1 += same_top1(one.wanted, one.found)
        if ratio is not None:
            ratios.append((ratio, one.sample))
        passed = passed and (difference <= tolerance.max_abs if ratio is None else ratio >= tolerance.snr_db)
    worst, sample = min(ratios, default=(None, compared[0].sample if compared else ""))
    known = [c for c in cosines if c is not None]
    share = top1 / len(compared) if logits and compared else None
    return Agreement(
        output,
        len(compared),
        worst,
        max(differences),
        min(known, default=None),
        share,
        sample,
        tolerance,
        passed,
    )


def prove(
    names: Sequence[str],
    compared: Iterable[Sequence[Compared]],
    tolerances: Sequence[Tolerance],
    logits: bool,
    runtime: str,
    samples: tuple[SampleSet, ...],
) -> Proof:
    """Judge every output: `compared` holds, sample by sample, one comparison an output."""
    rows = list(compared)
    agreements = tuple(agree(name, [row[i] for row in rows], tolerances[i], logits) for i, name in enumerate(names))
    verdict: Verdict = "passed" if all(a.passed for a in agreements) else "failed"
    return Proof(verdict, runtime, agreements, samples)
