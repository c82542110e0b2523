"""What each transport promises, asked of this machine, a real sshd, a virtual board and a virtual phone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from acmix.toolkit.device import Transport
from acmix.toolkit.devices import _transfer
from acmix.toolkit.devices._checks import examine
from acmix.toolkit.devices._item import items
from acmix.toolkit.devices._shell import ShellTransport
from acmix.toolkit.errors import GateError, UsageError

AWKWARD = ["a b", "'", '"', "$(touch owned)", "`touch owned`", "x\ny", "\\", "\\n", "!", "*", "?", "~", "", "-n", "--"]
AWKWARD += ["é", "$HOME", "${HOME}", "a\tb", ";", "&&", "|", "%s", "\r", "#", ">owned", "\x1b[31m", "'\"'\"'", "{a,b}"]

through_a_shell = pytest.mark.parametrize("connection", ["laptop", "board", "phone"], indirect=True, scope="module")


def test_it_is_ready_and_passes_every_check_of_doctor(transport: Transport) -> None:
    assert transport.state().ready
    assert [check for check in examine(transport.device) if not check.fine] == []


def test_every_argument_arrives_as_it_is(transport: Transport) -> None:
    done = transport.run(["sh", "-c", 'printf "%s\\0" "$@"', "sh", *AWKWARD], timeout_s=30)
    assert done.stdout.split(b"\0")[:-1] == [word.encode() for word in AWKWARD]


@pytest.mark.parametrize("code", [0, 1, 127, 255])
def test_the_exit_code_and_both_outputs_come_back_apart(transport: Transport, code: int) -> None:
    done = transport.run(["sh", "-c", f"echo out; echo err >&2; exit {code}"], timeout_s=30)
    assert (done.code, done.stdout, done.stderr) == (code, b"out\n", b"err\n")


def test_bytes_stay_bytes_in_both_directions(transport: Transport) -> None:
    data = bytes(range(256)) * 4096
    assert transport.run(["cat"], timeout_s=60, stdin=data).stdout == data


def test_a_command_that_hangs_is_ended_there_too(transport: Transport, alive: Callable[[str], list[str]]) -> None:
    nap = f"61{time.time_ns() % 10**6}"
    begin = time.monotonic()
    with pytest.raises(GateError, match=r"did not finish within 1\.5 s"):
        transport.run(["sleep", nap], timeout_s=1.5)
    assert time.monotonic() - begin < 10
    assert alive(f"sleep {nap}") == []


def test_a_command_that_floods_is_stopped(transport: Transport, alive: Callable[[str], list[str]]) -> None:
    with pytest.raises(GateError, match="printed more than"):
        transport.run(["yes", f"flood{transport.device.name}"], timeout_s=120)
    assert alive(f"yes flood{transport.device.name}") == []


def test_a_program_that_is_not_there_is_an_exit_code(transport: Transport) -> None:
    assert transport.run(["no-such-program"], timeout_s=30).code == 127


def test_lines_go_both_ways(transport: Transport) -> None:
    with transport.stream(["cat"]) as lines:
        for sent in (b'{"do": "load"}\n', b"x" * 100_000 + b"\n", b"\n"):
            lines.write(sent)
            assert lines.readline(30, 200_000) == sent


def test_a_line_that_never_comes_and_one_that_never_ends_are_refused(transport: Transport) -> None:
    with transport.stream(["cat"]) as lines:
        with pytest.raises(GateError, match=r"no line within 0\.3 s"):
            lines.readline(0.3, 100)
        lines.write(b"y" * 300)
        with pytest.raises(GateError, match="a line of more than 100 bytes"):
            lines.readline(30, 100)


def test_a_runner_that_dies_says_so_with_its_last_words(transport: Transport) -> None:
    script = "read line; echo answer; echo out of memory >&2; exit 3"
    with transport.stream(["sh", "-c", script]) as lines:
        lines.write(b"go\n")
        assert lines.readline(30, 100) == b"answer\n"
        with pytest.raises(GateError, match="ended with exit code 3; its last words: out of memory"):
            lines.readline(30, 100)


def test_a_runner_that_ignores_its_input_is_ended_with_the_stream(
    transport: Transport, alive: Callable[[str], list[str]]
) -> None:
    nap = f"62{time.time_ns() % 10**6}"
    with transport.stream(["sh", "-c", f"echo started; sleep {nap}"]) as lines:
        assert lines.readline(30, 100) == b"started\n"
    assert alive(f"sleep {nap}") == []


def test_a_pushed_folder_comes_back_byte_for_byte(transport: Transport, tmp_path: Path) -> None:
    source = tmp_path / "bundle"
    (source / "deep er").mkdir(parents=True)
    (source / "runner").write_bytes(b"#!/bin/sh\necho ran\n")
    (source / "runner").chmod(0o755)
    (source / "deep er" / "it's $(id) é").write_bytes(bytes(range(256)) * 1000)
    (source / "empty").write_bytes(b"")
    remote = transport.push(source, "bundle")
    for file in (f for f in source.rglob("*") if f.is_file()):
        transport.pull(f"{remote}/{file.relative_to(source)}", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert transport.run([f"{remote}/runner"], timeout_s=30).stdout == b"ran\n"
    transport.remove_work_folder()
    assert transport.run(["ls", str(Path(remote).parent)], timeout_s=30).code != 0


def test_a_second_push_sends_nothing_and_a_change_is_sent(transport: Transport, tmp_path: Path) -> None:
    source = tmp_path / "model.bin"
    source.write_bytes(b"one")
    remote = transport.push(source, "model.bin")
    inode = transport.run(["stat", "-c", "%i %Y", remote], timeout_s=30).stdout
    transport.push(source, "model.bin")
    assert transport.run(["stat", "-c", "%i %Y", remote], timeout_s=30).stdout == inode
    transport.run(["sh", "-c", f"printf bad >'{remote}'"], timeout_s=30)
    transport.push(source, "model.bin")
    assert transport.run(["cat", remote], timeout_s=30).stdout == b"one"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "", "a\nb", "a/../../b", "a\\b"])
def test_a_name_that_leaves_the_work_folder_is_refused(transport: Transport, tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(UsageError, match="cannot be a file's name"):
        transport.push(tmp_path / "x", name)


@through_a_shell
def test_a_cut_push_goes_on_where_it_was_cut(transport: ShellTransport, tmp_path: Path) -> None:
    source = tmp_path / "model.bin"
    data = hashlib.sha256(b"seed").digest() * 50_000
    source.write_bytes(data)
    (item,) = items(source, transport.work_folder(), "model.bin")
    script = f"head -c 1000000 >'{item.part}'"
    transport.run(["sh", "-c", script], timeout_s=60, stdin=data)
    sent: list[int] = []
    execute = transport.execute

    def counted(snippet: str, **options: object) -> object:
        stdin = options.get("stdin", b"")
        sent.append(0 if isinstance(stdin, bytes) else source.stat().st_size - stdin.tell())  # type: ignore[attr-defined]
        return execute(snippet, **options)  # type: ignore[arg-type]

    path = _transfer.push(counted, "device", transport.work_folder(), source, "model.bin")  # type: ignore[arg-type]
    assert sum(sent) == len(data) - 1_000_000
    assert transport.run(["sha256sum", path], timeout_s=60).stdout[:64].decode() == hashlib.sha256(data).hexdigest()


@through_a_shell
def test_a_damaged_beginning_is_sent_again_from_the_start(transport: ShellTransport, tmp_path: Path) -> None:
    source = tmp_path / "model.bin"
    source.write_bytes(b"good" * 1000)
    (item,) = items(source, transport.work_folder(), "model.bin")
    transport.run(["sh", "-c", f"printf bad! >'{item.part}'"], timeout_s=30)
    path = transport.push(source, "model.bin")
    assert transport.run(["cat", path], timeout_s=30).stdout == b"good" * 1000
    assert b".part" not in transport.run(["ls", "-a", transport.work_folder()], timeout_s=30).stdout


def test_texts_of_the_system_are_read_and_missing_ones_are_unknown(transport: Transport) -> None:
    assert (
        transport.read_text("/sys/devices/system/cpu/online")
        == Path("/sys/devices/system/cpu/online").read_text().strip()
    )
    assert transport.read_text("/sys/devices/system/cpu/no such file") is None


def test_a_file_that_is_not_there_cannot_be_pulled(transport: Transport, tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"no file|cannot be read"):
        transport.pull("/no/such/file", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
