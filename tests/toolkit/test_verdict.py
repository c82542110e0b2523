"""The verdict: each reason by itself, and what outweighs what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from acmix.toolkit.conditions import Battery, Clock, Conditions, Gate, Identity, Reason, Sensor, State, Verdict
from acmix.toolkit.gate import obstacles, wait_until_ready
from acmix.toolkit.ratio import Ratio
from acmix.toolkit.verdict import SEVERITY, Judgement, Shape, judge

FULL = ((1_000_000, 100), (2_000_000, 1000))
CLOCK = Clock((0, 1), "performance", 2_000_000, 1_000_000, 2_000_000, 2_000_000, FULL)
BEFORE = State(
    100.0, (CLOCK,), (Sensor("cpu", 45.0),), (), {"throttled since boot": 0}, Battery(80, False, 30.0), False,
    busy_s=50.0, stolen_s=1.0, ours_s=10.0,
)  # fmt: skip
AFTER = replace(
    BEFORE,
    at_s=110.0,
    busy_s=60.0,
    ours_s=19.9,
    clocks=(replace(CLOCK, residency=((1_000_000, 100), (2_000_000, 2000))),),
)
QUIET = Conditions(1, (1,), "performance", {}, Identity("linux", emulation=()), before=BEFORE, after=AFTER)
FLAT = Shape("a", tuple(int(ns) for ns in np.random.default_rng(0).normal(1e6, 1e4, 300)), True)


def judged(conditions: Conditions = QUIET, shape: Shape = FLAT, cut: str = "") -> Judgement:
    return judge(conditions, [shape], cut)


def ending(**changes: Any) -> Conditions:
    return replace(QUIET, after=replace(AFTER, **changes))


def test_a_quiet_measurement_is_valid_without_any_reason() -> None:
    assert judged() == Judgement("valid")


@pytest.mark.parametrize(
    ("conditions", "verdict", "word"),
    [
        (ending(throttled_by=("firmware: throttled",)), "throttled", "firmware"),
        (ending(throttle_events={"throttled since boot": 1}), "throttled", "rose by 1"),
        (ending(low_power=True), "throttled", "power saver"),
        (
            ending(clocks=(replace(CLOCK, most_khz=1_500_000, residency=None),)),
            "throttled",
            "capped at 1500 of 2000 MHz",
        ),
        (ending(busy_s=65.0), "noisy", "used 0.51 processors"),
        (ending(stolen_s=1.5), "noisy", "hypervisor took 5%"),
        (ending(clocks=(replace(CLOCK, residency=((1_000_000, 600), (2_000_000, 1500))),)), "noisy", "changed clock"),
        (replace(QUIET, identity=Identity(emulation=("QEMU",))), "emulated", "no real device: QEMU"),
        (replace(QUIET, gate=Gate(10.0, (Reason("noisy", "hot at the start", "cool it"),))), "noisy", "hot"),
    ],
)
def test_each_condition_leads_to_its_verdict(conditions: Conditions, verdict: Verdict, word: str) -> None:
    found = judged(conditions)
    assert found.verdict == verdict
    assert [word in reason.what for reason in found.reasons] == [True]
    assert all(reason.cure for reason in found.reasons)


def test_a_clock_that_somebody_fixed_is_a_note_and_not_a_throttle() -> None:
    fixed = replace(CLOCK, least_khz=1_500_000, most_khz=1_500_000, hardware_khz=2_000_000, residency=None)
    found = judged(replace(QUIET, before=replace(BEFORE, clocks=(fixed,)), after=replace(AFTER, clocks=(fixed,))))
    assert found.verdict == "valid"
    assert found.notes == ("processors 0,1 fixed at 1500 MHz",)


def test_clocks_of_other_processors_may_move() -> None:
    moved = replace(CLOCK, cpus=(2, 3), residency=((1_000_000, 600), (2_000_000, 1500)))
    before = replace(BEFORE, clocks=(replace(CLOCK, cpus=(2, 3)),))
    assert judged(replace(ending(clocks=(moved,)), before=before)).verdict == "valid"


def test_a_spread_a_drift_and_a_cold_start_are_noise() -> None:
    spread = tuple(1_000_000 if i % 5 else 1_500_000 for i in range(300))
    drift = tuple(1_000_000 + 300 * i for i in range(300))
    for shape, word in (
        (replace(FLAT, latency_ns=spread), "1.50 times the median"),
        (replace(FLAT, latency_ns=drift), "drifted by +6%"),
        (replace(FLAT, is_steady=False), "no steady state"),
        (replace(FLAT, ratio=Ratio(1.0, 0.93, 1.07)), "known to ±7% only"),
    ):
        found = judged(shape=shape)
        assert (found.verdict, len(found.reasons)) == ("noisy", 1)
        assert word in found.reasons[0].what


def test_the_worst_reason_decides_and_the_others_stay() -> None:
    hot = ending(throttled_by=("hot",), busy_s=65.0)
    assert judged(hot).verdict == "throttled"
    assert judged(hot, cut="it was interrupted").verdict == "incomplete"
    found = judged(replace(hot, identity=Identity(emulation=("QEMU",))), cut="it was interrupted")
    assert [reason.leads_to for reason in found.reasons] == ["emulated", "incomplete", "throttled", "noisy"]
    assert found.verdict == SEVERITY[-1] == "emulated"


def test_what_is_unknown_is_said_and_condemns_nothing() -> None:
    silent = Conditions(1, (0,), "unknown", {}, before=State(1.0), after=State(2.0))
    found = judged(silent)
    assert found.verdict == "valid"
    assert found.notes[0] == "unknown here: clocks, temperatures, throttling, load"
    assert "emulated is unknown" in found.notes[1]


def test_the_gate_opens_at_once_for_a_quiet_device() -> None:
    states = iter([BEFORE, replace(BEFORE, at_s=100.5, ours_s=10.0)])
    assert wait_until_ready(lambda: next(states), 30.0, pytest.fail, lambda s: None) == Gate(0.5, ())


def test_the_gate_waits_until_the_device_has_cooled() -> None:
    temperatures = [80.0, 80.0, 75.0, 66.0, 60.0, 10.0]
    states = (replace(BEFORE, at_s=100.0 + i, sensors=(Sensor("cpu", c),)) for i, c in enumerate(temperatures))
    said: list[str] = []
    assert wait_until_ready(lambda: next(states), 30.0, said.append, lambda s: None) == Gate(4.0, ())
    assert len(said) == 3
    assert said[0].startswith("waiting for a quiet device, 29 s at most: cpu had 80 °C")


def test_what_the_gate_did_not_reach_is_kept() -> None:
    busy = (replace(BEFORE, at_s=100.0 + i, busy_s=50.0 + 0.9 * i) for i in range(99))
    gate = wait_until_ready(lambda: next(busy), 3.0, lambda word: None, lambda s: None)
    assert gate.waited_s == 3.0
    assert [(r.leads_to, "0.9 processors" in r.what) for r in gate.unmet] == [("noisy", True)]


def test_without_waiting_the_gate_looks_once() -> None:
    hot = replace(BEFORE, throttled_by=("a cooler",), battery=Battery(50, True, 44.0))
    gate = wait_until_ready(lambda: hot, 0.0, pytest.fail, lambda seconds: pytest.fail("it slept"))
    assert [r.leads_to for r in gate.unmet] == ["throttled", "noisy"]


def test_unknown_temperatures_and_loads_stop_nothing() -> None:
    assert obstacles(State(1.0), State(2.0)) == ()
