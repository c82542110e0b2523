"""State of a Mac: what pmset and sysctl tell without special rights. Written from Apple's manuals, never run."""

from __future__ import annotations

import re
from dataclasses import replace

from acmix.toolkit.conditions import Battery, Run, State
from acmix.toolkit.state.text import decimal, output_of

LIMIT = re.compile(r"(CPU_Speed_Limit|CPU_Scheduler_Limit)\s{0,20}=\s{0,20}([0-9]{1,3})", re.ASCII)
CHARGE = re.compile(r"\b([0-9]{1,3})%; ([a-zA-Z ]{1,30});", re.ASCII)
SAVER = re.compile(r"\blowpowermode\s{1,20}([01])\b", re.ASCII)
LOAD = re.compile(r"\{ ([0-9]{1,5}[.,][0-9]{1,4}) ", re.ASCII)


def add(state: State, run: Run) -> State:
    """Speed limits, battery, power saver and load."""
    limits = LIMIT.findall((output_of(run, "pmset", "-g", "therm") or "")[:4096])
    held = tuple(f"{name} is {value} %" for name, value in limits if int(value) < 100)
    charge = CHARGE.search((output_of(run, "pmset", "-g", "batt") or "")[:4096])
    saver = SAVER.search((output_of(run, "pmset", "-g") or "")[:8192])
    load = LOAD.search((output_of(run, "sysctl", "-n", "vm.loadavg") or "")[:200])
    return replace(
        state,
        throttled_by=held if limits else None,
        battery=Battery(float(charge[1]), charge[2] == "charging") if charge else None,
        low_power=saver[1] == "1" if saver else None,
        load_1min=decimal(load[1].replace(",", ".")) if load else None,
    )
