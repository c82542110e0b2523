"""State of an Android device, as the shell user may ask for it."""

from __future__ import annotations

import re
from dataclasses import replace

from acmix.toolkit.conditions import Battery, Run, Sensor, State
from acmix.toolkit.state.text import decimal, output_of, whole, word

PROPERTY = re.compile(r"\[([^\]\r\n]{1,92})\]: \[([^\r\n]{0,400})\]")
STATUS = re.compile(r"Thermal Status: ([0-6])", re.ASCII)
STATUSES = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
TEMPERATURE = re.compile(
    r"Temperature\{mValue=(-?[0-9]{1,4}(?:\.[0-9]{1,9})?), mType=(-?[0-9]{1,3}), mName=([^,}\r\n]{1,60}), "
    r"mStatus=([0-6])\}",
    re.ASCII,
)
CURRENT, AFTER_CURRENT = "Current temperatures from HAL", "Current cooling devices"
KINDS = {0: "cpu", 1: "gpu", 2: "battery", 3: "skin", 9: "npu"}
BATTERY_CHARGING = 2


def properties(run: Run) -> dict[str, str]:
    """Everything that getprop lists; {} where there is no Android."""
    return parse_properties(output_of(run, "getprop") or "")


def parse_properties(text: str) -> dict[str, str]:
    """Lines of '[name]: [value]'; others are passed over."""
    matches = (PROPERTY.fullmatch(line.strip()) for line in text.splitlines()[:5000])
    return {found[1]: found[2] for found in matches if found}


def add(state: State, run: Run, thorough: bool) -> State:
    """The generic state with what Android's services say; battery and power saver only when thorough."""
    state = add_thermal(state, output_of(run, "dumpsys", "thermalservice") or "")
    if not thorough:
        return state
    battery = parse_battery(output_of(run, "dumpsys", "battery") or "")
    saver = whole(output_of(run, "settings", "get", "global", "low_power"))
    return replace(state, battery=battery or state.battery, low_power=None if saver is None else saver == 1)


def add_thermal(state: State, text: str) -> State:
    """`dumpsys thermalservice`: the status that counts as throttling from 1 (light) on, and temperatures now.

    The same lines appear twice, cached and from the hardware: the later ones are now.
    """
    status = STATUS.search(text)
    if status:
        level = int(status[1])
        now = (f"Android's thermal status is {STATUSES[level]}",) if level else ()
        state = replace(state, throttled_by=(*(state.throttled_by or ()), *now))
    _, marker, current = text.partition(CURRENT)
    current = current.partition(AFTER_CURRENT)[0] if marker else text
    found = tuple(
        Sensor(f"{KINDS.get(int(kind), f'type {kind}')} {word(name)}", float(value))
        for value, kind, name, _ in TEMPERATURE.findall(current)
    )
    # Thermal zones are often closed to the shell; where they are open, the service repeats them.
    return replace(state, sensors=found) if found else state


def parse_battery(text: str) -> Battery | None:
    """`dumpsys battery`: level over scale, status 2 is charging, temperature in tenths of a degree."""
    values = dict(line.strip().partition(": ")[::2] for line in text.splitlines()[:200])
    level, scale, status = (whole(values.get(key)) for key in ("level", "scale", "status"))
    tenths = decimal(values.get("temperature"))
    if level is None and status is None:
        return None
    percent = None if level is None else 100 * level / (scale or 100)
    return Battery(
        percent, None if status is None else status == BATTERY_CHARGING, None if tenths is None else tenths / 10
    )
