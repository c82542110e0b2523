"""What every calibration source can do beside Samples: give a part of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from acmix.toolkit.samples import Samples


class CalibrationSamples(Samples, Protocol):
    """Samples of which some can be picked, without reading the others."""

    def pick(self, positions: Sequence[int]) -> CalibrationSamples:
        """The samples at these positions, in the order given."""


def spread(total: int, count: int) -> tuple[int, ...]:
    """At most `count` positions of `total`, evenly over all, so that ordered classes are all seen."""
    return tuple(range(total)) if count >= total else tuple(i * total // count for i in range(count))
