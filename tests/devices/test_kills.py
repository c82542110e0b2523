"""What is killed in the middle of the work: a sentence within the time-out, no process left, and on it goes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest

from acmix.toolkit.devices import _shell, connect
from acmix.toolkit.errors import GateError

Start = Callable[..., AbstractContextManager[Any]]
Alive = Callable[[str], list[str]]


def kill_all(*words: str) -> int:
    """SIGKILL to each process with all the words in its command line; how many there were."""
    killed = 0
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if process.pid != os.getpid() and all(word in line for word in words):
                process.kill()
                killed += 1
        except psutil.Error:
            continue
    return killed


def kill_runner(line: str) -> None:
    """SIGKILL to the one process that runs `line`: not to the client and the shells that only name it."""
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        # Under qemu-user the interpreter and its file stand in front.
        if words[-2:] == line.split() and "sh" not in words and "acmix-" not in " ".join(words):
            process.kill()


def kill_family(pid: int) -> None:
    """SIGKILL to a process and all under it."""
    parent = psutil.Process(pid)
    for process in (*parent.children(recursive=True), parent):
        # Inside a namespace all die with the first.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def later(action: Callable[[], object]) -> None:
    """In half a second, while the test waits for the device."""
    threading.Timer(0.5, action).start()


def once_it_runs(line: str, action: Callable[[], object]) -> None:
    """As soon as a process of this machine runs `line`, while the test waits for the device."""

    def runs(process: psutil.Process) -> bool:
        try:
            return process.cmdline() == line.split()
        except psutil.Error:
            return False

    def wait() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not any(map(runs, psutil.process_iter())):
            time.sleep(0.1)
        action()

    threading.Thread(target=wait).start()


def test_an_adb_server_that_is_killed_in_mid_stream_comes_back(
    start: Start, request: pytest.FixtureRequest, tmp_path: Path, alive: Alive
) -> None:
    nap = f"63{time.time_ns() % 10**6}"
    with start("phone", request, tmp_path) as phone, connect(phone.device) as transport:
        server = (tmp_path / "adb-path" / "adb").read_text().partition("ANDROID_ADB_SERVER_PORT=")[2].split()[0]
        with transport.stream(["sh", "-c", f"echo started; sleep {nap}"]) as lines:
            assert lines.readline(30, 100) == b"started\n"
            later(lambda: kill_all(f"tcp:{server}", "fork-server"))
            begin = time.monotonic()
            with pytest.raises(GateError, match="the connection broke while the runner ran"):
                lines.readline(20, 100)
            assert time.monotonic() - begin < 10
        assert alive(f"sleep {nap}") == []
        assert transport.run(["echo", "again"], timeout_s=30).stdout == b"again\n"


def test_an_sshd_that_is_killed_in_mid_run_is_a_sentence(
    start: Start, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    nap = f"67{time.time_ns() % 10**6}"
    with start("server", request, tmp_path) as neighbour, connect(neighbour.device) as transport:
        transport.run(["true"], timeout_s=30)
        killed: list[float] = []

        def kill() -> None:
            killed.append(time.monotonic())
            kill_family(neighbour.process.pid)

        once_it_runs(f"sleep {nap}", kill)
        with pytest.raises(GateError, match="the connection broke while a command ran"):
            transport.run(["sleep", nap], timeout_s=20)
        assert time.monotonic() - killed[0] < 10
        with pytest.raises(GateError, match=r"offline[\s\S]*no ssh server listens"):
            transport.run(["true"], timeout_s=20)
        assert transport.state().availability == "offline"


def test_a_phone_that_vanishes_is_a_sentence(start: Start, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with start("phone", request, tmp_path) as phone, connect(phone.device) as transport:
        with transport.stream(["sh", "-c", "echo started; sleep 30"]) as lines:
            assert lines.readline(30, 100) == b"started\n"
            later(lambda: kill_family(phone.process.pid))
            begin = time.monotonic()
            with pytest.raises(GateError, match="the connection broke while the runner ran"):
                lines.readline(20, 100)
            assert time.monotonic() - begin < 10
        state = transport.state()
        assert state.availability in ("absent", "offline") and state.cure
        with pytest.raises(GateError):
            transport.push(Path(__file__), "x")


@pytest.mark.parametrize("kind", ["server", "board", "phone"])
def test_a_runner_that_is_killed_is_told_by_its_exit_code(
    start: Start, request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    nap = f"64{time.time_ns() % 10**6}"
    with (
        start(kind, request, tmp_path) as neighbour,
        connect(neighbour.device) as transport,
        transport.stream(["sh", "-c", f"echo $$; exec sleep {nap}"]) as lines,
    ):
        lines.readline(30, 100)
        later(lambda: kill_runner(f"sleep {nap}"))
        with pytest.raises(GateError, match="the runner ended with exit code 137"):
            lines.readline(20, 100)


@pytest.mark.parametrize("kind", ["server", "board", "phone"])
def test_a_push_that_is_cut_is_finished_by_the_next(
    start: Start, request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    source = tmp_path / "model.bin"
    # Large enough that the cut comes in the middle, at each one's speed.
    source.write_bytes(os.urandom(1 << 20) * {"server": 48, "board": 24, "phone": 12}[kind])
    with start(kind, request, tmp_path) as neighbour, connect(neighbour.device) as transport:
        transport.run(["true"], timeout_s=30)
        client = "adb" if kind == "phone" else "ssh"
        place = Path(neighbour.device.work_folder)
        if kind != "server":
            # Its own file systems, as this machine sees them.
            inside = f"/proc/{neighbour.process.pid}/root{request.getfixturevalue('arm64_root')}"
            place = Path(inside, {"board": "home/pi", "phone": "data/local/tmp"}[kind])
        cut = threading.Thread(target=_kill_the_client, args=(client, place))
        cut.start()
        # On a busy machine the first mark of the shell may still be on its way.
        with pytest.raises(GateError, match=r"the connection broke|no shell answered"):
            transport.push(source, "model.bin")
        cut.join()
        remote = transport.push(source, "model.bin")
        found = transport.run(["sha256sum", remote], timeout_s=120).stdout[:64].decode()
        assert found == hashlib.sha256(source.read_bytes()).hexdigest()
        transport.remove_work_folder()


def _kill_the_client(client: str, place: Path) -> None:
    """SIGKILL to the client of the copy, when a megabyte of the file is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(part.stat().st_size > 1 << 20 for part in place.rglob("*.part")):
        time.sleep(0.001)
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            if process.info["name"] == client and "cat >" in " ".join(process.cmdline()):
                process.kill()


@pytest.mark.parametrize("kind", ["server", "board", "phone"])
def test_when_we_are_killed_our_runner_ends_and_nothing_of_ours_stays(
    start: Start, request: pytest.FixtureRequest, tmp_path: Path, alive: Alive, kind: str
) -> None:
    word = f"reader{time.time_ns() % 10**6}"
    program = (
        "import sys, time\n"
        "from acmix.toolkit.device import Device\n"
        "from acmix.toolkit.devices import connect\n"
        f"with connect(Device({kind!r}, sys.argv[1], sys.argv[2])) as t:\n"
        f"    with t.stream(['sh', '-c', 'echo started; while read line; do :; done', {word!r}]) as lines:\n"
        "        lines.readline(30, 100); print('up', flush=True); time.sleep(60)\n"
    )
    with start(kind, request, tmp_path) as neighbour:
        command = [sys.executable, "-c", program, neighbour.device.transport, neighbour.device.address]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"up\n"
            assert alive(word) != []
            process.send_signal(signal.SIGKILL)
        assert alive(word) == []


def test_closing_leaves_no_master_connection(start: Start, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with start("server", request, tmp_path) as neighbour:
        with connect(neighbour.device) as transport:
            transport.run(["true"], timeout_s=30)
            (socket,) = [p for p in Path("/tmp").glob("acmix-*/mux") if p.is_socket() and _is_of_ours(p)]
        assert not socket.parent.exists()
        time.sleep(0.3)
        assert [p for p in psutil.process_iter() if _mentions(p, str(socket))] == []


def _is_of_ours(path: Path) -> bool:
    return any(_mentions(process, str(path)) for process in psutil.process_iter())


def _mentions(process: psutil.Process, word: str) -> bool:
    try:
        return word in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_a_phone_that_hangs_is_not_waited_for(
    start: Start, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shell, "REMOVE_TIMEOUT_S", 1.5)
    (tmp_path / "x").write_bytes(b"x")
    with start("phone", request, tmp_path) as phone, connect(phone.device) as transport:
        transport.push(tmp_path / "x", "x")
        family = psutil.Process(phone.process.pid).children(recursive=True)
        for process in family:
            process.suspend()
        begin = time.monotonic()
        try:
            with pytest.raises(GateError, match=r"no answer within 1.5 s whether /data.* is removed") as told:
                transport.remove_work_folder()
        finally:
            for process in family:
                process.resume()
        assert time.monotonic() - begin < 12
        assert "`acmix devices clean` does it later" in str(told.value)
