"""A device: a machine that runs models, and the transport that reaches it. A file of toolkit/devices/ is one transport.

Everything that a device answers is untrusted: its size is limited, its control characters are never printed.
A device that vanishes or answers nonsense raises GateError with a sentence; a wrong name or address, UsageError.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from acmix.toolkit.errors import GateError

TransportName = Literal["local", "adb", "ssh", "ios"]
Availability = Literal["ready", "offline", "unauthorized", "not paired", "absent"]

HOST_NAME = "host"
OUTPUT_LIMIT_BYTES = 16 * 2**20
"""The most that one command may print before it is stopped."""


@dataclass(frozen=True)
class Device:
    """One machine of the registry.

    address: the adb serial, the ssh host (user@host or a name of the ssh config) or the UDID; '' for local.
    cores: the processors to pin a runner to; () leaves it to the system.
    work_folder: on the device, made and removed by acmix; '' takes the transport's own.
    cache_mb: the most that the device keeps of what was pushed, for the next call; 0 keeps nothing.
    counts_instructions: an emulated machine whose processor counts the instructions of an inference.
    """

    name: str
    transport: TransportName
    address: str = ""
    cores: tuple[int, ...] = ()
    threads: int = 1
    work_folder: str = ""
    description: str = ""
    cache_mb: int = 256
    counts_instructions: bool = False


@dataclass(frozen=True)
class DeviceState:
    """Whether a device can be used now; detail is what was seen, cure what to do ('' when it is ready)."""

    availability: Availability
    detail: str = ""
    cure: str = ""

    @property
    def ready(self) -> bool:
        """Whether commands can run on it."""
        return self.availability == "ready"


@dataclass(frozen=True)
class Completed:
    """A finished command: its exit code and what it printed, raw. Pass it through printable() before a person reads."""

    code: int
    stdout: bytes
    stderr: bytes


class LongLineError(GateError):
    """The other side sent a line longer than it may be."""


class LineStream(Protocol):
    """A running command on the device, spoken to in lines."""

    def write(self, data: bytes) -> None:
        """Send all of it; GateError when the other side is gone or does not read."""

    def readline(self, timeout_s: float, limit_bytes: int) -> bytes:
        """One line with its newline. GateError: the command ended, nothing came in time; LongLineError: too long."""


class Transport(Protocol):
    """How one device is reached. Every call ends within its time-out."""

    @property
    def device(self) -> Device: ...

    def state(self) -> DeviceState:
        """Never raises for a device that is away: that is a state."""

    def run(self, command: Sequence[str], *, timeout_s: float, stdin: bytes = b"") -> Completed:
        """One command, every argument quoted for the shell on the other side. An exit code is an answer, no error."""

    def stream(self, command: Sequence[str]) -> AbstractContextManager[LineStream]:
        """The command as a two-way line stream; it is ended, on the device too, when the context closes."""

    def push(self, source: Path, name: str, keep: bool = False) -> str:
        """A file or folder into the work folder under `name`; the remote path.

        Checked by SHA-256 there, skipped when the device holds it already, resumed when a push was cut.  keep: the
        device keeps a copy for the next call, as far as its cache_mb allows.
        """

    def pull(self, remote: str, destination: Path) -> None:
        """One file back, whole or not at all."""

    def read_text(self, path: str) -> str | None:
        """A file of sysfs or procfs, without the last newline; None when it is missing or unreadable: unknown."""

    def remove_work_folder(self) -> None:
        """Remove what acmix put on the device, but for what it keeps for the next call."""


def printable(data: bytes | str, limit: int = 400) -> str:
    """Untrusted output for a person: no control or bidirectional characters, at most `limit` characters."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    shown = "".join(c if c.isprintable() else " " if c in "\t\r\n" else "?" for c in text[: limit + 1]).strip()
    return shown if len(text) <= limit else shown[:limit] + " ..."
