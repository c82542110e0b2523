"""The start gate: a measurement waits until the device is cool, idle and not held back."""

from __future__ import annotations

import time
from collections.abc import Callable

from acmix.toolkit.conditions import Gate, Reason, State, hottest, other_load

IDLE_PROCESSORS = 0.25
"""So much of one processor others may use."""
COOL_CELSIUS = 65.0
COOL_BATTERY_CELSIUS = 38.0
LOOK_S = 0.5
IDLE_CURE = "End what else runs there, or measure when it is done (--wait SECONDS waits longer)."
COOL_CURE = "Let the device cool, away from the sun and out of its case (--wait SECONDS waits longer)."
THROTTLED_CURE = "Let it cool, give it a better power supply, and measure again."


def obstacles(before: State, now: State) -> tuple[Reason, ...]:
    """What speaks against starting now; the load is that between the two readings. Unknowns stop nothing."""
    found = [Reason("throttled", f"before the start: {what}", THROTTLED_CURE) for what in now.throttled_by or ()]
    load, hot = other_load(before, now), hottest(now)
    if load is not None and load > IDLE_PROCESSORS:
        found.append(
            Reason(
                "noisy", f"before the start, others used {load:.1f} processors (at most {IDLE_PROCESSORS})", IDLE_CURE
            )
        )
    if hot is not None and hot.celsius > COOL_CELSIUS:
        found.append(
            Reason("noisy", f"{hot.name} had {hot.celsius:.0f} °C at the start (at most {COOL_CELSIUS:.0f})", COOL_CURE)
        )
    heat = now.battery.celsius if now.battery else None
    if heat is not None and heat > COOL_BATTERY_CELSIUS:
        found.append(
            Reason(
                "noisy", f"the battery had {heat:.0f} °C at the start (at most {COOL_BATTERY_CELSIUS:.0f})", COOL_CURE
            )
        )
    return tuple(found)


def wait_until_ready(
    read: Callable[[], State],
    limit_s: float,
    report: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Gate:
    """Read until nothing is in the way, for at most limit_s; 0 looks once and never waits.

    What is in the way at the end is in the answer, and becomes a reason of the verdict.
    """
    last = read()
    if limit_s <= 0:
        return Gate(0.0, obstacles(last, last))
    begin = last.at_s
    while True:
        sleep(LOOK_S)
        now = read()
        unmet, waited = obstacles(last, now), now.at_s - begin
        if not unmet or waited >= limit_s:
            return Gate(round(waited, 1), unmet)
        report(f"waiting for a quiet device, {limit_s - waited:.0f} s at most: {unmet[0].what}")
        last = now
