"""What counted answers say of the share of right ones: intervals of one model, and of one against another."""

from __future__ import annotations

import math

import numpy as np

from acmix.toolkit.policy import Interval

TWO_SIDED = 1.959964
"""Standard deviations of a normal between which 95 % lie."""
ONE_SIDED = 1.644854
"""Below which 95 % lie."""
CELLS = 4
"""Both right, both wrong, one right, the other right: what two models say of a photo."""


def accuracy_interval(share: float, photos: int) -> Interval:
    """A share with Wilson's interval at 95 %, which is sound at 0 and 1, where a bootstrap has no width."""
    z = TWO_SIDED
    middle = (share + z * z / (2 * photos)) / (1 + z * z / photos)
    half = z / (1 + z * z / photos) * np.sqrt(share * (1 - share) / photos + z * z / (4 * photos**2))
    return Interval(share, max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def most_lost(lost: int, gained: int, photos: int) -> float:
    """The largest share of right answers that paired counts leave one model to lose against another, at 95 %.

    lost: photos that the other alone had right; gained: that this one alone has.  Most photos are right or wrong for
    both, which two intervals of their own would not know.  Wald's bound with half a photo more in each cell (Agresti
    and Min, 2005): it has a width where nothing was lost.
    """
    b, c, n = lost + 0.5, gained + 0.5, photos + CELLS / 2
    mean = (b - c) / n
    return mean + ONE_SIDED * math.sqrt(b + c - n * mean * mean) / n


def fewest_photos(most: float) -> int:
    """How many photos `most_lost` needs to be no more than `most`, above 0, if the two always agree."""
    return math.ceil(ONE_SIDED / most - CELLS / 2)
