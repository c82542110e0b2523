"""The marks around a command, read by real shells and against noise."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acmix.toolkit.device import printable
from acmix.toolkit.devices._framing import AfterMark, frame, payload, quote, unframe
from acmix.toolkit.errors import UsageError

SHELLS = [shell for shell in ("dash", "bash", "mksh", "busybox") if shutil.which(shell)]


def run(shell: str, script: str) -> subprocess.CompletedProcess[bytes]:
    head = [shell, "sh"] if shell == "busybox" else [shell]
    return subprocess.run([*head, "-c", script], capture_output=True, timeout=20)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_any_arguments_survive_any_shell(words: list[str]) -> None:
    for shell in SHELLS:
        done = run(shell, frame(quote(["printf", "%s\\0", *words])).script)
        assert done.stdout.split(b"\n", 2)[2] == b"".join(word.encode() + b"\0" for word in words)


def test_a_nul_and_an_empty_command_are_refused() -> None:
    for command in (["a\0b"], []):
        with pytest.raises(UsageError):
            quote(command)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("code", [0, 3, 255])
def test_code_and_outputs_are_told_from_the_marks(shell: str, code: int) -> None:
    made = frame(f"echo out; echo err >&2; exit {code}")
    done = run(shell, f"echo Welcome; echo careful >&2; {made.script}")
    framed = unframe(made, done.stderr)
    assert (framed.code, payload(made, done.stdout), framed.stderr) == (code, b"out\n", b"err\n")
    assert framed.pid is not None and framed.pid > 1


def test_without_an_end_mark_the_command_did_not_finish() -> None:
    made = frame("true")
    assert unframe(made, f"\n{made.word} begin 77\nhalf".encode()).code is None
    assert unframe(made, b"Connection refused").pid is None


@pytest.mark.parametrize("pid", ["0", "1", "999999999", "4194305"])
def test_a_process_id_that_cannot_be_the_command_s_is_not_believed(pid: str) -> None:
    made = frame("true")
    assert unframe(made, f"\n{made.word} begin {pid}\n".encode()).pid is None


@given(st.binary(), st.binary())
def test_no_bytes_confuse_the_reader(before: bytes, after: bytes) -> None:
    made = frame("true")
    noisy = before + f"\n{made.word} begin 77\n".encode() + after + f"\n{made.word} end 5\n".encode()
    framed = unframe(made, noisy)
    assert (framed.pid, framed.code, framed.stderr) == (77, 5, after)


@given(st.binary(max_size=200), st.binary(), st.integers(1, 50))
def test_what_follows_the_mark_is_passed_on_in_whatever_pieces_it_comes(
    before: bytes, after: bytes, piece: int
) -> None:
    import io

    made, sink = frame("true"), io.BytesIO()
    stream = before + f"\n{made.word} begin 77\n".encode() + after
    reader = AfterMark(made, sink)
    for begin in range(0, len(stream), piece):
        reader.write(stream[begin : begin + piece])
    assert sink.getvalue() == after


@given(st.binary())
def test_nothing_printable_moves_the_cursor(data: bytes) -> None:
    shown = printable(data)
    assert shown.isprintable() and len(shown) <= 404


def test_direction_marks_and_escapes_are_not_printed() -> None:
    assert printable("a\u202eb\x1b[2Jc\x07") == "a?b?[2Jc?"
