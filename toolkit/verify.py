"""Proof: the saved file, reloaded in its own runtime, against eager float32."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from acmix.toolkit.recipe import Tolerance
from acmix.toolkit.target import Array, ExecutedBy

Verdict = Literal["passed", "failed", "not executed"]


@dataclass(frozen=True)
class Agreement:
    """One output over all samples, against eager float32.

    snr_db, asked_db: of the worst sample, a failing one if there is any; None when the reference is all zeros.
    asked_db is less than the tolerance where eager itself keeps less under the recipe's rounding.
    cosine: the least. max_abs: over all samples.
    top1_agreement: share of samples whose largest logit is the same one; None where outputs are no logits.
    """

    output: str
    samples: int
    snr_db: float | None
    max_abs: float
    cosine: float | None
    top1_agreement: float | None
    worst_sample: str
    asked_db: float
    tolerance: Tolerance
    passed: bool


@dataclass(frozen=True)
class SampleSet:
    """Which inputs a proof used."""

    name: str
    count: int
    digest: str


@dataclass(frozen=True)
class Difference:
    """One output of the reference evaluator, against the runtime's own.

    snr_db: of the worst sample; None where the runtime gives zeros on every one.  max_abs: over all samples.
    """

    output: str
    snr_db: float | None
    max_abs: float
    worst_sample: str


@dataclass(frozen=True)
class Proof:
    """What running the saved file showed. `not executed` is not a pass: reason says why.

    conversion: of a quantized file, against its simulation in torch: the conversion's own error.
    executed_by: the format's own runtime, or a reference evaluator where that is absent (reason says why).
    differences: between the two, on a machine that has both; reference_error: why there are none, '' otherwise.
    """

    verdict: Verdict
    runtime: str
    agreements: tuple[Agreement, ...] = ()
    samples: tuple[SampleSet, ...] = ()
    reason: str = ""
    executed_by: ExecutedBy = ""
    differences: tuple[Difference, ...] = ()
    reference_error: str = ""
    conversion: tuple[Agreement, ...] = ()


@dataclass(frozen=True)
class Compared:
    """One output of one sample: what eager gave, what the file gave.

    typical_rms: of the output over all samples, where the file's noise does not shrink with a sample's own output.
    """

    sample: str
    wanted: Array
    found: Array
    attainable_db: float | None = None
    typical_rms: float = 0.0


SNR_LIMIT_DB = 300.0
"""JSON has no infinity: equal outputs get this ratio, outputs with NaN its negative."""


def snr_db(wanted: Array, found: Array, typical_rms: float = 0.0) -> float | None:
    """Signal-to-noise ratio in dB, within +-SNR_LIMIT_DB; None when there is no signal.

    The signal is taken as no smaller than `typical_rms`: integers have the same step for a faint output.
    """
    reference = wanted.astype(np.float64).ravel()
    signal = max(float(np.square(reference).sum()), typical_rms**2 * reference.size)
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
    """Compare one output over all samples; another shape fails, and so does NaN where eager has none."""
    verdicts = [_judge_sample(one, tolerance) for one in compared]
    worst = min(verdicts, key=lambda v: (v.passed, SNR_LIMIT_DB if v.snr_db is None else v.snr_db), default=None)
    same_shape = [one for one in compared if one.wanted.shape == one.found.shape]
    cosines = [c for one in same_shape if (c := cosine(one.wanted, one.found)) is not None]
    top1 = sum(same_top1(one.wanted, one.found) for one in same_shape)
    return Agreement(
        output,
        len(compared),
        worst.snr_db if worst else None,
        max((v.max_abs for v in verdicts), default=0.0),
        min(cosines, default=None),
        top1 / len(compared) if logits and compared else None,
        worst.sample if worst else "",
        worst.asked_db if worst else tolerance.snr_db,
        tolerance,
        bool(verdicts) and all(v.passed for v in verdicts),
    )


@dataclass(frozen=True)
class _SampleVerdict:
    sample: str
    snr_db: float | None
    max_abs: float
    asked_db: float
    passed: bool


_NOTHING_ASKED = Tolerance(-SNR_LIMIT_DB, sys.float_info.max)


def _judge_sample(one: Compared, tolerance: Tolerance) -> _SampleVerdict:
    asked = tolerance.asked_db(one.attainable_db)
    if one.wanted.shape != one.found.shape:
        return _SampleVerdict(one.sample, -SNR_LIMIT_DB, sys.float_info.max, asked, False)
    ratio = snr_db(one.wanted, one.found, one.typical_rms)
    largest = float(np.abs(one.found.astype(np.float64) - one.wanted.astype(np.float64)).max(initial=0.0))
    largest = largest if math.isfinite(largest) else sys.float_info.max
    passed = largest <= tolerance.max_abs if ratio is None else ratio >= asked
    return _SampleVerdict(one.sample, ratio, largest, asked, passed)


def differ(
    names: Sequence[str], runtime: Sequence[Sequence[Compared]], reference: Sequence[Sequence[Compared]]
) -> tuple[Difference, ...]:
    """How far the reference evaluator is from the runtime, an output at a time; both hold the same samples in order."""
    made = []
    for i, name in enumerate(names):
        pairs = [
            Compared(one[i].sample, one[i].found, other[i].found) for one, other in zip(runtime, reference, strict=True)
        ]
        verdicts = [_judge_sample(pair, _NOTHING_ASKED) for pair in pairs]
        worst = min(verdicts, key=lambda v: SNR_LIMIT_DB if v.snr_db is None else v.snr_db)
        made.append(Difference(name, worst.snr_db, max(v.max_abs for v in verdicts), worst.sample))
    return tuple(made)


def prove(
    names: Sequence[str],
    compared: Iterable[Sequence[Compared]],
    tolerances: Sequence[Tolerance],
    logits: bool,
    runtime: str,
    samples: tuple[SampleSet, ...],
    executed_by: tuple[ExecutedBy, str] = ("runtime", ""),
) -> Proof:
    """Judge every output: `compared` holds, sample by sample, one comparison an output."""
    rows = list(compared)
    agreements = tuple(agree(name, [row[i] for row in rows], tolerances[i], logits) for i, name in enumerate(names))
    verdict: Verdict = "passed" if all(a.passed for a in agreements) else "failed"
    by, reason = executed_by
    return Proof(verdict, runtime, agreements, samples, reason, by)


def with_conversion(
    proof: Proof, names: Sequence[str], simulated: Sequence[Sequence[Compared]], tolerance: Tolerance, logits: bool
) -> Proof:
    """The proof of a quantized file, with its agreement with the simulation; as it is where there is none."""
    if not simulated:
        return proof
    made = tuple(agree(name, [row[i] for row in simulated], tolerance, logits) for i, name in enumerate(names))
    passed = proof.verdict == "passed" and all(a.passed for a in made)
    return replace(proof, verdict="passed" if passed else "failed", conversion=made)
