"""A real sshd whose every command is answered by somebody with bad intentions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acmix.apps.cli import app
from acmix.apps.selftest.record import read
from acmix.toolkit.device import Transport
from acmix.toolkit.devices import _registry, connect
from acmix.toolkit.devices._checks import examine
from acmix.toolkit.errors import AcmixError, GateError

SHELL = r"""#!/bin/bash
# $1: a file with what to do now. SSH_ORIGINAL_COMMAND: what we were asked for.
word=$(grep -o 'acmix-[0-9a-f]*' <<<"$SSH_ORIGINAL_COMMAND" | head -1)
begin() { printf '\n%s begin %s\n' "$word" "${1:-4242}"; printf '\n%s begin %s\n' "$word" "${1:-4242}" >&2; }
end() { printf '\n%s end %s\n' "$word" "${1:-0}" >&2; }
case $(cat "$1") in
  silence) exec sleep 600 ;;
  garbage) head -c 100000 /dev/urandom; head -c 100000 /dev/urandom >&2 ;;
  megabytes) begin; exec head -c 500000000 /dev/zero ;;
  megabytes_of_errors) begin; head -c 50000000 /dev/zero >&2; end 1 ;;
  greeting) head -c 300000 /dev/zero; begin; echo hello; end ;;
  escapes) begin; printf 'no \033]0;owned\007\033[2J\033[31m\r\b\xe2\x80\xae\xff space' >&2; end 1 ;;
  escapes_before) printf '\033[2Jbye\007' >&2 ;;
  pid_one) begin 1; exec sleep 600 ;;
  pid_long) begin 99999999999999999999; end ;;
  begins_only) begin; exec sleep 600 ;;
  exit_code) begin; end 999999999999 ;;
  wrong_digests) PATH=$1.path:$PATH exec bash -c "$SSH_ORIGINAL_COMMAND" ;;
  odd_folder) begin; printf '/\033[2J/acmix-work\n'; end ;;
  endless_line) begin; exec tr '\0' x </dev/zero ;;
  honest) exec bash -c "$SSH_ORIGINAL_COMMAND" ;;
esac
"""


class Hostile:
    """The transport to it and what it does next."""

    def __init__(self, transport: Transport, mood: Path) -> None:
        self.transport, self.mood = transport, mood

    def will(self, what: str) -> Transport:
        """From now on."""
        self.mood.write_text(what)
        return self.transport


@pytest.fixture(scope="module")
def hostile(
    start: Callable[..., AbstractContextManager[Any]],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Hostile]:
    folder = tmp_path_factory.mktemp("hostile")
    shell, mood = folder / "shell", folder / "mood"
    shell.write_text(SHELL)
    shell.chmod(0o755)
    mood.write_text("honest")
    liar = Path(f"{mood}.path")
    liar.mkdir()
    (liar / "sha256sum").write_text("#!/bin/sh\nexec printf '%064d  -\\n' 0\n")
    (liar / "sha256sum").chmod(0o755)
    setting = f"ForceCommand {shell} {mood}"
    with start("hostile", request, folder, setting) as neighbour, connect(neighbour.device) as transport:
        yield Hostile(transport, mood)


def test_one_that_behaves_is_served(hostile: Hostile) -> None:
    assert hostile.will("honest").run(["echo", "hello"], timeout_s=30).stdout == b"hello\n"


@pytest.mark.parametrize(
    ("mood", "sentence"),
    [
        ("silence", r"did not finish within 2 s"),
        ("begins_only", r"did not finish within 2 s"),
        ("pid_one", r"did not finish within 2 s"),
        ("garbage", r"no shell answered"),
        ("escapes_before", r"no shell answered"),
        ("megabytes", r"printed more than|did not finish"),
        ("exit_code", r"the connection broke"),
    ],
)
def test_nonsense_is_a_sentence_and_never_a_hang(hostile: Hostile, mood: str, sentence: str) -> None:
    begin = time.monotonic()
    with pytest.raises(GateError, match=sentence) as raised:
        hostile.will(mood).run(["echo", "hello"], timeout_s=2)
    assert time.monotonic() - begin < 15
    assert_harmless(str(raised.value))


def assert_harmless(text: str) -> None:
    """Nothing that a terminal would take for a command."""
    assert all(c.isprintable() or c == "\n" for c in text)
    assert len(text) < 2000


def test_a_long_greeting_is_passed_over(hostile: Hostile) -> None:
    assert hostile.will("greeting").run(["echo"], timeout_s=30).stdout == b"hello\n"


def test_megabytes_of_errors_are_cut_and_the_exit_code_is_still_read(hostile: Hostile) -> None:
    done = hostile.will("megabytes_of_errors").run(["echo"], timeout_s=60)
    assert done.code == 1
    assert len(done.stderr) <= 2**18


def test_a_wrong_digest_is_refused_in_both_directions(hostile: Hostile, tmp_path: Path) -> None:
    source = tmp_path / "model.bin"
    source.write_bytes(b"model")
    with pytest.raises(GateError, match=r"arrived damaged: its SHA-256 there is 0{64}"):
        hostile.will("wrong_digests").push(source, "model.bin")
    with pytest.raises(GateError, match="came damaged"):
        hostile.will("wrong_digests").pull(str(source), tmp_path / "back")
    assert [file.name for file in tmp_path.iterdir()] == ["model.bin"]


def test_a_work_folder_with_escape_sequences_is_refused(hostile: Hostile, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    # A connection of its own: the other one knows its folder already.
    hostile.will("odd_folder")
    with connect(hostile.transport.device) as transport, pytest.raises(GateError, match="says that the work") as raised:
        transport.push(tmp_path / "x", "x")
    assert_harmless(str(raised.value))


@pytest.mark.parametrize("mood", ["endless_line", "silence", "garbage", "begins_only"])
def test_a_stream_of_nonsense_ends(hostile: Hostile, mood: str) -> None:
    begin = time.monotonic()
    with hostile.will(mood).stream(["runner"]) as lines, pytest.raises(GateError) as raised:
        lines.readline(2, 10_000)
    assert time.monotonic() - begin < 15
    assert_harmless(str(raised.value))


@pytest.mark.parametrize("mood", ["escapes", "garbage", "escapes_before", "wrong_digests", "exit_code", "pid_long"])
def test_doctor_ends_with_words_that_are_safe_to_print(
    hostile: Hostile, mood: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile.will(mood)
    checks = examine(hostile.transport.device)
    assert not all(check.fine for check in checks)
    for check in checks:
        assert_harmless(check.found + check.cure)
    monkeypatch.setattr(_registry, "folders", lambda: (tmp_path, tmp_path))
    _registry.write(hostile.transport.device, tmp_path, overwrite=False)
    answer = CliRunner().invoke(app, ["devices", "doctor", "hostile", "--json"])
    assert answer.exit_code == 1
    assert_harmless(answer.stderr)


def test_every_error_of_a_hostile_device_is_one_that_we_explain(hostile: Hostile, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 1000)
    for mood in ("garbage", "escapes", "exit_code", "pid_long", "escapes_before"):
        transport = hostile.will(mood)
        for move in (
            lambda: transport.push(tmp_path / "x", "x"),  # noqa: B023
            lambda: transport.pull("/etc/hostname", tmp_path / "y"),  # noqa: B023
        ):
            with pytest.raises(AcmixError) as raised:
                move()
            assert_harmless(str(raised.value))
        # These two may end well: an exit code and empty output are answers.
        for act in (lambda: transport.read_text("/proc/uptime"), transport.remove_work_folder):  # noqa: B023
            try:
                act()
            except AcmixError as error:
                assert_harmless(str(error))


@pytest.mark.parametrize("mood", ["garbage", "escapes", "wrong_digests", "pid_long"])
def test_a_selftest_of_it_fails_in_safe_words_and_is_written_down(
    hostile: Hostile, mood: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile.will(mood)
    monkeypatch.setattr(_registry, "folders", lambda: (tmp_path, tmp_path))
    _registry.write(hostile.transport.device, tmp_path, overwrite=False)
    out = tmp_path / "facts.json"
    answer = CliRunner().invoke(app, ["selftest", "--device", "hostile", "--out", str(out)])
    assert answer.exit_code == 1, answer.exception
    records = read(out).records
    assert any(record.outcome == "failed" and record.reason for record in records)
    for one in records:
        assert_harmless(one.reason)
    assert all(c.isprintable() or c == "\n" for c in answer.stderr + out.read_text("utf-8"))
