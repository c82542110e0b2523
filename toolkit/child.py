"""What the processes of converters and runtimes have in common: foreign code that prints, leaks and never cleans up."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NoReturn

import msgspec

PR_SET_PDEATHSIG = 1
"""prctl(2), Linux: which signal a process gets when its parent ends."""


@contextlib.contextmanager
def converter_environment() -> Iterator[dict[str, str]]:
    """For a converter's child: its temporary files are gone when the block is left, however the child ended.

    coremltools keeps a copy of each package that it writes until the process exits in order, which ours never does.
    """
    with tempfile.TemporaryDirectory(prefix="acmix-", ignore_cleanup_errors=True) as folder:
        yield {**os.environ, "TMPDIR": folder, "TF_CPP_MIN_LOG_LEVEL": "2"}


def private_stdout() -> IO[bytes]:
    """Our own copy of stdout; from now on what C++ prints there goes to stderr."""
    sys.stdout.flush()
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stream


def tell(answers: IO[bytes], message: object) -> None:
    """One line of JSON."""
    answers.write(msgspec.json.encode(message) + b"\n")
    answers.flush()


def leave() -> NoReturn:
    """Out at once: converters register exit handlers that take seconds and change nothing."""
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(0)


def answer_and_leave(answers: IO[bytes], message: object) -> NoReturn:
    """The end of a converter's child: its one answer, and out."""
    tell(answers, message)
    leave()


def in_a_fork(work: Callable[[IO[bytes]], NoReturn]) -> tuple[bytes, int]:
    """Do it in a copy of this process, which dies with this one.

    What the copy wrote into the stream that it was given, and how it ended: 0, its exit code or -signal.
    """
    sys.stderr.flush()
    parent = os.getpid()
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        # The parent is killed when its time is up, and can say nothing any more. Nor does a copy go on as its parent.
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.close(reading)
            if os.getppid() == parent:
                work(os.fdopen(writing, "wb"))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        written = stream.read()
    return written, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def settle(log: Path, scratch: Path) -> None:
    """Print into `log` and put temporary files into `scratch` from now on."""
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 2)
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)


def in_one_line(error: Exception) -> str:
    """What a converter raised, for an answer; the log has the traceback. To be called where it was caught."""
    with contextlib.suppress(OSError):
        traceback.print_exc()
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
