"""This machine: commands run without a shell, the work folder is a temporary one."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from acmix.toolkit.device import Completed, Device, DeviceState, LineStream
from acmix.toolkit.devices import _process
from acmix.toolkit.devices._framing import quote
from acmix.toolkit.devices._guard import guarded_folder
from acmix.toolkit.devices._item import digest_of, items
from acmix.toolkit.devices._lines import ProcessLines
from acmix.toolkit.devices._shell import FOLDER, TEXT_LIMIT_BYTES
from acmix.toolkit.errors import GateError, UsageError

NOT_FOUND = 127
"""What a shell answers for a program that is not there."""


class LocalTransport:
    """Transport to the machine that we run on."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._folder: Path | None = None
        self._held = contextlib.ExitStack()

    @property
    def device(self) -> Device:
        """The host, or another name for it with settings of its own."""
        return self._device

    def state(self) -> DeviceState:
        """Always ready."""
        return DeviceState("ready", "this machine")

    def run(self, command: Sequence[str], *, timeout_s: float, stdin: bytes = b"") -> Completed:
        """See Transport."""
        quote(command)
        try:
            return _process.call(command, timeout_s=timeout_s, stdin=stdin)
        except UsageError as error:
            return Completed(NOT_FOUND, b"", str(error).encode())
        except GateError as error:
            raise GateError(f"{self.device.name}: {error}") from error

    @contextlib.contextmanager
    def stream(self, command: Sequence[str]) -> Iterator[LineStream]:
        """See Transport."""
        quote(command)
        process = _process.start(command, stdin=subprocess.PIPE)
        lines = ProcessLines(self.device.name, process, None)
        try:
            yield lines
        finally:
            try:
                lines.close_input()
            finally:
                _process.end(process)

    def push(self, source: Path, name: str, keep: bool = False) -> str:
        """A copy, so that what runs is what was pushed. It costs nothing worth keeping it."""
        folder = self._work_folder()
        for item in items(source, str(folder), name):
            copy = Path(item.remote)
            if copy.is_file() and digest_of(copy) == item.digest:
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            part = Path(item.part)
            shutil.copy(item.source, part)
            if digest_of(part) != item.digest:
                part.unlink()
                raise GateError(f"{self.device.name}: {source} changed while it was copied, or the disk is damaged")
            part.replace(copy)
        return str(folder / name)

    def pull(self, remote: str, destination: Path) -> None:
        """A copy that appears whole."""
        part = destination.with_name(f".{destination.name}.part")
        try:
            shutil.copyfile(remote, part)
            part.replace(destination)
        except OSError as error:
            raise GateError(f"{self.device.name}: {remote} cannot be read: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)

    def read_text(self, path: str) -> str | None:
        """See Transport."""
        try:
            with Path(path).open("rb") as file:
                return file.read(TEXT_LIMIT_BYTES).decode("utf-8", "replace").rstrip("\n\0")
        except OSError:
            return None

    def remove_work_folder(self) -> None:
        """See Transport."""
        self._held.close()
        self._folder = None

    def _work_folder(self) -> Path:
        if self._folder is None:
            place = Path(self.device.work_folder) if self.device.work_folder else None
            if place is not None:
                place.mkdir(parents=True, exist_ok=True)
            # Several measurements may run here at once: each has a folder of its own.
            self._folder = self._held.enter_context(guarded_folder(f"{FOLDER}-", place))
        return self._folder


@contextlib.contextmanager
def connect(device: Device) -> Iterator[LocalTransport]:
    """The folder is a temporary one: it goes when the context closes."""
    transport = LocalTransport(device)
    try:
        yield transport
    finally:
        transport.remove_work_folder()
