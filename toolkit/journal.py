"""The journal of a measurement: every sample is in a file before the next run begins, so that a cut loses none."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from acmix.toolkit.errors import UsageError

Stage = Literal["load", "first_run", "warm_up", "latency"]
SUFFIX = ".jsonl"
LIMIT_BYTES = 2**30


@dataclass
class Record:
    """What was taken of one artifact so far: nanoseconds, by stage.

    process_starts: places in the latencies where a new process began.
    """

    taken: dict[Stage, list[int]] = field(
        default_factory=lambda: {"load": [], "first_run": [], "warm_up": [], "latency": []}
    )
    peak_memory_mb: float = 0.0
    is_steady: bool = False
    process_starts: list[int] = field(default_factory=list)


class Sample(msgspec.Struct, array_like=True, frozen=True):
    """One line for one run: the artifact by its place, the stage, nanoseconds, peak memory of its process."""

    lane: int
    stage: Stage
    ns: int
    peak_memory_mb: float = 0.0


class Journal:
    """A file that grows by one line a sample.

    A line is handed to the system before `write` returns: it survives the death of this process, SIGKILL too; it
    does not survive a power cut.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._stream = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def write(self, line: object) -> None:
        """One line of JSON, whole."""
        data = msgspec.json.encode(line) + b"\n"
        while data:
            data = data[os.write(self._stream, data) :]

    def close(self) -> None:
        """The file stays: whoever saved the result removes it."""
        os.close(self._stream)


def journal_beside(folder: Path, kind: str = "profile") -> Path:
    """A journal's name that is free: what it is of, the time, and a number where that second is taken."""
    stem = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (f"{stem}{f'-{number}' if number else ''}" for number in range(1000))
    for name in names:
        if not (folder / f"{name}{SUFFIX}").exists() and not (folder / f"{name}.json").exists():
            return folder / f"{name}{SUFFIX}"
    raise UsageError(f"{folder} holds a thousand profiles of this second.\nMeasure again in another folder.")


def result_of(journal: Path) -> Path:
    """Where the finished measurement of a journal goes."""
    return journal.with_suffix(".json")


def lines_of(file: Path) -> Iterator[bytes]:
    """The whole lines of a journal. The last one may be half written: without its newline it does not count."""
    with contextlib.closing(file.open("rb")) as stream:
        if os.fstat(stream.fileno()).st_size > LIMIT_BYTES:
            raise UsageError(f"{file} is larger than {LIMIT_BYTES >> 20} MB.\nIt is no journal of a measurement.")
        for line in stream:
            if line.endswith(b"\n"):
                yield line
