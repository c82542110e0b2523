"""State of a Raspberry Pi: what its firmware knows of voltage and throttling."""

from __future__ import annotations

import re
from dataclasses import replace

from acmix.toolkit.conditions import ReadText, Run, Sensor, State
from acmix.toolkit.state.text import output_of

FIRMWARE_FILE = "/sys/devices/platform/soc/soc:firmware/get_throttled"
NOW = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
SINCE_BOOT = 16
"""The same four bits, so much higher: they stay set until the next boot."""
THROTTLED = re.compile(r"\s*(?:throttled=)?(?:0x)?([0-9a-f]{1,8})\s*", re.IGNORECASE | re.ASCII)
TEMPERATURE = re.compile(r"\s*temp=([0-9]{1,3}(?:\.[0-9]{1,3})?)'C\s*", re.ASCII)
FREQUENCY = re.compile(r"\s*frequency\([0-9]{1,4}\)=([0-9]{1,12})\s*", re.ASCII)


def throttled_bits(text: str | None) -> int | None:
    """`throttled=0x50005` of vcgencmd, or the bare number of the kernel's file (hexadecimal too)."""
    found = THROTTLED.fullmatch(text[:64]) if text else None
    return int(found[1], 16) if found else None


def add(state: State, read_text: ReadText, run: Run) -> State:
    """The generic state with what the firmware says; the true clock replaces the one that Linux asked for."""
    bits = throttled_bits(output_of(run, "vcgencmd", "get_throttled") or read_text(FIRMWARE_FILE))
    if bits is not None:
        now = tuple(f"firmware: {name}" for bit, name in NOW.items() if bits >> bit & 1)
        events = {f"{name} since boot": bits >> SINCE_BOOT + bit & 1 for bit, name in NOW.items()}
        state = replace(
            state,
            throttled_by=(*(state.throttled_by or ()), *now),
            throttle_events={**(state.throttle_events or {}), **events},
        )
    heat = TEMPERATURE.fullmatch((output_of(run, "vcgencmd", "measure_temp") or "")[:64])
    if heat:
        state = replace(state, sensors=(*(state.sensors or ()), Sensor("soc (firmware)", float(heat[1]))))
    clock = FREQUENCY.fullmatch((output_of(run, "vcgencmd", "measure_clock", "arm") or "")[:64])
    if clock and state.clocks:
        state = replace(state, clocks=tuple(replace(c, now_khz=int(clock[1]) // 1000) for c in state.clocks))
    return state
