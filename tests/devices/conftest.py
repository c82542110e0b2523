"""Neighbours: devices that are not there, made of the real programs that devices run. install.sh brings the pieces."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import pytest

from acmix.toolkit.device import Device, Transport
from acmix.toolkit.devices import adb, connect
from acmix.toolkit.errors import UsageError

HERE = Path(__file__).parent
USER_CACHE = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
CACHE = Path(os.environ.get("ACMIX_TEST_CACHE") or Path(USER_CACHE, "acmix-tests"))
ARM64_ROOT = CACHE / "arm64-root"
PHONE_PORT = 5555
START_S = 30.0


def lacking(reason: str) -> None:
    """Skip with the reason; in CI, where everything was installed, fail."""
    if os.environ.get("ACMIX_REQUIRE_DEVICES") == "1":
        pytest.fail(f"{reason}; ACMIX_REQUIRE_DEVICES=1 says that tests/devices/install.sh has run")
    pytest.skip(f"{reason}: run tests/devices/install.sh as root")


# For the test files, which cannot import this one.
lacking_fixture = pytest.fixture(scope="session", name="lacking")(lambda: lacking)


@dataclass(frozen=True)
class Neighbour:
    """A running neighbour: its own process, and how to reach it."""

    process: subprocess.Popen[bytes]
    device: Device


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program and all that it starts, until the context closes."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        try:
            yield process
        finally:
            # unshare passes no SIGTERM on: its children are ended one by one.
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        child.kill()
            process.kill()
            process.wait(10)


def wait_for(ready: Callable[[], bool], log: Path, process: subprocess.Popen[bytes]) -> None:
    """Until ready, or fail with the log."""
    deadline = time.monotonic() + START_S
    while not ready():
        if time.monotonic() > deadline or process.poll() is not None:
            pytest.fail(f"the neighbour did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def program(folder: Path, name: str, text: str) -> None:
    """A program for PATH."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(text, encoding="utf-8")
    file.chmod(0o755)


@pytest.fixture(scope="session")
def arm64_root() -> Path:
    """The root folder of the virtual phone and the virtual board, or a skip."""
    if os.geteuid() != 0:
        lacking("the virtual devices need root for their namespaces")
    if not (ARM64_ROOT / ".finished").exists():
        lacking("there is no arm64 root folder")
    if not Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists():
        lacking("this kernel runs no arm64 programs (binfmt)")
    return ARM64_ROOT


@cache
def adb_program() -> str:
    """The real adb client, found before a neighbour's own stands first on PATH."""
    try:
        return adb.program()
    except UsageError as error:
        lacking(str(error).partition("\n")[0])
        raise


@contextmanager
def path_first(folder: Path) -> Iterator[None]:
    """A folder at the head of PATH: a user's own setting of adb or ssh."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield


@contextmanager
def private_adb(folder: Path, network: str = "") -> Iterator[None]:
    """The real adb client with a server and keys of its own. network: a command that enters another one."""
    client = adb_program()
    home, path = folder / "home", folder / "adb-path"
    home.mkdir(exist_ok=True)
    port = free_port()
    settings = f"HOME={home} TMPDIR={home} ADB_MDNS=0 ANDROID_ADB_SERVER_PORT={port}"
    program(path, "adb", f'#!/bin/sh\n{settings} exec {network} {client} "$@"\n')
    with path_first(path):
        try:
            yield
        finally:
            # Not `adb kill-server`: the network that it would enter may be gone.
            for process in psutil.process_iter():
                if f"tcp:{port} fork-server" in " ".join(_command_line(process)):
                    process.kill()


@contextmanager
def start_phone(root: Path, folder: Path) -> Iterator[Neighbour]:
    """adbd with mksh and toybox, arm64, under qemu-user; adb on PATH is in its network."""
    log = folder / "adbd.log"
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", str(HERE / "phone.sh")]
    with running([*command, str(root), str(PHONE_PORT)], log) as process:
        enter = f"nsenter --net=/proc/{process.pid}/ns/net --"
        knock = [*enter.split(), "bash", "-c", f": </dev/tcp/127.0.0.1/{PHONE_PORT}"]
        wait_for(lambda: subprocess.run(knock, capture_output=True).returncode == 0, log, process)
        with private_adb(folder, enter):
            yield Neighbour(process, Device("phone", "adb", f"127.0.0.1:{PHONE_PORT}", description="virtual phone"))


@dataclass(frozen=True)
class SshHome:
    """Keys, and an ssh on PATH that reads its hosts here in place of the user's config."""

    folder: Path

    def add_host(self, host: str, port: int, user: str) -> None:
        """One host that the user's config knows."""
        known = self.folder / f"{host}.known"
        known.write_text(f"{host} {(self.folder / 'hostkey.pub').read_text()}")
        lines = ["HostName 127.0.0.1", f"Port {port}", f"User {user}", f"HostKeyAlias {host}"]
        lines += [f"IdentityFile {self.folder / 'userkey'}", "IdentitiesOnly yes", f"UserKnownHostsFile {known}"]
        (self.folder / f"{host}.conf").write_text("\n  ".join([f"Host {host}", *lines]) + "\n")


@pytest.fixture(scope="session")
def ssh_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshHome]:
    """The real ssh client with a config of its own, or a skip."""
    client = shutil.which("ssh")
    if client is None or not Path("/usr/sbin/sshd").exists():
        lacking("there is no ssh client or no ssh server")
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("hostkey", "userkey"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "authorized_keys").write_bytes((folder / "userkey.pub").read_bytes())
    (folder / "config").write_text(f"Include {folder}/*.conf\n")
    program(folder / "path", "ssh", f'#!/bin/sh\nexec {client} -F {folder / "config"} "$@"\n')
    with path_first(folder / "path"):
        yield SshHome(folder)


@contextmanager
def start_sshd(home: SshHome, folder: Path, name: str, settings: str = "") -> Iterator[Neighbour]:
    """A real sshd of this machine, for logins of the same user."""
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    port, log = free_port(), folder / f"{name}.log"
    with running([str(HERE / "sshd.sh"), str(home.folder), str(port), settings], log) as process:
        wait_for(lambda: accepts(port), log, process)
        home.add_host(name, port, psutil.Process().username())
        yield Neighbour(process, Device(name, "ssh", name, work_folder=str(folder / "work")))


def accepts(port: int) -> bool:
    """Whether somebody listens."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextmanager
def start_board(root: Path, home: SshHome, folder: Path) -> Iterator[Neighbour]:
    """An aarch64 sshd under qemu-user, on the loopback of this machine."""
    port, log = free_port(), folder / "board.log"
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", str(HERE / "board.sh")]
    with running([*command, str(root), str(port), str(home.folder)], log) as process:
        wait_for(lambda: accepts(port), log, process)
        # Several boards may run at once: each has a host name of its own.
        host = f"board-{port}"
        home.add_host(host, port, "pi")
        yield Neighbour(process, Device("board", "ssh", host, description="virtual board"))


@pytest.fixture(scope="session")
def laptop(ssh_home: SshHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbour]:
    """This machine through a real sshd."""
    with start_sshd(ssh_home, tmp_path_factory.mktemp("laptop"), "laptop") as neighbour:
        yield neighbour


@pytest.fixture(scope="session")
def board(arm64_root: Path, ssh_home: SshHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbour]:
    """The virtual board."""
    with start_board(arm64_root, ssh_home, tmp_path_factory.mktemp("board")) as neighbour:
        yield neighbour


@pytest.fixture(scope="session")
def phone(arm64_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbour]:
    """The virtual phone."""
    with start_phone(arm64_root, tmp_path_factory.mktemp("phone")) as neighbour:
        yield neighbour


@pytest.fixture(scope="session")
def start() -> Callable[..., AbstractContextManager[Neighbour]]:
    """start(kind, request, folder): a neighbour of one's own, to be killed."""

    def begin(
        kind: str, request: pytest.FixtureRequest, folder: Path, settings: str = ""
    ) -> AbstractContextManager[Neighbour]:
        if kind == "phone":
            return start_phone(request.getfixturevalue("arm64_root"), folder)
        home = request.getfixturevalue("ssh_home")
        if kind == "board":
            return start_board(request.getfixturevalue("arm64_root"), home, folder)
        return start_sshd(home, folder, kind, settings)

    return begin


@pytest.fixture(scope="session")
def alive() -> Callable[[str], list[str]]:
    """alive(word): the command lines that hold it, of every process, those inside the neighbours too."""

    def find(word: str) -> list[str]:
        deadline = time.monotonic() + 3.0
        while True:
            lines = [" ".join(_command_line(p)) for p in psutil.process_iter()]
            found = [line for line in lines if word in line]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    return find


@pytest.fixture(scope="module", params=["host", "laptop", "board", "phone"])
def connection(request: pytest.FixtureRequest) -> Iterator[Transport]:
    """Each transport in turn, one connection for all tests of a file: it has to outlive whatever they do with it."""
    device = Device("host", "local") if request.param == "host" else request.getfixturevalue(request.param).device
    with connect(device) as opened:
        yield opened


@pytest.fixture
def transport(connection: Transport) -> Iterator[Transport]:
    """Each transport in turn; its work folder is removed at the end."""
    yield connection
    connection.remove_work_folder()


@pytest.fixture
def private_adb_server(tmp_path: Path) -> Iterator[None]:
    """The real adb client with a server of its own, in this machine's network."""
    with private_adb(tmp_path):
        yield


@pytest.fixture
def arm64_runtimes(arm64_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache in which install.sh has put the runtimes of the runners; no device of the developer's own."""
    cache = arm64_root.parent / "xdg"
    if not list((cache / "acmix" / "wheels").glob("*aarch64.whl")):
        lacking("the arm64 runtimes are not here")
    if shutil.which("aarch64-linux-gnu-g++") is None:
        lacking("there is no cross compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return cache


MACHINE = CACHE / "machine"
BOOT_S = 120.0


def greets(port: int) -> bool:
    """Whether an sshd says who it is; a forwarded port accepts before there is one behind it."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as connection:
        connection.settimeout(2)
        return connection.recv(4) == b"SSH-"
    return False


@pytest.fixture(scope="session")
def machine(ssh_home: SshHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbour]:
    """A whole arm64 machine, kernel and all, booted under qemu-system; or a skip."""
    if shutil.which("qemu-system-aarch64") is None or shutil.which("cpio") is None:
        lacking("there is no qemu-system-aarch64 or no cpio")
    if not (MACHINE / "root.cpio").exists():
        lacking("there is no machine to boot")
    folder = tmp_path_factory.mktemp("machine")
    port, log = free_port(), folder / "boot.log"
    command = [str(HERE / "machine_boot.sh"), str(MACHINE), str(port), str(ssh_home.folder), str(folder)]
    with running(command, log) as process:
        deadline = time.monotonic() + BOOT_S
        while not greets(port):
            if time.monotonic() > deadline or process.poll() is not None:
                pytest.fail(f"the machine did not boot:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.5)
        ssh_home.add_host("machine", port, "root")
        yield Neighbour(process, Device("machine", "ssh", "machine", description="booted machine"))
    # Its memory image is large, and pytest keeps folders.
    (folder / "initrd.cpio").unlink()
