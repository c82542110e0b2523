"""Each link of the chain from here to a runner on a device, in order; a broken link ends the list."""

from __future__ import annotations

import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from acmix.toolkit.device import Device, Transport, printable
from acmix.toolkit.devices import _usbmux, adb, connect, ssh
from acmix.toolkit.devices._shell import ShellTransport
from acmix.toolkit.doctor import Check
from acmix.toolkit.errors import AcmixError

TIMEOUT_S = 30.0
AWKWARD = ("a b", "'", '"', "$(id)", "`id`", "line\nline", "\\", "*", "~", "", ";", "&&", "$HOME", "é")
"""Arguments that a shell takes for something else unless each is quoted."""
RUNTIMES = ("ai_edge_litert", "tflite_runtime", "onnxruntime", "executorch")
SEEK_RUNTIMES = (
    "import importlib.util, platform\n"
    f"found = [n for n in {RUNTIMES!r} if importlib.util.find_spec(n)]\n"
    "print(platform.python_version(), *found)"
)
CLOCK_TOLERANCE_S = 5.0


def examine(device: Device) -> list[Check]:
    """The checks of one device, as far as they could be made."""
    checks = []
    try:
        checks.append(_program(device))
        with connect(device) as transport:
            for check in _links(transport):
                checks.append(check)
                if not check.fine:
                    break
    except AcmixError as error:
        found, _, cure = str(error).partition("\n")
        checks.append(Check("connection", found, False, cure or "Look at `acmix devices list`."))
    return checks


def _program(device: Device) -> Check:
    if device.transport == "adb":
        return Check("adb", adb.program(), True)
    if device.transport == "ssh":
        return Check("ssh", f"{ssh.program()} to {ssh.resolved(device.address)}", True)
    if device.transport == "ios":
        return Check("usbmuxd", _usbmux.address() or "not running", True)
    return Check("transport", "none needed", True)


def _links(transport: Transport) -> Iterator[Check]:
    state = transport.state()
    yield Check("device", f"{state.availability}; {state.detail}".strip("; "), state.ready, state.cure)
    if transport.device.transport == "ios":
        return
    checks: tuple[Callable[[Transport], Check], ...] = (_shell, _machine, _files, _kept, _python, _sysfs, _clock)
    for check in checks:
        yield check(transport)


def _shell(transport: Transport) -> Check:
    # Its own $0, then each argument on one line of NUL-ended words, then an exit code that no shell gives by itself.
    done = transport.run(["sh", "-c", 'printf "%s\\0" "$@"; exit 42', "sh", *AWKWARD], timeout_s=TIMEOUT_S)
    fine = done.code == 42 and done.stdout == b"".join(word.encode() + b"\0" for word in AWKWARD)
    cure = "" if fine else "acmix needs a POSIX shell there as `sh`, and printf."
    said = "every argument arrives as it is" if fine else f"exit code {done.code}: {printable(done.stdout, 80)}"
    return Check("shell", said, fine, cure)


def _machine(transport: Transport) -> Check:
    done = transport.run(["uname", "-s", "-r", "-m"], timeout_s=TIMEOUT_S)
    return Check("system", printable(done.stdout, 80), done.code == 0, "" if done.code == 0 else "uname does not run")


def _files(transport: Transport) -> Check:
    data = secrets.token_bytes(1 << 16)
    with tempfile.TemporaryDirectory() as folder:
        sent, back = Path(folder) / "sent", Path(folder) / "back"
        sent.write_bytes(data)
        remote = transport.push(sent, "doctor.bin")
        transport.pull(remote, back)
        transport.run(["rm", "-f", remote], timeout_s=TIMEOUT_S)
        fine = back.read_bytes() == data
    return Check("work folder", str(Path(remote).parent), fine, "" if fine else "files come back changed")


def _kept(transport: Transport) -> Check:
    device = transport.device
    if not isinstance(transport, ShellTransport):
        return Check("kept files", "none: files are copied", True)
    kept = transport.kept()
    cure = f"`acmix devices clean {device.name}` removes them" if kept.files else ""
    return Check("kept files", f"{kept.files}, {kept.mb} MB of at most {device.cache_mb}", True, cure)


def _python(transport: Transport) -> Check:
    done = transport.run(["python3", "-c", SEEK_RUNTIMES], timeout_s=TIMEOUT_S)
    words = printable(done.stdout, 200).split()
    if done.code != 0 or not words:
        return Check("python", "none", True, "only runners that need no Python can be used there")
    if not words[1:]:
        return Check("python", f"{words[0]}, no runtime", True, "pip install ai-edge-litert onnxruntime, on the device")
    return Check("python", f"{words[0]} with {', '.join(words[1:])}", True)


def _sysfs(transport: Transport) -> Check:
    cpus = transport.read_text("/sys/devices/system/cpu/online")
    governor = transport.read_text("/sys/devices/system/cpu/cpufreq/policy0/scaling_governor")
    if cpus is None:
        return Check("sysfs", "not readable", True, "conditions of a measurement stay unknown")
    return Check("sysfs", f"processors {printable(cpus, 40)}, governor {printable(governor or 'unknown', 40)}", True)


def _clock(transport: Transport) -> Check:
    begin = time.time()
    done = transport.run(["date", "+%s"], timeout_s=TIMEOUT_S)
    if done.code != 0 or not re.fullmatch(rb"\s*[0-9]{1,12}\s*", done.stdout):
        return Check("clock", "unknown", True, "dates of measurements are this computer's")
    apart_s = abs(int(done.stdout) - (begin + time.time()) / 2)
    late = apart_s > CLOCK_TOLERANCE_S
    return Check("clock", f"{apart_s:.0f} s from ours", True, "set it: certificates and logs need it" if late else "")
