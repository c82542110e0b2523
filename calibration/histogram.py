"""A histogram that grows with its values in bounded memory, and from which nothing is smeared when it grows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]

BINS = 4096
AT_ONCE = 2**18
"""So many values are counted at once: what is made of them stays in a cache. A million take three times as long."""
LEAST_EXPONENT = -100
"""Of the bins' width, so that its inverse is a float32."""


@dataclass
class Histogram:
    """Counts and sums of values in at most BINS bins of width 2 ** exponent, aligned to 0.

    Bin i holds the values of [i * width, (i + 1) * width), where i runs from `first`. When a value lies outside,
    the width doubles and neighbours are added up, which is exact: the same values give the same counts in any
    order (torch's HistogramObserver spreads old bins over new ones instead). low to high holds 0, as ranges do, and
    at least half of the bins. Zeros are counted apart: every integer grid expresses them exactly.
    """

    low: float = 0.0
    high: float = 0.0
    zeros: int = 0
    exponent: int = LEAST_EXPONENT
    first: int = 0
    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))
    sums: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))

    def add(self, values: Tensor) -> None:
        """Count the values of a floating tensor of any shape; they are finite."""
        flat = values.detach().reshape(-1)
        flat = flat if flat.dtype == torch.float64 else flat.float()
        if not flat.numel():
            return
        low, high = (float(end) for end in torch.aminmax(flat))
        self._cover(min(self.low, low), max(self.high, high))
        for part in torch.split(flat, AT_ONCE):
            # No bin is further than BINS from 0, whatever the values.
            place = torch.floor(part * 2.0**-self.exponent).int().sub_(self.first)
            self.counts += torch.bincount(place, minlength=BINS)
            self.sums += torch.bincount(place, weights=part.double(), minlength=BINS)
            zeros = int((part == 0).sum())
            self.zeros += zeros
            self.counts[-self.first] -= zeros

    def _cover(self, low: float, high: float) -> None:
        if (low, high) == (self.low, self.high):
            return
        exponent = fitting_exponent(low, high)
        first = math.floor(low * 2.0**-exponent)
        used = self.counts > 0
        # int64 has no shift by more.
        shift = min(exponent - self.exponent, 63)
        place = ((self.first + torch.arange(BINS)) >> shift)[used] - first
        self.counts = torch.zeros_like(self.counts).index_add_(0, place, self.counts[used])
        self.sums = torch.zeros_like(self.sums).index_add_(0, place, self.sums[used])
        self.low, self.high, self.exponent, self.first = low, high, exponent, first

    @property
    def total(self) -> int:
        """How many values were counted, zeros included."""
        return int(self.counts.sum()) + self.zeros

    def occupied(self) -> tuple[Floats, Floats]:
        """The mean value and the count of each bin that holds a value other than 0, ascending."""
        used = self.counts > 0
        counts = self.counts[used].double()
        return (self.sums[used] / counts).numpy(), counts.numpy()

    def quantile(self, share: float) -> float:
        """The value below which this share of all values lies, linear within a bin; 0 when there is none."""
        counts = self.counts.double()
        if self.zeros:
            counts[-self.first] += self.zeros
        reached = torch.cumsum(counts, 0).numpy()
        if reached[-1] == 0.0:
            return 0.0
        wanted = share * reached[-1]
        place = int(np.searchsorted(reached, wanted))
        inside = (wanted - (reached[place] - float(counts[place]))) / max(float(counts[place]), 1.0)
        value = (self.first + place + min(max(inside, 0.0), 1.0)) * 2.0**self.exponent
        return float(min(max(value, self.low), self.high))


def fitting_exponent(low: float, high: float) -> int:
    """Of the least width with which BINS bins aligned to 0 cover low to high."""
    exponent = max(math.frexp((high - low) / BINS)[1] - 1, LEAST_EXPONENT)
    while math.floor(high * 2.0**-exponent) - math.floor(low * 2.0**-exponent) >= BINS:
        exponent += 1
    return exponent
