"""What the processes of converters and runtimes have in common: foreign code that prints, leaks and never cleans up."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import IO, NoReturn

import msgspec


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


def answer_and_leave(answers: IO[bytes], answer: object) -> NoReturn:
    """The end of a converter's child: its one answer, and out."""
    answers.write(msgspec.json.encode(answer) + b"\n")
    answers.flush()
    # Converters register exit handlers that take seconds and change nothing: leave at once.
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(0)


def in_one_line(error: Exception) -> str:
    """What a converter raised, for an answer; the log has the traceback. To be called where it was caught."""
    with contextlib.suppress(OSError):
        traceback.print_exc()
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
