"""State of any Linux: clocks, thermometers, coolers, load, from sysfs and procfs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from acmix.toolkit.conditions import Battery, Clock, ReadText, Run, Sensor, State
from acmix.toolkit.state.text import cpu_list, decimal, milli, output_of, whole, word

CPU = "/sys/devices/system/cpu"
TICKS_PER_S = 100.0
"""USER_HZ: what procfs and time_in_state count in, on every architecture that runs here."""
GAP = 8
"""Numbered entries may have holes: so many misses in a row end the search."""
SLOWS_PROCESSORS = re.compile(r"cpu|processor|devfreq|gpu|kgsl|powerclamp", re.IGNORECASE)
PROCESSOR_MONITORS = frozenset({"coretemp", "k10temp", "zenpower", "cpu_thermal", "scpi_sensors"})
BATTERIES = ("BAT0", "BAT1", "battery")
BULK = (
    f"{CPU}/present",
    f"{CPU}/cpufreq/policy*/*",
    f"{CPU}/cpufreq/policy*/stats/time_in_state",
    f"{CPU}/cpu*/thermal_throttle/*_throttle_count",
    f"{CPU}/cpu0/regs/identification/midr_el1",
    "/sys/class/thermal/thermal_zone*/type",
    "/sys/class/thermal/thermal_zone*/temp",
    "/sys/class/thermal/cooling_device*/type",
    "/sys/class/thermal/cooling_device*/cur_state",
    "/sys/class/hwmon/hwmon*/name",
    "/sys/class/hwmon/hwmon*/temp1_input",
    "/sys/class/hwmon/hwmon*/oc*_event_cnt",
    "/sys/class/power_supply/*/capacity",
    "/sys/class/power_supply/*/status",
    "/sys/class/power_supply/*/temp",
    "/sys/firmware/acpi/platform_profile",
    "/proc/stat",
    "/proc/loadavg",
    "/proc/pressure/cpu",
)


def snapshot(run: Run) -> ReadText | None:
    """All the files that the readers below ask for, in one command: a remote device pays for every round trip."""
    # grep complains of files it may not read by its exit code, so that one is not asked for.
    text = output_of(run, "sh", "-c", f'grep -s -H "" {" ".join(BULK)}; true')
    if not text:
        return None
    files: dict[str, list[str]] = {}
    for line in text.splitlines():
        path, colon, content = line.partition(":")
        if colon and path.startswith("/"):
            files.setdefault(path, []).append(content)
    return lambda path: "\n".join(files[path]) if path in files else None


def read(read_text: ReadText) -> State:
    """Everything that sysfs and procfs tell."""
    zones, held = sensors(read_text), throttled_by(read_text)
    busy, stolen = busy_and_stolen(read_text("/proc/stat"))
    return State(
        clocks=clocks(read_text),
        sensors=zones,
        throttled_by=held,
        throttle_events=throttle_counts(read_text),
        battery=battery(read_text),
        power_mode=word(read_text("/sys/firmware/acpi/platform_profile")),
        load_1min=decimal((read_text("/proc/loadavg") or "").split(" ")[0]),
        busy_s=busy,
        stolen_s=stolen,
        stalled_s=stalled(read_text("/proc/pressure/cpu")),
    )


def clocks(read_text: ReadText) -> tuple[Clock, ...] | None:
    """One clock a cpufreq policy; None where there is no cpufreq, as on virtual machines."""
    found = []
    for cpu in cpu_list(read_text(f"{CPU}/present")) or ():
        policy = f"{CPU}/cpufreq/policy{cpu}"
        related = cpu_list(read_text(f"{policy}/related_cpus"))
        if related is None:
            continue
        found.append(
            Clock(
                related,
                word(read_text(f"{policy}/scaling_governor")),
                whole(read_text(f"{policy}/scaling_cur_freq")),
                whole(read_text(f"{policy}/scaling_min_freq")),
                whole(read_text(f"{policy}/scaling_max_freq")),
                whole(read_text(f"{policy}/cpuinfo_max_freq")),
                time_in_state(read_text(f"{policy}/stats/time_in_state")),
            )
        )
    return tuple(found) or None


def time_in_state(text: str | None) -> tuple[tuple[int, int], ...] | None:
    """Lines of 'kHz ticks'; None when any line is something else."""
    rows = [line.split() for line in (text or "").splitlines()[:1000]]
    pairs = [(whole(row[0]), whole(row[1])) for row in rows if len(row) == 2]
    known = tuple((khz, ticks) for khz, ticks in pairs if khz is not None and ticks is not None and ticks >= 0)
    return known if known and len(known) == len(rows) else None


def _numbered(read_text: ReadText, prefix: str, leaf: str) -> Iterator[tuple[str, str]]:
    """(folder, text of its leaf) of prefix0, prefix1 and so on."""
    misses = 0
    for number in range(256):
        text = read_text(f"{prefix}{number}/{leaf}")
        misses = 0 if text is not None else misses + 1
        if misses > GAP:
            return
        if text is not None:
            yield f"{prefix}{number}", text


def sensors(read_text: ReadText) -> tuple[Sensor, ...] | None:
    """Thermal zones, and the processor's own hardware monitor where that is no zone (AMD)."""
    found = [
        (kind, milli(whole(read_text(f"{zone}/temp"))))
        for zone, kind in _numbered(read_text, "/sys/class/thermal/thermal_zone", "type")
    ]
    found += [
        (name, milli(whole(read_text(f"{monitor}/temp1_input"))))
        for monitor, name in _numbered(read_text, "/sys/class/hwmon/hwmon", "name")
        if name.strip() in PROCESSOR_MONITORS
    ]
    return tuple(Sensor(word(name) or "unnamed", value) for name, value in found if value is not None) or None


def throttled_by(read_text: ReadText) -> tuple[str, ...] | None:
    """Coolers that slow a processor and are at work; None where the device has no such cooler."""
    known, active = False, []
    for device, kind in _numbered(read_text, "/sys/class/thermal/cooling_device", "type"):
        level = whole(read_text(f"{device}/cur_state"))
        if level is None or not SLOWS_PROCESSORS.search(kind[:80]):
            continue
        known = True
        if level > 0:
            active.append(f"cooler {word(kind)} at level {level}")
    return tuple(active) if known else None


def throttle_counts(read_text: ReadText) -> dict[str, int] | None:
    """Thermal throttle counters of x86 processors, summed over them."""
    totals: dict[str, int] = {}
    for cpu in cpu_list(read_text(f"{CPU}/present")) or ():
        for kind in ("core", "package"):
            count = whole(read_text(f"{CPU}/cpu{cpu}/thermal_throttle/{kind}_throttle_count"))
            if count is not None:
                totals[f"{kind} thermal throttles"] = totals.get(f"{kind} thermal throttles", 0) + count
    return totals or None


def busy_and_stolen(stat: str | None) -> tuple[float | None, float | None]:
    """Seconds since boot in which processors worked, and in which the hypervisor kept them; from /proc/stat."""
    fields = (stat or "").partition("\n")[0].split()
    ticks = [whole(field) for field in fields[1:9]]
    if len(ticks) < 8 or fields[0] != "cpu":
        return None, None
    user, nice, system, _, _, interrupts, soft, stolen = ticks
    if user is None or nice is None or system is None or interrupts is None or soft is None or stolen is None:
        return None, None
    return (user + nice + system + interrupts + soft) / TICKS_PER_S, stolen / TICKS_PER_S


def stalled(pressure: str | None) -> float | None:
    """Seconds since boot in which something waited for a processor; from /proc/pressure/cpu."""
    for line in (pressure or "").splitlines()[:4]:
        if line.startswith("some ") and "total=" in line:
            micro = whole(line.rpartition("total=")[2])
            return None if micro is None else micro / 1e6
    return None


def battery(read_text: ReadText) -> Battery | None:
    """The first battery."""
    for name in BATTERIES:
        place = f"/sys/class/power_supply/{name}"
        status, tenths = read_text(f"{place}/status"), whole(read_text(f"{place}/temp"))
        percent = whole(read_text(f"{place}/capacity"))
        if status is not None or percent is not None:
            charging = None if status is None else status.strip() == "Charging"
            return Battery(percent, charging, None if tenths is None else tenths / 10)
    return None
