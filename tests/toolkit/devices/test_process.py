"""Local programs: bounded in time and output, and nothing of them stays."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from acmix.toolkit.devices._process import DRAIN_S, StoppedError, call
from acmix.toolkit.errors import UsageError


def alive(word: str) -> bool:
    time.sleep(0.1)
    return any(word in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))


def test_a_program_that_takes_too_long_goes_with_its_children() -> None:
    begin = time.monotonic()
    with pytest.raises(StoppedError, match=r"did not finish within 0\.5 s"):
        call(["sh", "-c", "sleep 71717 & sleep 71717"], timeout_s=0.5)
    assert time.monotonic() - begin < 3
    assert not alive("sleep 71717")


def test_a_program_that_floods_is_ended_early() -> None:
    with pytest.raises(StoppedError, match="more than 100000 bytes"):
        call(["yes", "flood71718"], timeout_s=30, limit_bytes=100_000)
    assert not alive("flood71718")


def test_errors_without_end_keep_their_beginning_and_their_end() -> None:
    done = call(["sh", "-c", "echo first >&2; yes | head -c 5000000 >&2; echo last >&2"], timeout_s=30)
    assert done.stderr.startswith(b"first\n") and done.stderr.endswith(b"last\n") and len(done.stderr) <= 2**18


def test_a_daemon_that_holds_the_pipes_does_not_hold_us() -> None:
    begin = time.monotonic()
    done = call(["sh", "-c", "setsid sleep 5 & echo done"], timeout_s=30)
    assert done.stdout == b"done\n"
    assert time.monotonic() - begin < DRAIN_S + 2


def test_input_that_nobody_reads_is_no_error() -> None:
    assert call(["true"], timeout_s=30, stdin=b"x" * 10_000_000).code == 0


def test_a_file_is_sent_from_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    with (tmp_path / "f").open("rb", buffering=0) as file:
        file.seek(4)
        assert call(["cat"], timeout_s=30, stdin=file).stdout == b"456789"


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="no-such-program"):
        call(["no-such-program"], timeout_s=1)
