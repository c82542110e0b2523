"""Files to and from a device through its shell: checked by SHA-256, sent once, resumed where they were cut."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from acmix.toolkit.device import Completed, printable
from acmix.toolkit.devices._cache import Cache
from acmix.toolkit.devices._framing import quote
from acmix.toolkit.devices._item import Execute, Item, digest_of, items
from acmix.toolkit.errors import GateError

SHORT_TIMEOUT_S = 30.0
SLOWEST_BYTES_PER_S = 200_000
"""Slower than any cable or wireless network that a measurement would be made over."""
PULL_LIMIT_BYTES = 1 << 31
ROOM_FOR_GREETING_BYTES = 1 << 16
MOST_AT_ONCE = 100
"""Files in one command line."""
SUM = 'sum=sha256sum; command -v sha256sum >/dev/null || sum="shasum -a 256"'
DIGEST = re.compile(rb"([0-9a-f]{64})\b")
HELD = re.compile(rb"([0-9]{1,15}) +([0-9a-f]{64})\b")


def timeout_s(size: int) -> float:
    """The time that so many bytes may take."""
    return SHORT_TIMEOUT_S + size / SLOWEST_BYTES_PER_S


def push(
    execute: Execute, device: str, folder: str, source: Path, name: str, cache: Cache | None = None, keep: bool = True
) -> str:
    """Send what the device does not hold yet; the remote path of `name`.

    cache: where it keeps files, which makes room where there is none.  keep: these files, for the next call.
    """
    wanted = items(source, folder, name, cache.limit_kb << 10 if cache and keep else 0)
    size = sum(item.size for item in wanted)
    places = {path for item in wanted for path in (item.remote, item.part)} or {f"{folder}/{name}/-"}
    folders = sorted({str(PurePosixPath(place).parent) for place in places})
    for some in batched(wanted):
        taking = cache.taking(some) if cache else ":"
        made = execute(f"{quote(['mkdir', '-p', *folders])} || exit\n{taking}\n:", timeout_s=timeout_s(size))
        _done(made, device, "make a folder")
    held = look(execute, [path for item in wanted for path in (item.remote, item.part)], size)
    for item in wanted:
        if held.get(item.remote, Held(0, "")).digest != item.digest:
            _send(execute, device, item, held.get(item.part, Held(0, "")).size, cache)
    return f"{folder}/{name}"


def batched(wanted: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """So few at once that a command line holds them; one batch even of nothing."""
    for begin in range(0, max(1, len(wanted)), MOST_AT_ONCE):
        yield wanted[begin : begin + MOST_AT_ONCE]


@dataclass(frozen=True)
class Held:
    """A file that the device says it holds."""

    size: int
    digest: str


def look(execute: Execute, paths: Sequence[str], size: int) -> dict[str, Held]:
    """Size and SHA-256 of files on the device by path, by its own tools; a missing file is not in the answer."""
    found: dict[str, Held] = {}
    for begin in range(0, len(paths), MOST_AT_ONCE):
        some = paths[begin : begin + MOST_AT_ONCE]
        # One line a file, in order, so that no name has to be read back.
        look_at = 'if [ -f "$f" ]; then echo $(wc -c <"$f") $($sum <"$f"); else echo -; fi'
        snippet = f"{SUM}; for f in {quote(some)}; do {look_at}; done"
        lines = execute(snippet, timeout_s=timeout_s(size)).stdout.split(b"\n")
        for path, line in zip(some, lines, strict=False):
            if match := HELD.match(line):
                found[path] = Held(int(match[1]), match[2].decode())
    return found


def _send(execute: Execute, device: str, item: Item, held: int, cache: Cache | None) -> None:
    done = _append(execute, item, held if held <= item.size else 0, cache)
    if done.code != 0 and cache is not None and cache.empty(execute):
        # What the device keeps for later is never why there is no room now.
        done = _append(execute, item, 0, cache)
    if _found(done, device, item) != item.digest:
        # What was there before the cut was damaged: once more, from the beginning.
        done = _append(execute, item, 0, cache)
    if (found := _found(done, device, item)) != item.digest:
        raise GateError(
            f"{device}: {item.source.name} arrived damaged: its SHA-256 there is {found}, here {item.digest}.\n"
            "Look at the cable, the disk or the memory of the device."
        )


def _append(execute: Execute, item: Item, held: int, cache: Cache | None) -> Completed:
    """Send the rest of a file, and put it in place when the device finds it whole; its digest is printed."""
    part, remote = quote([item.part]), quote([item.remote])
    before, after = (cache.making_room(item), cache.putting(item)) if cache and item.kept else (":", ":")
    place = f"chmod {item.mode} {part} && mv -f {part} {remote} && {{\n{after}\n}}"
    # A connection that was cut looks here like the end of the file: what has come is no damage then, and stays.
    damaged = f"[ $(wc -c <{part}) -lt {item.size} ] || rm -f {part}"
    judge = f'case "$d" in {item.digest}*) {place};; *) {damaged};; esac'
    # What came before a disk was full must not stay and fill it.
    grow = f"cat {'>>' if held else '>'}{part} || {{ rm -f {part}; exit 1; }}"
    write = f"{grow}\n{SUM}\nd=$($sum <{part}) && echo $d && {judge}"
    with item.source.open("rb", buffering=0) as file:
        file.seek(held)
        return execute(f"{before}\n{write}", timeout_s=timeout_s(item.size), stdin=file)


def _found(done: Completed, device: str, item: Item) -> str:
    """The digest that the device found; GateError when it could not write."""
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
