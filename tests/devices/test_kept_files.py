"""What a device keeps between two calls: sent once, never half, never wrong, no more than is allowed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from acmix.toolkit.device import Device
from acmix.toolkit.devices import connect
from acmix.toolkit.devices._cache import Kept
from acmix.toolkit.devices._item import digest_of
from acmix.toolkit.devices._keeper import GRACE_S
from acmix.toolkit.devices._shell import ShellTransport

SECONDS = 60
PUSH = """
import sys
from pathlib import Path
from acmix.toolkit.device import Device
from acmix.toolkit.devices import connect

with connect(Device("killed", sys.argv[1], sys.argv[2], work_folder=sys.argv[3])) as transport:
    transport.push(Path(sys.argv[4]), "model.bin", keep=True)
    print("done", flush=True)
"""


class Counted:
    """A connection and the bytes that were sent over it as files."""

    def __init__(self, transport: ShellTransport, patch: pytest.MonkeyPatch) -> None:
        self.transport, self.sent = transport, 0
        execute = transport.execute

        def count(snippet: str, **options: Any) -> Any:
            file = options.get("stdin", b"")
            if not isinstance(file, bytes):
                self.sent += Path(file.name).stat().st_size - file.tell()
            return execute(snippet, **options)

        patch.setattr(transport, "execute", count)


@contextmanager
def counted(device: Device) -> Iterator[Counted]:
    """A connection of its own, as each call of acmix has one."""
    with connect(device) as transport, pytest.MonkeyPatch.context() as patch:
        assert isinstance(transport, ShellTransport)
        yield Counted(transport, patch)
        transport.remove_work_folder()


@pytest.fixture(params=["laptop", "phone"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """Each device that is reached through a shell, with a place of its own; it is clean afterwards."""
    found: Device = request.getfixturevalue(request.param).device
    place = "/data/local/tmp" if request.param == "phone" else found.work_folder
    found = replace(found, work_folder=f"{place}/kept-{time.time_ns()}")
    yield found
    with connect(found) as transport:
        assert isinstance(transport, ShellTransport)
        transport.remove_everything()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A program and a model."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "runner").write_text("#!/bin/sh\necho ran\n")
    (folder / "runner").chmod(0o755)
    (folder / "model.bin").write_bytes(bytes(range(256)) * 1000)
    return folder


def test_the_second_call_sends_nothing_and_a_wrong_file_is_replaced(device: Device, bundle: Path) -> None:
    size = sum(file.stat().st_size for file in bundle.iterdir())
    model = bundle / "model.bin"
    for sent in (size, 0):
        with counted(device) as one:
            remote = one.transport.push(bundle, "bundle", keep=True)
            assert one.transport.run([f"{remote}/runner"], timeout_s=SECONDS).stdout == b"ran\n"
            found = one.transport.run(["sha256sum", f"{remote}/model.bin"], timeout_s=SECONDS).stdout
            assert found[:64].decode() == digest_of(model)
            assert one.sent == sent
            assert one.transport.kept() == Kept(2, one.transport.kept().kb)
            place = str(Path(remote).parents[2])
    with counted(device) as two:
        # Only what is kept stays.
        assert two.transport.run(["ls", place], timeout_s=SECONDS).stdout == b"acmix-cache\n"
        wrong = f"{place}/acmix-cache/{digest_of(model)}"
        two.transport.run(["sh", "-c", 'echo wrong >"$1"', "sh", wrong], timeout_s=SECONDS)
        remote = two.transport.push(bundle, "bundle", keep=True)
        assert two.sent == model.stat().st_size
        for path in (wrong, f"{remote}/model.bin"):
            found = two.transport.run(["sha256sum", path], timeout_s=SECONDS).stdout
            assert found[:64].decode() == digest_of(model)


@pytest.mark.parametrize("device", ["phone"], indirect=True)
def test_a_limit_holds_and_zero_keeps_nothing(device: Device, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 400_000)
    for file in files:
        with counted(replace(device, cache_mb=1)) as one:
            one.transport.push(file, file.name, keep=True)
    with counted(replace(device, cache_mb=1)) as one:
        assert one.transport.kept().files == 2 and one.transport.kept().kb < 1024
        for file in files[1:]:
            one.transport.push(file, file.name, keep=True)
        assert one.sent == 0
        assert one.transport.remove_everything()[1].files == 2
    with counted(replace(device, cache_mb=0)) as one:
        one.transport.push(files[0], "a", keep=True)
    with counted(device) as one:
        assert one.transport.kept() == Kept(0, 0)


@pytest.mark.parametrize("device", ["laptop"], indirect=True)
def test_clean_removes_it_and_makes_no_folder(device: Device, bundle: Path) -> None:
    with counted(device) as one:
        assert one.transport.remove_everything() == (0, Kept(0, 0))
        assert one.transport.run(["ls", device.work_folder], timeout_s=SECONDS).code != 0
        place = str(Path(one.transport.push(bundle, "bundle", keep=True)).parents[2])
    with counted(device) as two:
        folders, kept = two.transport.remove_everything()
        assert (folders, kept.files) == (0, 2) and kept.kb > 250
        assert two.transport.run(["ls", "-a", place], timeout_s=SECONDS).stdout.split() == [b".", b".."]


Start = Callable[..., AbstractContextManager[Any]]


def inside(neighbour: Any, request: pytest.FixtureRequest) -> Path:
    """The phone's or the laptop's place for work folders, as this machine sees it."""
    if neighbour.device.transport == "ssh":
        return Path(neighbour.device.work_folder)
    return Path(f"/proc/{neighbour.process.pid}/root{request.getfixturevalue('arm64_root')}/data/local/tmp")


@pytest.mark.parametrize("kind", ["server", "phone"])
def test_a_push_of_a_killed_acmix_is_finished_by_the_next_call(
    kind: str, start: Start, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = tmp_path / "model.bin"
    source.write_bytes(bytes(range(256)) * ({"server": 48, "phone": 12}[kind] << 12))
    with start(kind, request, tmp_path) as neighbour:
        device, place = neighbour.device, inside(neighbour, request)
        words = [device.transport, device.address, device.work_folder, str(source)]
        with subprocess.Popen([sys.executable, "-c", PUSH, *words], stdout=subprocess.PIPE) as process:
            wait_for(lambda: any(size(part) > 1 << 20 for part in place.glob("acmix-work/*/.parts/*")))
            for stopped in (process.pid, *clients(process.pid)):
                with suppress(ProcessLookupError):
                    psutil.Process(stopped).send_signal(signal.SIGKILL)
            assert process.communicate()[0] == b""
        (part,) = wait_for(lambda: list(place.glob("acmix-cache/*")))
        assert part.name == f"{digest_of(source)}.part" and 0 < size(part) < size(source)
        left = size(source) - size(part)
        wait_for(lambda: not (place / "acmix-work").exists())
        with counted(device) as one:
            remote = one.transport.push(source, "model.bin", keep=True)
            found = one.transport.run(["sha256sum", remote], timeout_s=SECONDS).stdout
            assert found[:64].decode() == digest_of(source) and one.sent == left
        assert [file.name for file in place.glob("acmix-cache/*")] == [digest_of(source)]


def size(file: Path) -> int:
    """0 for one that is gone."""
    with suppress(OSError):
        return file.stat().st_size
    return 0


def clients(pid: int) -> list[int]:
    """The adb or ssh programs of a process."""
    return [p.pid for p in psutil.Process(pid).children(recursive=True) if p.name() in ("adb", "ssh")]


def wait_for(look: Callable[[], Any]) -> Any:
    """What it sees, once it sees something."""
    deadline = time.monotonic() + GRACE_S + 30
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return found


def test_a_full_device_gives_up_what_it_keeps(start: Start, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    files = [tmp_path / "old", tmp_path / "new"]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * (5 << 20))
    with start("phone", request, tmp_path) as phone:
        place = "/data/local/tmp/small"
        disk = f"{request.getfixturevalue('arm64_root')}{place}"
        enter = ["nsenter", f"--mount=/proc/{phone.process.pid}/ns/mnt", "sh", "-c"]
        subprocess.run([*enter, f"mkdir {disk} && mount -t tmpfs -o size=8m tmpfs {disk}"], check=True)
        for file in files:
            with counted(replace(phone.device, work_folder=place)) as one:
                remote = one.transport.push(file, file.name, keep=True)
                found = one.transport.run(["sha256sum", remote], timeout_s=SECONDS).stdout
                assert found[:64].decode() == digest_of(file)
        with counted(replace(phone.device, work_folder=place)) as one:
            # The new one made the old one go; how much there is room for is not asked, so it was not kept itself.
            assert one.transport.kept() == Kept(0, 0)
