"""When warm-up is over: detected from the runs themselves, not counted."""

from __future__ import annotations

import statistics

WINDOW_RUNS = 4
WINDOW_NS = 100_000_000
WINDOWS = 3
SPREAD = 1.03


class Warmth:
    """Watches one artifact's warm-up runs.

    Runs are gathered in windows of at least 4 runs and at least 0.1 s. The state is steady once the medians of
    the last three windows lie within 3 % of each other: caches are full, the clock has settled, threads are awake.
    """

    def __init__(self) -> None:
        self.runs = 0
        self._window: list[int] = []
        self._medians: list[float] = []

    def add(self, latency_ns: int) -> None:
        """One more run."""
        self.runs += 1
        self._window.append(latency_ns)
        if len(self._window) >= WINDOW_RUNS and sum(self._window) >= WINDOW_NS:
            self._medians = [*self._medians, statistics.median(self._window)][-WINDOWS:]
            self._window = []

    @property
    def is_steady(self) -> bool:
        """Whether the last three windows agree."""
        return len(self._medians) == WINDOWS and max(self._medians) <= SPREAD * min(self._medians)

    def gave_up(self, elapsed_s: float, limit_s: float) -> bool:
        """Whether waiting is over: seconds by the clock, though never before three windows could have filled."""
        return self.runs >= WINDOW_RUNS * WINDOWS and elapsed_s >= limit_s
