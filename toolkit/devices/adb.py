"""Android over adb: the user's `adb` from PATH, else the one in the package adbutils."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from acmix.toolkit.device import Availability, Device, DeviceState, printable
from acmix.toolkit.devices import _process
from acmix.toolkit.devices._shell import ShellTransport
from acmix.toolkit.errors import GateError, UsageError

LIST_TIMEOUT_S = 15.0
CONNECT_TIMEOUT_S = 15.0
LINE = re.compile(r"(?P<serial>\S+)\s+(?P<state>no permissions|[a-z]+)(?P<rest>.*)")
STATES: dict[str, tuple[Availability, str, str]] = {
    "device": ("ready", "", ""),
    "unauthorized": (
        "unauthorized",
        "the phone does not trust this computer yet",
        "Unlock the phone and confirm 'Allow USB debugging'. If no question appears: revoke the USB debugging "
        "authorisations in its developer options and plug it in again.",
    ),
    "authorizing": ("unauthorized", "adb and the phone are exchanging keys", "Wait a moment and look again."),
    "no permissions": (
        "unauthorized",
        "this user may not open the USB device",
        "Install the udev rules of Android (Debian: apt install android-sdk-platform-tools-common), join the group "
        "plugdev, and plug the phone in again.",
    ),
    "offline": (
        "offline",
        "adb sees the phone and gets no answer",
        "Unplug and plug the cable, or run `adb reconnect offline`; if it stays, `adb kill-server`.",
    ),
}


@dataclass(frozen=True)
class Attached:
    """One line of `adb devices -l`. model: '' where the phone did not say."""

    serial: str
    state: DeviceState
    model: str


def program() -> str:
    """The adb to use; UsageError when there is none."""
    if found := shutil.which("adb"):
        return found
    package = importlib.util.find_spec("adbutils")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "binaries" / "adb"
        if bundled.is_file():
            return str(bundled)
    raise UsageError(
        "there is no `adb` here.\n"
        "Install Android's platform tools (Debian: apt install adb), or `pip install adbutils`, which brings one."
    )


def attached(adb: str) -> tuple[Attached, ...]:
    """What adb sees; starts its server when it does not run. GateError when the server does not answer."""
    done = _process.call([adb, "devices", "-l"], timeout_s=LIST_TIMEOUT_S)
    if done.code != 0:
        raise GateError(f"adb cannot list devices: {printable(done.stderr)}\nTry `adb kill-server`, then again.")
    found = []
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        match = LINE.fullmatch(line.strip())
        if match is None or line.startswith(("List of", "*")):
            continue
        seen = match["state"]
        availability, detail, cure = STATES.get(
            seen, ("offline", f"the phone is in the state {seen!r}", "Start it normally: `adb reboot`.")
        )
        model = re.search(r" model:(\S+)", match["rest"])
        name = printable(model[1], 60).replace("_", " ") if model else ""
        found.append(Attached(printable(match["serial"], 128), DeviceState(availability, detail or name, cure), name))
    return tuple(found)


class AdbLink:
    """Link to one serial."""

    default_folder = "/data/local/tmp"

    def __init__(self, serial: str) -> None:
        self.serial = serial
        self.connected = ":" not in serial

    def argv(self, script: str) -> list[str]:
        """-T: no terminal, so that stdout and stderr stay apart and bytes stay bytes."""
        if not self.connected:
            self.connected = True
            self._connect(program())
        return [program(), "-s", self.serial, "shell", "-T", script]

    def state(self) -> DeviceState:
        """What adb says of the serial; a network address is connected first."""
        try:
            adb = program()
            found = self._find(adb)
            if found is None and ":" in self.serial:
                self._connect(adb)
                found = self._find(adb)
            if found is None:
                return self._absent()
            return self._speaks_shell(adb) if found.ready else found
        except GateError as error:
            return DeviceState("offline", str(error).partition("\n")[0], "Run `adb kill-server`, then try again.")
        except UsageError as error:
            detail, _, cure = str(error).partition("\n")
            return DeviceState("absent", detail, cure)

    def _connect(self, adb: str) -> None:
        # Its exit code says nothing: what became of it shows in the list of devices.
        _process.call([adb, "connect", self.serial], timeout_s=CONNECT_TIMEOUT_S)

    def _absent(self) -> DeviceState:
        cure = "Plug it in with USB debugging on, then look at `acmix devices list`."
        if ":" in self.serial:
            cure = "Is the phone on this network, with wireless debugging on? `adb pair` it once, then try again."
        return DeviceState("absent", f"adb sees no {self.serial}", cure)

    def _find(self, adb: str) -> DeviceState | None:
        return next((found.state for found in attached(adb) if found.serial == self.serial), None)

    def _speaks_shell(self, adb: str) -> DeviceState:
        done = _process.call([adb, "-s", self.serial, "features"], timeout_s=LIST_TIMEOUT_S)
        if b"shell_v2" in done.stdout:
            return DeviceState("ready", "adb")
        return DeviceState(
            "offline", "its adb tells no exit codes (no shell_v2)", "acmix needs Android 7 or newer on the device."
        )


@contextlib.contextmanager
def connect(device: Device) -> Iterator[ShellTransport]:
    """The adb server belongs to the user and stays."""
    with contextlib.closing(ShellTransport(device, AdbLink(device.address))) as transport:
        yield transport
