"""The ratio of two interleaved latencies, with an interval that honours drift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
CONFIDENCE = 0.95
Z = 1.959964
"""The normal quantile of that confidence."""
STUDENT_T = {1.0: 12.706, 2.0: 4.303, 3.0: 3.182}
"""Its t quantiles for the fewest degrees of freedom, where the expansion is too coarse."""
LEAST_ROUNDS = 8
MOST_GROUPS = 400


@dataclass(frozen=True)
class Ratio:
    """An estimate and its 95 % interval; low and high are None where there are too few rounds for one."""

    estimate: float
    low: float | None
    high: float | None

    @property
    def half_width(self) -> float | None:
        """Half the interval, relative to the estimate."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2 / self.estimate


def paired_ratio(processes: Sequence[tuple[Sequence[int], Sequence[int]]], seed: int = 0) -> Ratio:
    """other / base from runs interleaved A B B A; one (base, other) pair of samples for each restart of both.

    Samples 2k and 2k + 1 of both belong to one mirrored round: whatever drifts linearly cancels inside it, and
    each artifact ran once after itself and once after the other. A process gives the median over its rounds of the
    ratio of the round's geometric means; the estimate is the geometric mean of the processes.

    The interval resamples processes, because where the memory of one lies makes it faster or slower as long as it
    lives (Kalibera and Jones 2013). With one process it resamples blocks of n^(1/3) consecutive rounds in a circle
    (Politis and Romano 1992), because neighbours resemble each other. It is widened as Student's t is for so few
    processes, or blocks.
    """
    rounds = [r for r in (_log_ratios(base, other) for base, other in processes) if r.size]
    if not rounds:
        base, other = (np.concatenate([pair[side] for pair in processes]) for side in (0, 1))
        return Ratio(float(np.median(other) / np.median(base)), None, None)
    full = [_grouped(r) for r in rounds if r.size >= LEAST_ROUNDS // 2] or rounds
    centre = float(np.mean([np.median(r) for r in full]))
    if sum(r.size for r in full) < LEAST_ROUNDS:
        return Ratio(float(np.exp(centre)), None, None)
    low, high = _interval(full, centre, np.random.default_rng(seed))
    return Ratio(float(np.exp(centre)), low, high)


def _interval(
    processes: Sequence[npt.NDArray[np.float64]], centre: float, rng: np.random.Generator
) -> tuple[float, float]:
    count = len(processes)
    if count == 1:
        resampled = _resampled_medians(processes[0], rng)
        wider = _widening(processes[0].size / _block_length(processes[0].size))
    else:
        # The spread between processes holds that inside them already: resampling both would count it twice.
        medians = np.array([np.median(rounds) for rounds in processes])
        resampled = medians[rng.integers(0, count, (RESAMPLES, count))].mean(axis=1)
        wider = _widening(count)
    ends = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = np.exp(centre + wider * (ends - centre))
    return float(low), float(high)


def _log_ratios(base_ns: Sequence[int], other_ns: Sequence[int]) -> npt.NDArray[np.float64]:
    """One mean log ratio a mirrored round."""
    count = min(len(base_ns), len(other_ns)) // 2 * 2
    logs = [np.log(np.maximum(np.asarray(ns[:count], np.float64), 1.0)) for ns in (base_ns, other_ns)]
    rounds: npt.NDArray[np.float64] = (logs[1] - logs[0]).reshape(-1, 2).mean(axis=1)
    return rounds


def _grouped(rounds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """At most 400 medians of consecutive rounds: long measurements would not fit in memory resampled."""
    if rounds.size <= MOST_GROUPS:
        return rounds
    return np.array([np.median(part) for part in np.array_split(rounds, MOST_GROUPS)])


def _widening(parts: float) -> float:
    """What a percentile interval lacks with so few parts: Student's t over the normal quantile, and n over n - 1.

    t by its expansion in 1 / degrees of freedom (Cornish and Fisher), exact to 1 % where no table says more.
    """
    free = parts - 1
    t = Z + (Z**3 + Z) / (4 * free) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * free**2)
    return float(STUDENT_T.get(free, t) / Z * np.sqrt(parts / free))


def _block_length(rounds: int) -> int:
    return round(math.cbrt(rounds))


def _resampled_medians(values: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    count, length = values.size, _block_length(values.size)
    starts = rng.integers(0, count, (RESAMPLES, -(-count // length)))
    places = (starts[:, :, None] + np.arange(length)) % count
    medians: npt.NDArray[np.float64] = np.median(values[places.reshape(RESAMPLES, -1)[:, :count]], axis=1)
    return medians
