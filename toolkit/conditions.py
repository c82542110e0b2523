"""The conditions of a measurement: what a device says of itself before, during and after. Unknown is None, never 0."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from acmix.toolkit.device import Completed

Kind = Literal["linux", "raspberry_pi", "jetson", "android", "macos", "unknown"]
Verdict = Literal["valid", "noisy", "throttled", "incomplete", "emulated"]
ReadText = Callable[[str], str | None]
"""A file of the device, None when it is missing or unreadable."""

PROCESSOR_SENSOR = re.compile(r"cpu|gpu|soc|pkg|core|tj\b|k10temp|big|little|^ap$", re.IGNORECASE)


class Run(Protocol):
    """One command on the device; the same as Transport.run."""

    def __call__(self, command: Sequence[str], *, timeout_s: float) -> Completed: ...


@dataclass(frozen=True)
class Reason:
    """Something that speaks against a number: the verdict that it leads to, what was seen, what to do."""

    leads_to: Verdict
    what: str
    cure: str


@dataclass(frozen=True)
class Clock:
    """Processors that share one clock. most_khz: allowed now; hardware_khz: what the silicon can do.

    residency: (kHz, ticks of 10 ms at it since boot); only differences mean something.
    """

    cpus: tuple[int, ...]
    governor: str | None = None
    now_khz: int | None = None
    least_khz: int | None = None
    most_khz: int | None = None
    hardware_khz: int | None = None
    residency: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class Sensor:
    """One thermometer."""

    name: str
    celsius: float


@dataclass(frozen=True)
class Battery:
    """The battery; percent of its charge."""

    percent: float | None = None
    charging: bool | None = None
    celsius: float | None = None


@dataclass(frozen=True)
class State:
    """One reading. Fields that the device does not tell are None.

    at_s: clock of the measuring host, for differences.  throttled_by: what holds the device back now, () when it
    was asked and nothing does.  throttle_events: counters and sticky bits that only grow.  busy_s, stolen_s: of
    all processors since boot (stolen: by the hypervisor).  stalled_s: time in which something waited for a
    processor.  ours_s: of the measuring processes themselves.
    """

    at_s: float = 0.0
    clocks: tuple[Clock, ...] | None = None
    sensors: tuple[Sensor, ...] | None = None
    throttled_by: tuple[str, ...] | None = None
    throttle_events: dict[str, int] | None = None
    battery: Battery | None = None
    low_power: bool | None = None
    power_mode: str | None = None
    power_mw: float | None = None
    load_1min: float | None = None
    busy_s: float | None = None
    stolen_s: float | None = None
    stalled_s: float | None = None
    ours_s: float | None = None
    busiest: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Identity:
    """What kind of device it is. emulation: the evidence for it, () when it was looked for and not found."""

    kind: Kind = "unknown"
    model: str | None = None
    soc: str | None = None
    system: str | None = None
    virtual: bool | None = None
    emulation: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Gate:
    """The wait before a measurement, and what was still in its way at the end of it."""

    waited_s: float = 0.0
    unmet: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Conditions:
    """Where and how a measurement was taken."""

    threads: int
    cpus: tuple[int, ...]
    governor: str
    machine: dict[str, str]
    identity: Identity = Identity()
    gate: Gate = Gate()
    before: State | None = None
    during: tuple[State, ...] = ()
    after: State | None = None

    @property
    def states(self) -> tuple[State, ...]:
        """Every reading, in order."""
        return tuple(s for s in (self.before, *self.during, self.after) if s is not None)


def hottest(state: State) -> Sensor | None:
    """The hottest sensor of the processors, of all sensors where none is named so."""
    sensors = [s for s in state.sensors or () if -40 < s.celsius < 150]
    near = [s for s in sensors if PROCESSOR_SENSOR.search(s.name)]
    return max(near or sensors, key=lambda s: s.celsius, default=None)


def difference(before: float | None, after: float | None) -> float | None:
    """How much a counter grew; None when either reading is unknown, or when it went back (a reboot)."""
    if before is None or after is None or after < before:
        return None
    return after - before


def other_load(before: State, after: State) -> float | None:
    """Processors that others kept busy between two readings, on average; our own share is taken off where known."""
    busy, elapsed = difference(before.busy_s, after.busy_s), difference(before.at_s, after.at_s)
    if busy is None or not elapsed:
        return None
    if before.ours_s is None or after.ours_s is None:
        return busy / elapsed
    ours = difference(before.ours_s, after.ours_s)
    # The counters tick in 10 ms, so the difference may come out below zero.
    return None if ours is None else max(0.0, (busy - ours) / elapsed)


def stolen_share(before: State, after: State) -> float | None:
    """Processors that the hypervisor took away between two readings, on average."""
    stolen, elapsed = difference(before.stolen_s, after.stolen_s), difference(before.at_s, after.at_s)
    return None if stolen is None or not elapsed else stolen / elapsed


def residency(before: Clock, after: Clock) -> dict[int, float] | None:
    """Share of the time between two readings at each frequency in kHz; None when the kernel does not count."""
    if before.residency is None or after.residency is None:
        return None
    earlier = dict(before.residency)
    ticks = {khz: count - earlier.get(khz, 0) for khz, count in after.residency}
    total = sum(ticks.values())
    if total <= 0 or min(ticks.values()) < 0:
        return None
    return {khz: count / total for khz, count in ticks.items() if count}


def grown_events(before: State, after: State) -> dict[str, int]:
    """Throttle counters and sticky bits that grew between two readings."""
    earlier = before.throttle_events
    if earlier is None or after.throttle_events is None:
        return {}
    return {k: v - earlier[k] for k, v in after.throttle_events.items() if k in earlier and v > earlier[k]}
