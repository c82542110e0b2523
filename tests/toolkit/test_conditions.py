"""Device states: fixture trees (written by hand, see fixtures/device_state), this machine itself, and garbage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acmix.toolkit.conditions import (
    Clock,
    Identity,
    Kind,
    Sensor,
    State,
    grown_events,
    hottest,
    other_load,
    residency,
)
from acmix.toolkit.device import Completed, Device
from acmix.toolkit.devices.local import LocalTransport
from acmix.toolkit.errors import GateError
from acmix.toolkit.state import android, emulation, jetson, linux, macos, raspberry_pi, text
from acmix.toolkit.state.reading import files_below, identify, read_state, run_here

FIXTURES = Path(__file__).parent.parent / "fixtures" / "device_state"


class Recorded:
    """Commands that a fixture's folder answers; every other one is not found."""

    def __init__(self, device: str) -> None:
        self.folder = FIXTURES / device / "commands"

    def __call__(self, command: Sequence[str], *, timeout_s: float) -> Completed:
        name = "tegrastats" if "tegrastats" in command[-1] else "_".join(command)
        # A shell command holds slashes and quotes: no fixture answers it, as on a device without that program.
        file = self.folder / f"{name}.txt"
        known = "/" not in name and file.is_file()
        return Completed(0, file.read_bytes(), b"") if known else Completed(127, b"", b"")


def state_of(device: str) -> tuple[Identity, State]:
    read_text, run = files_below(FIXTURES / device / "root"), Recorded(device)
    identity = identify(read_text, run)
    return identity, read_state(identity, read_text, run)


def test_a_raspberry_pi_tells_clock_heat_and_firmware() -> None:
    identity, state = state_of("raspberry_pi_5")
    assert (identity.kind, identity.model, identity.emulation) == ("raspberry_pi", "Raspberry Pi 5 Model B Rev 1.0", ())
    assert state.clocks == (
        Clock((0, 1, 2, 3), "ondemand", 2400027, 1500000, 2400000, 2400000, ((1500000, 81200), (2400000, 9300))),
    )
    assert state.sensors == (Sensor("cpu-thermal", 48.312), Sensor("soc (firmware)", 48.3))
    assert state.throttled_by == ()  # the fan runs at level 1, which slows nothing
    assert state.busy_s == pytest.approx((6210 + 10 + 2210 + 0 + 120) / 100)
    assert state.stalled_s == pytest.approx(0.912345)
    assert state.load_1min == 0.11


def test_throttle_bits_of_a_pi_are_told_apart_into_now_and_since_boot() -> None:
    def answer(command: Sequence[str], *, timeout_s: float) -> Completed:
        return Completed(0, b"throttled=0x50005\n", b"") if command[-1] == "get_throttled" else Completed(127, b"", b"")

    state = raspberry_pi.add(State(), lambda path: None, answer)
    assert state.throttled_by == ("firmware: under-voltage", "firmware: throttled")
    assert state.throttle_events == {
        "under-voltage since boot": 1,
        "frequency capped since boot": 0,
        "throttled since boot": 1,
        "soft temperature limit since boot": 0,
    }


def test_a_pi_without_vcgencmd_is_read_from_the_kernels_file() -> None:
    read_text = files_below(FIXTURES / "raspberry_pi_5" / "root")
    state = raspberry_pi.add(State(), read_text, Recorded("virtual_machine"))
    assert state.throttled_by == ("firmware: under-voltage", "firmware: throttled")


def test_a_jetson_tells_mode_power_and_over_current() -> None:
    identity, state = state_of("jetson_orin_nano")
    assert identity.kind == "jetson"
    assert state.power_mode == "15W"
    assert state.power_mw == 4180
    assert state.throttle_events == {"over-current events 1": 0, "over-current events 3": 7}
    heats = {s.name: s.celsius for s in state.sensors or ()}
    assert heats["tj"] == 51.187
    assert heats["cpu-thermal"] == 50.343


def test_tegrastats_gives_clocks_where_sysfs_gives_none() -> None:
    line = (FIXTURES / "jetson_orin_nano" / "commands" / "tegrastats.txt").read_text("utf-8")
    clocks = jetson.add_tegrastats(State(), line).clocks or ()
    assert [(c.cpus[0], c.now_khz) for c in clocks] == [(0, 1510000), (1, 1510000), (4, 729000), (5, 729000)]


def test_an_android_phone_tells_throttling_battery_and_the_heat_of_now() -> None:
    identity, state = state_of("android_phone")
    assert (identity.kind, identity.model, identity.soc) == ("android", "Maker Phone 8", "Foundry F3")
    assert identity.system == "Android 14"
    assert state.throttled_by == ("Android's thermal status is moderate",)
    assert state.sensors == (Sensor("cpu AP", 61.4), Sensor("battery BAT", 35.9), Sensor("skin SKIN", 44.125))
    assert state.battery is not None
    assert (state.battery.percent, state.battery.charging, state.battery.celsius) == (81, True, 35.9)
    assert state.low_power is False
    assert state.clocks is not None and state.clocks[1].most_khz == 2253000


def test_a_laptop_tells_counters_coolers_and_battery() -> None:
    _, state = state_of("x86_laptop")
    assert state.throttle_events == {"core thermal throttles": 42, "package thermal throttles": 88}
    assert state.throttled_by == ("cooler Processor at level 3",)
    assert hottest(state) == Sensor("coretemp", 72.0)  # zone 1 is missing: a hole in the numbers ends nothing
    assert state.battery is not None and state.battery.charging is False
    assert state.power_mode == "balanced"


def test_a_mac_tells_its_speed_limit() -> None:
    identity, state = state_of("macbook")
    assert (identity.kind, identity.soc) == ("macos", "Apple M2")
    assert state.throttled_by == ("CPU_Speed_Limit is 80 %",)
    assert state.low_power is True
    assert state.load_1min == 1.52
    assert state.battery is not None and state.battery.charging is True


def test_what_a_virtual_machine_hides_is_unknown_and_never_zero() -> None:
    identity, state = state_of("virtual_machine")
    assert identity.virtual is True
    assert identity.emulation == ()
    assert (state.clocks, state.sensors, state.throttled_by, state.throttle_events, state.battery) == (None,) * 5


def test_a_device_that_says_nothing_is_unknown(tmp_path: Path) -> None:
    def gone(command: Sequence[str], *, timeout_s: float) -> Completed:
        raise GateError("the device is gone")

    identity = identify(files_below(tmp_path), gone)
    assert (identity.kind, identity.emulation) == ("unknown", None)
    assert replace(read_state(identity, files_below(tmp_path), gone, remote=True), at_s=0.0) == State()


@pytest.mark.parametrize(("device", "sign"), [("qemu_virt", "linux,dummy-virt"), ("qemu_user", "midr_el1")])
def test_an_emulator_is_recognised(device: str, sign: str) -> None:
    identity, _ = state_of(device)
    assert any(sign in evidence for evidence in identity.emulation or ())


def test_an_arm64_program_under_an_x86_kernel_is_emulated() -> None:
    files = {"/proc/version": "Linux version 6.1.0-18-amd64 (debian-kernel)", linux.CPU: ""}
    assert emulation.evidence(files.get, "aarch64", {}) == (
        "an arm64 program under an x86 kernel",
        "an arm64 kernel without midr_el1",
    )
    assert emulation.evidence(files.get, "x86_64", {}) == ()


def test_an_arm64_kernel_that_was_built_on_x86_is_no_sign() -> None:
    files = {
        "/proc/version": "Linux version 6.6.1 (builder@x86_64-host)",
        f"{linux.CPU}/cpu0/regs/identification/midr_el1": "0x00000000410fd083\n",
    }
    assert emulation.evidence(files.get, "aarch64", {}) == ()
    files[f"{linux.CPU}/cpu0/regs/identification/midr_el1"] = "0x0000000000000000\n"
    assert emulation.evidence(files.get, "aarch64", {}) == ("an arm64 program under an x86 kernel",)


def test_an_android_emulator_says_so() -> None:
    assert emulation.evidence(lambda path: None, "x86_64", {"ro.kernel.qemu": "1"}) == (
        "Android says that it runs in QEMU",
    )


def test_this_machine_read_by_one_command_equals_it_read_file_by_file() -> None:
    bulk = linux.snapshot(run_here)
    if bulk is None:
        pytest.skip("there is no grep here that reads sysfs")
    single, together = linux.read(files_below(Path("/"))), linux.read(bulk)
    assert (together.clocks is None, together.throttle_events) == (single.clocks is None, single.throttle_events)
    assert [s.name for s in together.sensors or ()] == [s.name for s in single.sensors or ()]
    assert together.busy_s == pytest.approx(single.busy_s, abs=2.0)


def test_a_transport_reads_this_machine_as_we_do() -> None:
    transport = LocalTransport(Device("host", "local"))
    ours, theirs = (
        identify(read_text, run)
        for read_text, run in ((files_below(Path("/")), run_here), (transport.read_text, transport.run))
    )
    assert ours == theirs
    state = read_state(theirs, transport.read_text, transport.run, remote=True)
    assert (state.busy_s is None) == (not psutil.LINUX)


def test_busy_time_agrees_with_psutil() -> None:
    if not psutil.LINUX:
        pytest.skip("/proc/stat is Linux's")
    times = psutil.cpu_times()
    busy, stolen = linux.busy_and_stolen(Path("/proc/stat").read_text("ascii"))
    assert busy == pytest.approx(times.user + times.nice + times.system + times.irq + times.softirq, abs=2.0)
    assert stolen == pytest.approx(times.steal, abs=2.0)


def test_residency_is_the_difference_of_two_readings() -> None:
    before, after = Clock((0,), residency=((1000, 500), (2000, 100))), Clock((0,), residency=((1000, 525), (2000, 175)))
    assert residency(before, after) == {1000: 0.25, 2000: 0.75}
    assert residency(before, before) is None
    assert residency(after, before) is None
    assert residency(Clock((0,)), after) is None


def test_the_load_of_others_is_what_is_left_of_the_busy_time() -> None:
    before, after = State(at_s=10.0, busy_s=100.0, ours_s=5.0), State(at_s=20.0, busy_s=115.0, ours_s=14.0)
    assert other_load(before, after) == pytest.approx(0.6)
    assert other_load(replace(before, busy_s=None), after) is None
    # A child that died took its share along: then nothing is known, and not all of it is others'.
    assert other_load(before, replace(after, ours_s=1.0)) is None


def test_only_events_that_grew_count() -> None:
    before, after = State(throttle_events={"a": 3, "b": 1}), State(throttle_events={"a": 3, "b": 2, "c": 9})
    assert grown_events(before, after) == {"b": 1}
    assert grown_events(State(), after) == {}


@pytest.mark.parametrize(
    ("written", "meant"),
    [("0-3,5", (0, 1, 2, 3, 5)), ("0 1 2", (0, 1, 2)), ("7", (7,)), ("", None), ("0-99999", None), ("0-3,x", None)],
)
def test_lists_of_processors(written: str, meant: tuple[int, ...] | None) -> None:
    assert text.cpu_list(written) == meant


GARBAGE = st.one_of(
    st.text(max_size=300),
    st.binary(max_size=300).map(lambda data: data.decode("utf-8", "replace")),
    st.sampled_from(
        [
            "Temperature{mValue=",
            "[a]: [b",
            "cpu 1 2 3 4 5 6 7 99999999999999999999",
            "0-",
            "throttled=0x",
            "temp=",
            "CPU [",
        ]
    ).flatmap(lambda start: st.text(max_size=80).map(lambda end: start + end)),
)


@given(answer=GARBAGE, kind=st.sampled_from(["linux", "raspberry_pi", "jetson", "android", "macos", "unknown"]))
@settings(max_examples=150, deadline=None)
def test_garbage_in_every_file_and_command_breaks_nothing(answer: str, kind: Kind) -> None:
    def run(command: Sequence[str], *, timeout_s: float) -> Completed:
        return Completed(0, answer.encode("utf-8", "replace"), b"")

    def read_text(path: str) -> str | None:
        return answer

    identify(read_text, run)
    state = read_state(Identity(kind), read_text, run)
    names = [s.name for s in state.sensors or ()] + list(state.throttled_by or ()) + [state.power_mode or ""]
    assert all(name.isprintable() for name in names)


LONG = 400_000
HOSTILE: list[Callable[[], object]] = [
    lambda: android.add_thermal(State(), "Temperature{mValue=1, mType=1, mName=" * (LONG // 37)),
    lambda: android.parse_properties("[" * LONG + "\n" + "[a]: [" * (LONG // 6)),
    lambda: android.parse_battery("level: " * (LONG // 7)),
    lambda: jetson.add_tegrastats(State(), ("CPU [" * LONG)[:4096]),
    lambda: raspberry_pi.throttled_bits("0" * LONG),
    lambda: text.cpu_list("0-" * LONG),
    lambda: linux.time_in_state("1 1\n" * LONG),
    lambda: macos.LIMIT.findall(("CPU_Speed_Limit" + " " * 4000)[:4096]),
    lambda: emulation.evidence(lambda path: " " * LONG, "aarch64", {}),
]


@pytest.mark.parametrize("parse", HOSTILE)
def test_text_made_to_hang_a_parser_takes_no_second(parse: Callable[[], object]) -> None:
    begin = time.process_time()
    parse()
    assert time.process_time() - begin < 1.0
