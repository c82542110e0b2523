"""One file on its way to a device."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from acmix.toolkit.device import OUTPUT_LIMIT_BYTES, Completed
from acmix.toolkit.devices._process import Sink
from acmix.toolkit.errors import UsageError

PARTS = ".parts"
"""In the work folder: where files grow that the device will keep."""


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
    """One file to be pushed and where it goes.

    part: where it grows, named by its digest, so that only the same bytes are ever continued.  kept: for the next call.
    """

    source: Path
    remote: str
    digest: str
    size: int
    part: str
    kept: bool = False

    @property
    def mode(self) -> str:
        """For chmod."""
        return "755" if os.access(self.source, os.X_OK) else "644"

    @property
    def kb(self) -> int:
        """In KiB, rounded up."""
        return -(-self.size >> 10)


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


def items(source: Path, folder: str, name: str, most_kept: int = 0) -> tuple[Item, ...]:
    """The files of a push: one, or all of a folder in order. most_kept: bytes; a larger file is not kept."""
    check_name(name)
    if source.is_file():
        return (_item(source, folder, name, most_kept),)
    if not source.is_dir():
        raise UsageError(f"{source} cannot be pushed: there is no such file or folder.")
    found = [file for file in sorted(source.rglob("*")) if file.is_file()]
    names = [f"{name}/{file.relative_to(source).as_posix()}" for file in found]
    for each in names:
        check_name(each)
    return tuple(_item(file, folder, each, most_kept) for file, each in zip(found, names, strict=True))


def _item(source: Path, folder: str, name: str, most_kept: int) -> Item:
    digest, size, remote = digest_of(source), source.stat().st_size, f"{folder}/{name}"
    kept = 0 < size <= most_kept
    part = f"{folder}/{PARTS}/{digest}" if kept else f"{remote}.{digest[:16]}.part"
    return Item(source, remote, digest, size, part, kept)
