"""Converters kept warm: imported once, then forked for each job, where one process exports many networks.

An import takes 4 to 7 s of processor time, as much as a small network's conversion. A job still has a process of its
own, that begins from a converter which has converted nothing. Only on Linux: Apple's frameworks survive no fork.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from acmix.toolkit.errors import AcmixError

STAY = "stay"
"""What tells a child that more jobs will come."""

Converter = subprocess.Popen[bytes]


class _Stock:
    """Converters that wait for a job, by target and threads; none outside of kept_warm()."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.keepers = 0
        self.idle: dict[tuple[str, int], list[Converter]] = defaultdict(list)

    def take(self, kind: tuple[str, int]) -> Converter | None:
        with self.lock:
            while self.idle[kind]:
                if (process := self.idle[kind].pop()).poll() is None:
                    return process
                _end(process)
        return None

    def put(self, kind: tuple[str, int], process: Converter) -> None:
        with self.lock:
            if self.keepers and process.poll() is None:
                self.idle[kind].append(process)
                return
        _end(process)

    def leave(self) -> None:
        with self.lock:
            self.keepers -= 1
            if self.keepers:
                return
            ended = [process for kind in self.idle.values() for process in kind]
            self.idle.clear()
        for process in ended:
            _end(process)


_STOCK = _Stock()


@contextlib.contextmanager
def kept_warm() -> Iterator[None]:
    """In this block a converter that has done its job waits for the next; they end with the outermost block."""
    with _STOCK.lock:
        _STOCK.keepers += 1
    try:
        yield
    finally:
        _STOCK.leave()


@contextlib.contextmanager
def converter(target: str, threads: int, log: Path, environment: Mapping[str, str]) -> Iterator[Converter]:
    """A child that lowers to `target`: one that waits, or a new one, that prints into `log` while it imports.

    Where it does not stay, or is in the middle of a job, it is ended with the block.
    """
    kind = (target, threads)
    stays = _STOCK.keepers > 0 and sys.platform == "linux"
    process = _STOCK.take(kind) or _started(target, stays, log, environment)
    try:
        yield process
    except BaseException as error:
        # A job that was refused, or that failed, is over; of anything else it may be in the middle.
        stays = stays and isinstance(error, AcmixError)
        raise
    finally:
        if stays:
            _STOCK.put(kind, process)
        else:
            _end(process)


def _started(target: str, stays: bool, log: Path, environment: Mapping[str, str]) -> Converter:
    command = [sys.executable, "-m", "acmix.toolkit.lower", target, *([STAY] if stays else [])]
    with log.open("ab") as stream:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, env=environment)


def _end(process: Converter) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
