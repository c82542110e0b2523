"""What a user wants of exits: an operating point, as it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from acmix.toolkit.errors import UsageError

Aim = Literal["accuracy", "surely", "cost", "rates", "geometric", "thresholds"]
AIMS = "accuracy=0.5, surely=0.5, cost=12.5, rates=0.6,0.4, geometric=12 or thresholds=0.8"
LEAST_SURELY = 0.01
"""Points: over 16,000 photos on which nothing changes."""
GEOMETRIC_ROWS = 39
GEOMETRIC_UNIT = 20
"""Row p of the published tables lets q_k, proportional to (p / 20)^k, of the photos end at exit k."""


@dataclass(frozen=True)
class OperatingAim:
    """What a user wants of the exits, as written: accuracy=0.5 and so on."""

    aim: Aim
    values: tuple[float, ...]
    text: str


def parse_aim(text: str) -> OperatingAim:
    """accuracy=POINTS (least cost, so much regret at most), surely=POINTS (the same, and labels say at 95 % that no
    more right answers are lost), cost=MEAN (most accurate at that mean cost), rates=0.6,0.4 (shares that end at each
    stage), geometric=ROW, thresholds=0.8; raises UsageError for others.
    """
    aim, equals, rest = text.partition("=")
    try:
        values = tuple(float(part) for part in rest.split(",")) if equals else ()
    except ValueError:
        values = ()
    single = aim not in ("rates", "thresholds")
    if aim not in get_args(Aim) or not values or not np.isfinite(values).all() or (single and len(values) != 1):
        raise UsageError(f"--exits {text!r} is no operating point.\nWrite {AIMS}.")
    if min(values) < 0 or (aim == "rates" and abs(sum(values) - 1) > 1e-6):
        raise UsageError(f"--exits {text!r}: values are 0 or more, and rates sum to 1.\nWrite {AIMS}.")
    if aim == "surely" and values[0] < LEAST_SURELY:
        raise UsageError(
            f"--exits {text!r}: no number of photos shows that next to nothing is lost.\n"
            f"Write surely=0.5; {LEAST_SURELY:g} is the least."
        )
    if aim == "geometric" and not 1 <= values[0] <= GEOMETRIC_ROWS:
        raise UsageError(f"--exits {text!r}: the family has the rows 1 to {GEOMETRIC_ROWS}.\nWrite geometric=12.")
    return OperatingAim(cast(Aim, aim), values, text)
