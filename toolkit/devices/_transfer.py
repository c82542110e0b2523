"""Files to and from a device through its shell: checked by SHA-256, sent once, resumed where they were cut."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from acmix.toolkit.device import OUTPUT_LIMIT_BYTES, Completed, printable
from acmix.toolkit.devices._framing import quote
from acmix.toolkit.devices._process import Sink
from acmix.toolkit.errors import GateError, UsageError

SHORT_TIMEOUT_S = 30.0
SLOWEST_BYTES_PER_S = 200_000
"""Slower than any cable or wireless network that a measurement would be made over."""
PULL_LIMIT_BYTES = 1 << 31
ROOM_FOR_GREETING_BYTES = 1 << 16
SUM = 'sum=sha256sum; command -v sha256sum >/dev/null || sum="shasum -a 256"'
DIGEST = re.compile(rb"([0-9a-f]{64})\b")
HELD = re.compile(rb"([0-9]{1,15}) +([0-9a-f]{64})\b")


class Execute(Protocol):
    """Runs a quoted shell snippet on the device."""

    def __call__(
        self,
        snippet: str,
        *,
        timeout_s: float,
        stdin: bytes | IO[bytes] = b"",
        limit_bytes: int = OUTPUT_LIMIT_BYTES,
        sink: Sink | None = None,
    ) -> Completed: ...


@dataclass(frozen=True)
class Item:
    """One file to be pushed and where it goes."""

    source: Path
    remote: str
    digest: str
    size: int

    @property
    def part(self) -> str:
        """Where it grows: named by its digest, so that only the same bytes are ever continued."""
        return f"{self.remote}.{self.digest[:16]}.part"


def timeout_s(size: int) -> float:
    """The time that so many bytes may take."""
    return SHORT_TIMEOUT_S + size / SLOWEST_BYTES_PER_S


def digest_of(path: Path) -> str:
    """SHA-256 of a local file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_name(name: str) -> None:
    """UsageError for a name that would leave the work folder or that no shell prints back as it is."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or not name.isprintable() or "\\" in name:
        raise UsageError(
            f"{name!r} cannot be a file's name on a device.\n"
            "A name is relative, stays inside the work folder and has no control characters and no backslash."
        )


def items(source: Path, folder: str, name: str) -> tuple[Item, ...]:
    """The files of a push: one, or all of a folder in order."""
    check_name(name)
    if source.is_file():
        return (Item(source, f"{folder}/{name}", digest_of(source), source.stat().st_size),)
    if not source.is_dir():
        raise UsageError(f"{source} cannot be pushed: there is no such file or folder.")
    found = [file for file in sorted(source.rglob("*")) if file.is_file()]
    names = [f"{name}/{file.relative_to(source).as_posix()}" for file in found]
    for each in names:
        check_name(each)
    return tuple(
        Item(file, f"{folder}/{each}", digest_of(file), file.stat().st_size)
        for file, each in zip(found, names, strict=True)
    )


def push(execute: Execute, device: str, folder: str, source: Path, name: str) -> str:
    """Send what the device does not hold yet; the remote path of `name`."""
    wanted = items(source, folder, name)
    folders = sorted({str(PurePosixPath(item.remote).parent) for item in wanted} or {f"{folder}/{name}"})
    _done(execute(quote(["mkdir", "-p", *folders]), timeout_s=SHORT_TIMEOUT_S), device, "make a folder")
    paths = [path for item in wanted for path in (item.remote, item.part)]
    held = look(execute, paths, sum(item.size for item in wanted))
    for item in wanted:
        if held.get(item.remote, Held(0, "")).digest != item.digest:
            _send(execute, device, item, held.get(item.part, Held(0, "")).size)
    return f"{folder}/{name}"


@dataclass(frozen=True)
class Held:
    """A file that the device says it holds."""

    size: int
    digest: str


def look(execute: Execute, paths: Sequence[str], size: int) -> dict[str, Held]:
    """Size and SHA-256 of files on the device by path, by its own tools; a missing file is not in the answer."""
    found: dict[str, Held] = {}
    for begin in range(0, len(paths), 100):
        some = paths[begin : begin + 100]
        # One line a file, in order, so that no name has to be read back.
        look_at = 'if [ -f "$f" ]; then echo $(wc -c <"$f") $($sum <"$f"); else echo -; fi'
        snippet = f"{SUM}; for f in {quote(some)}; do {look_at}; done"
        lines = execute(snippet, timeout_s=timeout_s(size)).stdout.split(b"\n")
        for path, line in zip(some, lines, strict=False):
            if match := HELD.match(line):
                found[path] = Held(int(match[1]), match[2].decode())
    return found


def _send(execute: Execute, device: str, item: Item, held: int) -> None:
    found = _append(execute, device, item, held if held <= item.size else 0)
    if found != item.digest:
        # What was there before the cut was damaged: once more, from the beginning.
        found = _append(execute, device, item, 0)
    if found != item.digest:
        raise GateError(
            f"{device}: {item.source.name} arrived damaged: its SHA-256 there is {found}, here {item.digest}.\n"
            "Look at the cable, the disk or the memory of the device."
        )


def _append(execute: Execute, device: str, item: Item, held: int) -> str:
    """Send the rest of a file, and put it in place when the device finds it whole; the digest that it found."""
    part, mode = quote([item.part]), "755" if os.access(item.source, os.X_OK) else "644"
    place = f"chmod {mode} {part} && mv -f {part} {quote([item.remote])}"
    judge = f'case "$d" in {item.digest}*) {place};; *) rm -f {part};; esac'
    # Grouped: what SUM ends with must not run after a cat that failed.
    snippet = f"cat {'>>' if held else '>'}{part} && {{ {SUM}; }} && d=$($sum <{part}) && echo $d && {judge}"
    with item.source.open("rb", buffering=0) as file:
        file.seek(held)
        done = execute(snippet, timeout_s=timeout_s(item.size), stdin=file)
    _done(done, device, f"write {item.source.name}")
    match = DIGEST.match(done.stdout)
    return match[1].decode() if match else f"unknown ({printable(done.stdout, 60)!r})"


def pull(execute: Execute, device: str, remote: str, destination: Path) -> None:
    """Fetch one file; it appears at `destination` when its digest is right."""
    wanted = look(execute, [remote], PULL_LIMIT_BYTES // 16).get(remote)
    if wanted is None:
        raise GateError(f"{device}: there is no file {printable(remote)} on it")
    with _beside(destination) as file:
        reading = execute(
            f"cat -- {quote([remote])}",
            timeout_s=timeout_s(wanted.size),
            limit_bytes=min(PULL_LIMIT_BYTES, wanted.size + ROOM_FOR_GREETING_BYTES),
            sink=file,
        )
        _done(reading, device, f"read {printable(remote)}")
        file.flush()
        found = digest_of(Path(file.name))
        if found != wanted.digest:
            there = wanted.digest
            raise GateError(f"{device}: {printable(remote)} came damaged: its SHA-256 there is {there}, here {found}")
        Path(file.name).replace(destination)


@contextlib.contextmanager
def _beside(destination: Path) -> Iterator[tempfile._TemporaryFileWrapper[bytes]]:
    """A file beside `destination` that is removed unless it was renamed."""
    with tempfile.NamedTemporaryFile(dir=destination.parent, prefix=".pull-", delete=False) as file:
        try:
            yield file
        finally:
            Path(file.name).unlink(missing_ok=True)


def _done(completed: Completed, device: str, what: str) -> None:
    if completed.code != 0:
        raise GateError(f"{device} could not {what}: {printable(completed.stderr)} (exit code {completed.code})")
