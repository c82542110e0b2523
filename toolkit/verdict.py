"""Whether to believe a measurement: valid, noisy, throttled, incomplete or emulated, with reasons and cures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from acmix.toolkit.conditions import (
    Clock,
    Conditions,
    Reason,
    State,
    Verdict,
    grown_events,
    other_load,
    residency,
    stolen_share,
)
from acmix.toolkit.gate import IDLE_CURE, IDLE_PROCESSORS, THROTTLED_CURE
from acmix.toolkit.ratio import Ratio

SEVERITY: tuple[Verdict, ...] = ("valid", "noisy", "throttled", "incomplete", "emulated")
SPREAD_LIMIT = 1.25
DRIFT_LIMIT = 0.05
RATIO_LIMIT = 0.05
STOLEN_LIMIT = 0.02
RESIDENCY_LIMIT = 0.9
LEAST_RUNS_FOR_SHAPE = 12
LONGER_CURE = "Measure longer (--preset normal), on a machine that does nothing else."
GOVERNOR_CURE = "Set the governor to performance, or fix the clock, and measure again."
CAPPED_CURE = "Let it cool or lift the limit; to measure at one clock, set its least and most to the same."
EMULATED_CURE = "Use it to compare outputs and operators; take latency on the device itself."


@dataclass(frozen=True)
class Shape:
    """How one artifact's samples lie: what the verdict needs to know of them."""

    artifact: str
    latency_ns: tuple[int, ...]
    is_steady: bool
    ratio: Ratio | None = None


@dataclass(frozen=True)
class Judgement:
    """The verdict of a measurement, the worst that a reason leads to. notes speak neither for nor against it."""

    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = ()


def judge(conditions: Conditions, shapes: Sequence[Shape], cut: str) -> Judgement:
    """The verdict. cut: why the measurement ended early, '' when it did not."""
    reasons = [*_emulated(conditions), *_cut(cut), *conditions.gate.unmet, *_throttled(conditions), *_noisy(conditions)]
    for shape in shapes:
        reasons += _shape(shape)
    worst: Verdict = max((reason.leads_to for reason in reasons), key=SEVERITY.index, default="valid")
    return Judgement(worst, tuple(dict.fromkeys(reasons)), tuple(_notes(conditions)))


def _emulated(conditions: Conditions) -> list[Reason]:
    signs = conditions.identity.emulation or ()
    return [Reason("emulated", f"this is no real device: {sign}", EMULATED_CURE) for sign in signs]


def _cut(cut: str) -> list[Reason]:
    return [Reason("incomplete", cut, "Measure again; the samples taken until then are kept.")] if cut else []


def _throttled(conditions: Conditions) -> list[Reason]:
    states = conditions.states
    held = dict.fromkeys(what for state in states for what in state.throttled_by or ())
    found = [f"while measuring: {what}" for what in held]
    if states:
        found += [f"{what} rose by {by}" for what, by in grown_events(states[0], states[-1]).items()]
    reasons = [Reason("throttled", what, THROTTLED_CURE) for what in found]
    reasons += [Reason("throttled", what, CAPPED_CURE) for what in _capped(states)]
    if any(state.low_power for state in states):
        reasons.append(Reason("throttled", "the power saver is on", "Turn it off, charge the battery, measure again."))
    return reasons


def _capped(states: Sequence[State]) -> list[str]:
    """Clocks held below what the silicon can do, unless least and most are equal: then somebody fixed them."""
    found = {}
    for state in states:
        for clock in state.clocks or ():
            most, top = clock.most_khz, clock.hardware_khz
            if most is not None and top is not None and most < top and clock.least_khz != most:
                found[clock.cpus] = f"{_named(clock)} capped at {most / 1000:.0f} of {top / 1000:.0f} MHz"
    return list(found.values())


def _named(clock: Clock) -> str:
    return f"processor{'s' * (len(clock.cpus) > 1)} {','.join(map(str, clock.cpus))}"


def _noisy(conditions: Conditions) -> list[Reason]:
    before, after = conditions.before, conditions.after
    if before is None or after is None:
        return []
    reasons = []
    load, stolen = other_load(before, after), stolen_share(before, after)
    # Without our own share the load would be ours.
    if load is not None and after.ours_s is not None and load > IDLE_PROCESSORS:
        who = f": {', '.join(after.busiest)}" if after.busiest else ""
        reasons.append(Reason("noisy", f"other processes used {load:.2f} processors{who}", IDLE_CURE))
    if stolen is not None and stolen > STOLEN_LIMIT:
        cure = "Measure on a machine of your own, or when its neighbours sleep."
        reasons.append(Reason("noisy", f"the hypervisor took {stolen:.0%} of a processor", cure))
    for earlier, later in zip(before.clocks or (), after.clocks or (), strict=False):
        shares = residency(earlier, later) if _is_used(later, conditions.cpus) else None
        if shares and max(shares.values()) < RESIDENCY_LIMIT:
            most, share = max(shares.items(), key=lambda item: item[1])
            what = (
                f"{_named(later)} changed clock: {share:.0%} of the time at {most / 1000:.0f} MHz, the rest elsewhere"
            )
            reasons.append(Reason("noisy", what, GOVERNOR_CURE))
    return reasons


def _is_used(clock: Clock, cpus: Sequence[int]) -> bool:
    return not cpus or bool(set(clock.cpus) & set(cpus))


def _shape(shape: Shape) -> list[Reason]:
    found = []
    samples = np.asarray(shape.latency_ns, np.float64)
    if not shape.is_steady:
        found.append(f"{shape.artifact} reached no steady state in its warm-up")
    if samples.size >= LEAST_RUNS_FOR_SHAPE:
        p50, p90 = np.percentile(samples, [50, 90])
        first, last = (float(np.median(part)) for part in np.array_split(samples, 3)[::2])
        if p90 > SPREAD_LIMIT * p50:
            found.append(f"one in ten runs of {shape.artifact} took {p90 / p50:.2f} times the median or longer")
        if abs(last / first - 1) > DRIFT_LIMIT:
            found.append(f"{shape.artifact} drifted by {last / first - 1:+.0%} from the first third to the last")
    width = shape.ratio.half_width if shape.ratio else None
    if width is not None and width > RATIO_LIMIT:
        found.append(f"the ratio of {shape.artifact} is known to ±{width:.0%} only")
    return [Reason("noisy", what, LONGER_CURE) for what in found]


def _notes(conditions: Conditions) -> list[str]:
    states = conditions.states
    if not states:
        return ["the device told nothing of its state"]
    told = {
        "clocks": any(s.clocks for s in states),
        "temperatures": any(s.sensors for s in states),
        "throttling": any(s.throttled_by is not None or s.throttle_events is not None for s in states),
        "load": any(s.busy_s is not None for s in states),
    }
    unknown = [name for name, known in told.items() if not known]
    notes = [f"unknown here: {', '.join(unknown)}"] if unknown else []
    if conditions.identity.emulation is None:
        notes.append("whether the device is emulated is unknown")
    if any(s.battery and s.battery.charging for s in states):
        notes.append("the battery was charging, which warms the device")
    for clock in states[-1].clocks or ():
        if clock.least_khz is not None and clock.least_khz == clock.most_khz and clock.most_khz != clock.hardware_khz:
            notes.append(f"{_named(clock)} fixed at {clock.most_khz / 1000:.0f} MHz")
    old = {k for k, v in (states[0].throttle_events or {}).items() if v and k.endswith("since boot")}
    return notes + [f"{what}, before this measurement" for what in sorted(old)]
