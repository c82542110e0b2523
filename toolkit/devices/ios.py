"""iPhones and iPads: listed through usbmuxd anywhere; models run on them from a Mac alone.

iOS runs no foreign commands, so there is no shell and nothing to push. A Mac with Xcode measures Core ML models by
the app that coremltools builds and installs (targets/formats/coreml_remote.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

from acmix.toolkit.device import Completed, Device, DeviceState, LineStream
from acmix.toolkit.devices import _usbmux
from acmix.toolkit.devices._usbmux import Phone
from acmix.toolkit.errors import GateError, UsageError

NO_COMMANDS = (
    "Apple lets no foreign command run there. On a Mac with Xcode, coremltools measures Core ML models on it; "
    "docs/devices.md tells how."
)


def state_of(phone: Phone) -> DeviceState:
    """What a listed device can be used for."""
    seen = ", ".join(
        word for word in (phone.name, phone.product, f"iOS {phone.system}" if phone.system else "") if word
    )
    if not phone.paired:
        cure = "Unlock it and confirm 'Trust This Computer'. If no question appears: `idevicepair pair`."
        return DeviceState("not paired", seen, cure)
    return DeviceState("ready", seen)


class IosTransport:
    """Transport that knows whether the device is there, and says why it does no more."""

    def __init__(self, device: Device) -> None:
        self._device = device

    @property
    def device(self) -> Device:
        """The one that was asked for."""
        return self._device

    def state(self) -> DeviceState:
        """See Transport."""
        if _usbmux.address() is None:
            cure = "Linux: apt install usbmuxd, then plug the device in. macOS has it already."
            return DeviceState("absent", "usbmuxd does not run here", cure)
        try:
            found = {phone.udid.replace("-", "").upper(): phone for phone in _usbmux.phones()}
        except GateError as error:
            return DeviceState("offline", str(error), "Restart usbmuxd and plug the device in again.")
        phone = found.get(self.device.address.replace("-", "").upper())
        if phone is None:
            return DeviceState("absent", "usbmuxd does not list it", "Plug it in with a cable that carries data.")
        return state_of(phone)

    def run(self, command: Sequence[str], *, timeout_s: float, stdin: bytes = b"") -> Completed:
        """Refused: iOS runs no commands."""
        self._refuse()

    def stream(self, command: Sequence[str]) -> AbstractContextManager[LineStream]:
        """Refused: iOS runs no commands."""
        self._refuse()

    def push(self, source: Path, name: str, keep: bool = False) -> str:
        """Refused: coremltools' app brings its model along."""
        self._refuse()

    def pull(self, remote: str, destination: Path) -> None:
        """Refused: there is nothing of ours on it."""
        self._refuse()

    def read_text(self, path: str) -> str | None:
        """Unknown: iOS shows no sysfs."""
        return None

    def remove_work_folder(self) -> None:
        """Nothing of ours is there."""

    def _refuse(self) -> NoReturn:
        raise UsageError(f"{self.device.name} is an iOS device.\n{NO_COMMANDS}")


@contextlib.contextmanager
def connect(device: Device) -> Iterator[IosTransport]:
    """Nothing is opened."""
    yield IosTransport(device)
