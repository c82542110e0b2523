"""State of an NVIDIA Jetson: power mode, rails, temperatures, over-current events."""

from __future__ import annotations

import re
from dataclasses import replace

from acmix.toolkit.conditions import Clock, ReadText, Run, Sensor, State
from acmix.toolkit.state.text import output_of, whole, word

# tegrastats never ends by itself; one line of it is enough.
ONE_LINE = "timeout 2 tegrastats --interval 200 | head -n 1"
HEAT = re.compile(r"\b([A-Za-z][A-Za-z0-9_]{0,15})@(-?[0-9]{1,3}(?:\.[0-9]{1,3})?)C\b", re.ASCII)
CORES = re.compile(r"\bCPU \[([^\]]{1,400})\]")
CORE = re.compile(r"[0-9]{1,3}%@([0-9]{1,5})", re.ASCII)
TOTAL_POWER = re.compile(r"\b(?:VDD_IN|POM_5V_IN|VIN_SYS_5V0) ([0-9]{1,7})(?:mW)?/", re.ASCII)
MODE = re.compile(r"NV Power Mode: ?([^\r\n]{1,60})")
MONITORS = 32
OVER_CURRENT_INPUTS = (1, 2, 3)


def add(state: State, read_text: ReadText, run: Run) -> State:
    """The generic state with what NVIDIA's own programs say."""
    mode = MODE.search((output_of(run, "nvpmodel", "-q") or "")[:4096])
    events = _over_current(read_text)
    if events:
        state = replace(state, throttle_events={**(state.throttle_events or {}), **events})
    line = (output_of(run, "sh", "-c", ONE_LINE) or "")[:4096].partition("\n")[0]
    return replace(add_tegrastats(state, line), power_mode=word(mode[1]) if mode else state.power_mode)


def add_tegrastats(state: State, line: str) -> State:
    """One line of tegrastats: temperatures, the clocks of the cores that are on, power of the whole board."""
    heats = tuple(Sensor(name, float(value)) for name, value in HEAT.findall(line))
    if heats:
        state = replace(state, sensors=(*(state.sensors or ()), *heats))
    power, cores = TOTAL_POWER.search(line), CORES.search(line)
    if cores and not state.clocks:
        found = [(cpu, CORE.fullmatch(text.strip())) for cpu, text in enumerate(cores[1].split(","))]
        clocks = tuple(Clock((cpu,), now_khz=int(core[1]) * 1000) for cpu, core in found if core)
        state = replace(state, clocks=clocks or None)
    return replace(state, power_mw=float(power[1])) if power else state


def _over_current(read_text: ReadText) -> dict[str, int]:
    """Counts by channel, over all monitors."""
    counts: dict[str, int] = {}
    for monitor in range(MONITORS):
        for channel in OVER_CURRENT_INPUTS:
            count = whole(read_text(f"/sys/class/hwmon/hwmon{monitor}/oc{channel}_event_cnt"))
            if count is not None:
                name = f"over-current events {channel}"
                counts[name] = counts.get(name, 0) + count
    return counts
