"""Lines of a command on another machine, here run by this machine's own sh."""

from __future__ import annotations

import subprocess

import pytest

from acmix.toolkit.devices import _process
from acmix.toolkit.devices._framing import frame
from acmix.toolkit.devices._lines import ProcessLines
from acmix.toolkit.errors import GateError


def lines_of(greeting: str, command: str) -> ProcessLines:
    """A command behind a greeting, as a login shell prints one before it obeys."""
    made = frame(command)
    process = _process.start(["sh", "-c", f"{greeting}\n{made.script}"], stdin=subprocess.PIPE)
    return ProcessLines("board", process, made)


@pytest.mark.parametrize("length", [0, 99, 101, 5000, 200_000])
def test_a_greeting_of_any_length_is_no_line_of_the_command(length: int) -> None:
    lines = lines_of(f"head -c {length} /dev/zero | tr '\\0' x", "echo held")
    try:
        assert lines.readline(10, 100) == b"held\n"
    finally:
        _process.end(lines.process)


def test_a_line_of_the_command_has_its_limit() -> None:
    lines = lines_of("echo welcome", "head -c 5000 /dev/zero | tr '\\0' x")
    try:
        with pytest.raises(GateError, match="a line of more than 100 bytes"):
            lines.readline(10, 100)
    finally:
        _process.end(lines.process)
