"""Work in a copy of a process: what it wrote, how it ended, and what it printed when it failed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import IO, NoReturn

import pytest

from acmix.toolkit.child import in_a_fork, tell

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="work is forked on Linux only")


def write_much(stream: IO[bytes]) -> NoReturn:
    tell(stream, {"answer": "x" * 200_000})
    os._exit(0)


def write_then_exit_with_3(stream: IO[bytes]) -> NoReturn:
    tell(stream, "half")
    os._exit(3)


def die(stream: IO[bytes]) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def fail(stream: IO[bytes]) -> NoReturn:
    raise ValueError("of ours")


@pytest.mark.parametrize(
    ("work", "length", "code"), [(write_much, 200_014, 0), (write_then_exit_with_3, 7, 3), (die, 0, -9)]
)
def test_what_a_copy_wrote_and_how_it_ended(work: Callable[[IO[bytes]], NoReturn], length: int, code: int) -> None:
    written, found = in_a_fork(work)
    assert (len(written), found) == (length, code)


def test_a_copy_that_fails_prints_its_traceback_and_never_goes_on_as_its_parent(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert in_a_fork(fail) == (b"", 1)
    assert "ValueError: of ours" in capfd.readouterr().err
