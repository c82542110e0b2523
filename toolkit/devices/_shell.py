"""A device that is reached through a shell: all that adb and ssh have in common."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from acmix.toolkit.device import OUTPUT_LIMIT_BYTES, Completed, Device, DeviceState, LineStream, printable
from acmix.toolkit.devices import _cache, _process, _transfer
from acmix.toolkit.devices._cache import Cache, Kept
from acmix.toolkit.devices._framing import AfterMark, frame, payload, quote, unframe
from acmix.toolkit.devices._item import PARTS
from acmix.toolkit.devices._keeper import Keeper
from acmix.toolkit.devices._lines import ProcessLines
from acmix.toolkit.errors import GateError

TEXT_LIMIT_BYTES = 1 << 18
TEXT_TIMEOUT_S = 15.0
KILL_TIMEOUT_S = 5.0
REMOVE_TIMEOUT_S = 15.0
"""The shell there tries for 8 s; a disk takes a second for all that we push."""
CLOSE_TIMEOUT_S = 10.0
FOLDER = "acmix-work"
"""Made inside the device's work_folder: only what is in it is ever removed, never a folder that a user named."""


class Link(Protocol):
    """What differs between adb and ssh."""

    @property
    def default_folder(self) -> str:
        """Where the work folder goes when the device's file names none; relative to the home folder or absolute."""

    def argv(self, script: str) -> list[str]:
        """The program of this machine that has a shell on the device run `script`; UsageError without the program."""

    def state(self) -> DeviceState: ...


class ShellTransport:
    """Transport over a Link."""

    def __init__(self, device: Device, link: Link) -> None:
        self._device, self.link = device, link
        self._keeper: Keeper | None = None
        self._place: str | None = None

    @property
    def device(self) -> Device:
        """The one that was asked for."""
        return self._device

    def state(self) -> DeviceState:
        """Asked anew each time."""
        return self.link.state()

    def run(self, command: Sequence[str], *, timeout_s: float, stdin: bytes = b"") -> Completed:
        """One command to its end; ended on the device as well when it takes too long or says too much."""
        return self.execute(quote(command), timeout_s=timeout_s, stdin=stdin)

    def execute(
        self,
        snippet: str,
        *,
        timeout_s: float,
        stdin: bytes | IO[bytes] = b"",
        limit_bytes: int = OUTPUT_LIMIT_BYTES,
        sink: _process.Sink | None = None,
    ) -> Completed:
        """One shell snippet, every word of it already quoted. sink takes stdout in place of the answer."""
        made = frame(snippet)
        try:
            done = _process.call(
                self.link.argv(made.script),
                timeout_s=timeout_s,
                stdin=stdin,
                limit_bytes=limit_bytes,
                sink=AfterMark(made, sink) if sink else None,
            )
        except _process.StoppedError as error:
            self._kill(unframe(made, error.stderr).pid)
            raise GateError(f"{self.device.name}: {error}") from error
        framed = unframe(made, done.stderr)
        if framed.code is None:
            raise self._broken(framed.pid is not None, framed.stderr)
        return Completed(framed.code, payload(made, done.stdout), framed.stderr)

    @contextlib.contextmanager
    def stream(self, command: Sequence[str]) -> Iterator[LineStream]:
        """The command's lines; when the context closes its input ends, and soon after the command does."""
        made = frame(quote(command))
        process = _process.start(self.link.argv(made.script), stdin=subprocess.PIPE)
        lines = ProcessLines(self.device.name, process, made)
        try:
            yield lines
        finally:
            try:
                lines.close_input()
            finally:
                # Without the end mark the command may still run there, whatever became of the connection.
                pid = lines.pid if lines.exit_code is None else None
                _process.end(process)
                self._kill(pid)

    def push(self, source: Path, name: str, keep: bool = False) -> str:
        """See Transport; one round trip finds what the device has already."""
        folder = self.work_folder()
        cache = self._cache_in(self._found_place())
        return _transfer.push(self.execute, self.device.name, folder, source, name, cache, keep)

    def pull(self, remote: str, destination: Path) -> None:
        """See Transport; the device's own digest of the file must be that of what came."""
        _transfer.pull(self.execute, self.device.name, remote, destination)

    def read_text(self, path: str) -> str | None:
        """See Transport. Raises GateError when the device itself is gone."""
        done = self.execute(quote(["cat", path]), timeout_s=TEXT_TIMEOUT_S, limit_bytes=TEXT_LIMIT_BYTES)
        return done.stdout.decode("utf-8", "replace").rstrip("\n\0") if done.code == 0 else None

    def work_folder(self) -> str:
        """The absolute path on the device, made when it is first needed: one of this connection's own.

        Held by a shell there, which removes it when the connection closes or this process dies.
        """
        if self._keeper is None:
            place = self._found_place()
            folder, cache = f"{place}/{FOLDER}/{secrets.token_hex(8)}", self._cache_in(place)
            last = cache.taking_over(f"{quote([folder])}/{PARTS}") if cache else ":"
            self._keeper = Keeper(self.device.name, self.link.argv, folder, last)
        self._keeper.hold()
        return self._keeper.folder

    def remove_work_folder(self) -> None:
        """Remove what was pushed, but for what the device keeps; the folders of other connections stay.

        Raises GateError soon when the device does not answer.
        """
        keeper, self._keeper = self._keeper, None
        if keeper is None or keeper.release(REMOVE_TIMEOUT_S):
            return
        self._remove(keeper.folder)

    def kept(self) -> Kept:
        """What the device keeps for the next call."""
        place = self._look_for_place(make=False)
        return Cache(f"{place}/{_cache.FOLDER}", 1).count(self.execute) if place else Kept(0, 0)

    def remove_everything(self) -> tuple[int, Kept]:
        """Remove all that acmix left there, of other connections too: how many work folders, and what it kept."""
        self.remove_work_folder()
        place = self._look_for_place(make=False)
        if place is None:
            return 0, Kept(0, 0)
        kept = self.kept()
        done = self.execute(f"ls {quote([f'{place}/{FOLDER}'])} 2>/dev/null", timeout_s=TEXT_TIMEOUT_S)
        self._remove(f"{place}/{FOLDER}")
        if kept.files and not Cache(f"{place}/{_cache.FOLDER}", 1).empty(self.execute):
            raise GateError(f"{self.device.name}: {place}/{_cache.FOLDER} stays.\nRemove it by hand.")
        return len(done.stdout.split()), kept

    def close(self) -> None:
        """End the work folder; a device that is gone removes it by itself."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            with contextlib.suppress(GateError):
                keeper.release(CLOSE_TIMEOUT_S)

    def _remove(self, folder: str) -> None:
        done = self.execute(f"rm -rf {quote([folder])}", timeout_s=REMOVE_TIMEOUT_S)
        if done.code != 0:
            raise GateError(f"{self.device.name}: {folder} stays: {printable(done.stderr)}")

    def _cache_in(self, place: str) -> Cache | None:
        return Cache(f"{place}/{_cache.FOLDER}", self.device.cache_mb) if self.device.cache_mb else None

    def _found_place(self) -> str:
        """The absolute path of the folder in which acmix makes its own; that one is the user's, and stays."""
        if self._place is None:
            self._place = self._look_for_place(make=True)
            assert self._place is not None
        return self._place

    def _look_for_place(self, make: bool) -> str | None:
        """make: where it does not exist; else it is None then."""
        place = quote([self.device.work_folder or self.link.default_folder])
        first = f"umask 077; mkdir -p {place} || exit" if make else f"if [ ! -e {place} ]; then echo -; exit; fi"
        done = self.execute(f"{first}; cd {place} && pwd -P", timeout_s=TEXT_TIMEOUT_S)
        path = done.stdout.decode("utf-8", "replace").removesuffix("\n")
        if done.code != 0:
            raise GateError(f"{self.device.name}: no work folder at {place}: {printable(done.stderr)}")
        if not make and path == "-":
            return None
        if not path.startswith("/") or not path.isprintable():
            raise GateError(f"{self.device.name}: its shell says that the work folder is {printable(path)!r}")
        return path.rstrip("/")

    def _kill(self, pid: int | None) -> None:
        """End a process group on the device; a device that cannot be reached any more keeps it."""
        if pid is None:
            return
        made = frame(f"kill -9 -{pid}")
        with contextlib.suppress(GateError):
            done = _process.call(self.link.argv(made.script), timeout_s=KILL_TIMEOUT_S)
            # A new adb server knows no network devices until it is asked for their state.
            if unframe(made, done.stderr).code is None and self.link.state().ready:
                _process.call(self.link.argv(made.script), timeout_s=KILL_TIMEOUT_S)

    def _broken(self, begun: bool, stderr: bytes) -> GateError:
        said = printable(stderr[-400:])
        if begun:
            reason = f"the connection broke while a command ran{': ' + said if said else ''}"
        else:
            state = self.link.state()
            reason = f"{state.availability}. {state.detail}" if not state.ready else f"no shell answered. {said}"
            reason = f"{reason.strip()}\n{state.cure}".strip() if state.cure else reason.strip()
        return GateError(f"{self.device.name}: {reason}")
