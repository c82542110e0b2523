"""What stays on a device and here when acmix ends, orderly or by SIGKILL: whole files that it keeps, nothing else."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from acmix.toolkit.artifact import Artifact
from acmix.toolkit.device import Device, Transport
from acmix.toolkit.devices import connect
from acmix.toolkit.devices._keeper import GRACE_S
from acmix.toolkit.devices._shell import ShellTransport
from acmix.toolkit.measurement import read_measurement

PROGRAM = """
import sys, time
from pathlib import Path
from acmix.toolkit.device import Device
from acmix.toolkit.devices import connect

with connect(Device("killed", sys.argv[1], sys.argv[2])) as t:
    remote = t.push(Path(sys.argv[3]), "folder/model.bin")
    with t.stream(["sh", "-c", "echo started; while read line; do :; done", sys.argv[4]]) as lines:
        lines.readline(30, 100)
        print(remote, flush=True)
        time.sleep(120)
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A place for temporary files whose name is short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="w"))
    yield folder
    shutil.rmtree(folder)


def gone(look: Callable[[], object], within_s: float) -> bool:
    """Whether there is nothing to see any more, soon enough."""
    deadline = time.monotonic() + within_s
    while look() and time.monotonic() < deadline:
        time.sleep(0.3)
    return not look()


@pytest.mark.parametrize("name", ["host", "laptop"])
def test_after_a_sigkill_no_folder_and_no_process_stays_there_or_here(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    short_folder: Path,
    alive: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device("host", "local") if name == "host" else request.getfixturevalue(name).device
    (tmp_path / "model.bin").write_bytes(b"model" * 1000)
    word = f"reader{time.time_ns() % 10**6}"
    words = [device.transport, device.address, str(tmp_path / "model.bin"), word]
    monkeypatch.setenv("TMPDIR", str(short_folder))
    with (
        connect(device) as transport,
        subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        remote = process.stdout.readline().strip()
        folder = str(Path(remote).parents[1])
        assert "acmix-work" in folder
        assert exists(transport, remote)
        # ssh's socket, the copy for this machine.
        assert list(short_folder.iterdir()) != []
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert gone(lambda: exists(transport, folder), GRACE_S + 10)
        assert alive(word) == []
        assert gone(lambda: list(short_folder.iterdir()), 10)
        assert gone(lambda: alive(str(short_folder)), 10)


def exists(transport: Transport, path: str) -> bool:
    """Whether the device has it."""
    return transport.run(["ls", path], timeout_s=30).code == 0


@pytest.mark.parametrize("name", ["board", "phone"])
def test_a_profile_that_is_killed_keeps_its_samples_and_leaves_nothing(
    name: str,
    request: pytest.FixtureRequest,
    arm64_runtimes: Path,
    exported: Callable[[str], dict[str, Artifact]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    alive: Callable[[str], list[str]],
) -> None:
    monkeypatch.chdir(tmp_path)
    device = request.getfixturevalue(name).device
    Path("devices").mkdir()
    Path("devices/mine.toml").write_text(f'transport = "{device.transport}"\naddress = "{device.address}"\n')
    artifact = exported("w8a8")["tflite"]
    folder = shutil.copytree(artifact.folder, tmp_path / artifact.name)
    program = str(Path(sys.executable).with_name("acmix"))
    words = [program, "profile", str(folder), "--device", "mine", "--runs", "1000000"]
    words += ["--wait", "0", "--warm-up", "0.2"]
    place = "/data/local/tmp/acmix-work" if name == "phone" else ".cache/acmix-work"
    with (
        connect(device) as transport,
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
    ):
        assert gone(lambda: b"latency" not in b"".join(f.read_bytes() for f in tmp_path.glob("*.jsonl")), 90)
        (held,) = transport.run(["ls", place], timeout_s=30).stdout.split()
        process.kill()
        process.wait()
        assert gone(lambda: exists(transport, place), GRACE_S + 12)
        assert alive(held.decode()) == []
        check_kept(transport, place)
    (journal,) = tmp_path.glob("*.jsonl")
    kept = read_measurement(journal)
    assert len(kept.timings[0].latency_ns) > 0
    assert any("ended before it was done" in reason.what for reason in kept.judgement.reasons)


def check_kept(transport: Transport, place: str) -> None:
    """The model and its runner stay, whole, under their digests."""
    parent = str(Path(place).parent)
    left = transport.run(["ls", parent], timeout_s=30).stdout.split()
    assert [name for name in left if name.startswith(b"acmix")] == [b"acmix-cache"]
    sums = transport.run(["sh", "-c", 'cd "$1" && sha256sum *', "sh", f"{parent}/acmix-cache"], timeout_s=60)
    pairs = [line.split() for line in sums.stdout.splitlines()]
    assert len(pairs) > 5 and all(digest == name for digest, name in pairs)


@pytest.fixture(params=["laptop", "phone"])
def shell(request: pytest.FixtureRequest) -> Iterator[ShellTransport]:
    """A shell over ssh, and one over adb."""
    with connect(request.getfixturevalue(request.param).device) as transport:
        assert isinstance(transport, ShellTransport)
        yield transport


def test_a_closed_connection_leaves_no_folder_and_spares_that_of_another(shell: ShellTransport, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with connect(shell.device) as other:
        mine, theirs = shell.push(tmp_path / "x", "x"), other.push(tmp_path / "x", "x")
        assert mine != theirs and exists(shell, mine) and exists(shell, theirs)
    assert exists(shell, mine) and not exists(shell, str(Path(theirs).parent))
    shell.remove_work_folder()
    assert not exists(shell, str(Path(mine).parents[1]))


def test_a_work_folder_outlives_a_broken_connection_for_a_moment(shell: ShellTransport, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    mine = shell.push(tmp_path / "x", "x")
    broken = shell._keeper._lines.process  # type: ignore[union-attr]
    broken.kill()
    broken.wait()
    inode = shell.run(["ls", "-i", mine], timeout_s=30).stdout
    assert shell.push(tmp_path / "x", "x") == mine
    assert shell.run(["ls", "-i", mine], timeout_s=30).stdout == inode
    # The first shell has waited for us in vain, and sees that the folder is another's now.
    time.sleep(GRACE_S + 1)
    assert exists(shell, mine)


def test_a_work_folder_that_is_not_ours_to_make_is_a_sentence(laptop: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    device = Device("laptop", "ssh", laptop.device.address, work_folder=str(tmp_path / "file"))
    with connect(device) as transport, pytest.raises(Exception, match="no work folder at"):
        transport.push(tmp_path / "file", "x")
