"""Reading a device's state through two callables, so that any transport and any folder of fixtures can answer."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from acmix.toolkit.conditions import Identity, Kind, ReadText, Run, State
from acmix.toolkit.device import Completed
from acmix.toolkit.state import android, emulation, jetson, linux, macos, raspberry_pi
from acmix.toolkit.state.text import output_of, word

NOT_FOUND = 127
TIMED_OUT = 124
FILE_LIMIT_BYTES = 2**18
BUSIEST = 3


def identify(read_text: ReadText, run: Run) -> Identity:
    """What the device is, and whether it is emulated. Asks a handful of files and commands, once a measurement."""
    kernel, machine = (word(output_of(run, "uname", flag)) for flag in ("-s", "-m"))
    if kernel == "Darwin":
        return _mac(run)
    props = android.properties(run)
    model = word(read_text("/proc/device-tree/model"))
    info = read_text("/proc/cpuinfo")
    kind = _kind(read_text, model or "", props)
    if kind == "android":
        model = word(" ".join(props.get(f"ro.product.{key}", "") for key in ("manufacturer", "model"))) or model
    soc = word(" ".join(props.get(f"ro.soc.{key}", "") for key in ("manufacturer", "model")))
    release = props.get("ro.build.version.release")
    system = f"Android {word(release)}" if release else word(read_text("/proc/version"))
    virtual = None if info is None else bool(re.search(r"^flags[ \t]{0,9}:.* hypervisor\b", info, re.MULTILINE))
    return Identity(kind, model, soc, system, virtual, emulation.evidence(read_text, machine, props))


def _kind(read_text: ReadText, model: str, props: dict[str, str]) -> Kind:
    if props.get("ro.build.version.sdk"):
        return "android"
    if "Raspberry Pi" in model:
        return "raspberry_pi"
    if read_text("/etc/nv_tegra_release") is not None or "Jetson" in model:
        return "jetson"
    return "linux" if read_text("/proc/version") is not None else "unknown"


def _mac(run: Run) -> Identity:
    model, chip, guest = (
        word(output_of(run, "sysctl", "-n", key))
        for key in ("hw.model", "machdep.cpu.brand_string", "kern.hv_vmm_present")
    )
    # Apple's systems run on Apple's processors or a hypervisor on one: there is no emulator to look for.
    return Identity("macos", model, chip, word(output_of(run, "sw_vers", "-productVersion")), guest == "1", ())


def read_state(
    identity: Identity, read_text: ReadText, run: Run, *, thorough: bool = True, remote: bool = False
) -> State:
    """One reading of a device. thorough: also what takes long to ask; leave it off between runs.

    remote: fetch all files in one command first.  A device that is silent gives a State of unknowns.
    """
    if identity.kind == "macos":
        return macos.add(State(at_s=time.monotonic()), run)
    files = linux.snapshot(run) if remote else read_text
    if files is None:
        # File by file it would be dozens of round trips to a device that gave nothing at once.
        return State(at_s=time.monotonic())
    state = linux.read(files)
    if identity.kind == "raspberry_pi":
        state = raspberry_pi.add(state, read_text, run)
    elif identity.kind == "jetson" and thorough:
        state = jetson.add(state, files, run)
    elif identity.kind == "android":
        state = android.add(state, run, thorough)
    return replace(state, at_s=time.monotonic())


def files_below(root: Path) -> ReadText:
    """Files of this machine, or of a tree of fixtures that looks like one."""

    def read_text(path: str) -> str | None:
        try:
            with (root / path.lstrip("/")).open("rb") as stream:
                return stream.read(FILE_LIMIT_BYTES).decode("utf-8", "replace").removesuffix("\n")
        except (OSError, ValueError):
            return None

    return read_text


def run_here(command: Sequence[str], *, timeout_s: float) -> Completed:
    """A command on this machine. One that is not there answers as a shell would: code 127."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        return Completed(NOT_FOUND, b"", b"")
    except (OSError, ValueError) as error:
        return Completed(NOT_FOUND, b"", str(error).encode())
    except subprocess.TimeoutExpired:
        return Completed(TIMED_OUT, b"", b"")
    return Completed(done.returncode, done.stdout, done.stderr)


def processes(ours: Sequence[int]) -> dict[tuple[int, str], float]:
    """Seconds of processor time of every process of this machine but ours: (number, name) to seconds."""
    found = {}
    for process in psutil.process_iter(["name", "cpu_times"]):
        times = process.info["cpu_times"]
        if process.pid not in ours and times is not None:
            found[process.pid, str(process.info["name"])] = float(times.user + times.system)
    return found


def busiest(before: dict[tuple[int, str], float], after: dict[tuple[int, str], float]) -> tuple[str, ...]:
    """The names of the processes that worked most between two listings, and their seconds."""
    spent = {key: seconds - before.get(key, 0.0) for key, seconds in after.items()}
    most = sorted(spent.items(), key=lambda item: -item[1])[:BUSIEST]
    return tuple(f"{word(name)} {seconds:.1f} s" for (_, name), seconds in most if seconds >= 0.1)


def seconds_of(ours: Sequence[int]) -> float:
    """Processor time that so many processes of this machine have used."""
    total = 0.0
    for number in ours:
        try:
            times = psutil.Process(number).cpu_times()
        except psutil.Error:
            continue
        total += float(times.user + times.system)
    return total
