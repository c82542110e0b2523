"""Boards over ssh: the system's own `ssh` with the user's config, keys and agent; one connection for all commands."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from acmix.toolkit.device import Availability, Device, DeviceState, printable
from acmix.toolkit.devices import _process
from acmix.toolkit.devices._guard import guarded_folder
from acmix.toolkit.devices._shell import ShellTransport
from acmix.toolkit.errors import GateError, UsageError

CONNECT_TIMEOUT_S = 10
MASTER_TIMEOUT_S = 30.0
LONGEST_FOLDER = 60
"""A socket's path has at most 104 characters, of which we add 20 and ssh 17 while it binds."""
OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": str(CONNECT_TIMEOUT_S),
    # A board that loses its power is noticed within 15 s.
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",
    # A board that runs models needs nothing of this machine.
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
}
REASONS: tuple[tuple[str, Availability, str, str], ...] = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed|No .* host key is known",
        "unauthorized",
        "its host key is not the one that this computer knows",
        "Connect once by hand and look at the key: `ssh {address}`. After a new installation of the board: "
        "`ssh-keygen -R HOST`.",
    ),
    (
        "Permission denied|Too many authentication failures",
        "unauthorized",
        "it accepts none of your keys",
        "Put your key there: `ssh-copy-id {address}`. A key with a passphrase belongs into ssh-agent.",
    ),
    ("Could not resolve|Name or service not known", "absent", "there is no such host", "Look at the address."),
    (
        "Connection refused",
        "offline",
        "the host is there and no ssh server listens",
        "Start it on the board: `sudo systemctl enable --now ssh`.",
    ),
    (
        "timed out|No route to host|Network is unreachable|Connection closed|Connection reset|Broken pipe",
        "offline",
        "it does not answer",
        "Is it switched on and in this network? Try `ssh {address}`.",
    ),
)


def program() -> str:
    """The system's ssh; UsageError without one."""
    if found := shutil.which("ssh"):
        return found
    raise UsageError("there is no `ssh` here.\nInstall OpenSSH's client (Debian: apt install openssh-client).")


def resolved(address: str) -> str:
    """user@host:port as the user's ssh config has it; the address itself where ssh does not tell."""
    with contextlib.suppress(GateError):
        done = _process.call([program(), "-G", "--", address], timeout_s=5.0)
        pairs = (line.partition(" ") for line in done.stdout.decode("utf-8", "replace").splitlines())
        told = {key: value for key, _, value in pairs if key in ("user", "hostname", "port")}
        if len(told) == 3:
            return printable(f"{told['user']}@{told['hostname']}:{told['port']}")
    return address


def classify(stderr: bytes, address: str) -> DeviceState:
    """What ssh's own words mean."""
    said = stderr.decode("utf-8", "replace")
    for pattern, availability, detail, cure in REASONS:
        if re.search(pattern, said):
            return DeviceState(availability, f"{detail} ({printable(said[-300:])})", cure.format(address=address))
    return DeviceState("offline", printable(said[-300:]) or "ssh says nothing", f"Try it by hand: `ssh {address}`.")


class SshLink:
    """Link to one host over a master connection, which is opened by the first command."""

    default_folder = ".cache"

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.socket = address, folder / "mux"
        self.opened = False

    def argv(self, script: str) -> list[str]:
        """sh on the other side, whatever the login shell is; a command connects anew when the master is gone."""
        if not self.opened:
            self._open()
            self.opened = True
        return [*self._ssh(), "-o", "ControlMaster=no", "--", self.address, f"exec sh -c {_quoted(script)}"]

    def state(self) -> DeviceState:
        """Whether a connection can be made; the running one is asked first."""
        try:
            done = _process.call(
                [*self._ssh(), "-o", "ControlMaster=no", "--", self.address, "exit 0"], timeout_s=MASTER_TIMEOUT_S
            )
        except GateError as error:
            return DeviceState("offline", str(error), f"Try it by hand: `ssh {self.address}`.")
        except UsageError as error:
            detail, _, cure = str(error).partition("\n")
            return DeviceState("absent", detail, cure)
        if done.code == 0:
            return DeviceState("ready", resolved(self.address))
        return classify(done.stderr, self.address)

    def _open(self) -> None:
        command = [*self._ssh(), "-o", "ControlMaster=yes", "-o", "ControlPersist=30", "-f", "-N", "--", self.address]
        done = _process.call(command, timeout_s=MASTER_TIMEOUT_S)
        if done.code != 0:
            state = classify(done.stderr, self.address)
            raise GateError(f"{self.address} is {state.availability}: {state.detail}\n{state.cure}")

    def _ssh(self) -> list[str]:
        return _options(self.socket)


def _options(socket: Path | str) -> list[str]:
    options = [word for key, value in OPTIONS.items() for word in ("-o", f"{key}={value}")]
    return [program(), "-T", *options, "-o", f"ControlPath={socket}"]


def _quoted(script: str) -> str:
    return "'" + script.replace("'", "'\\''") + "'"


@contextlib.contextmanager
def connect(device: Device) -> Iterator[ShellTransport]:
    """A private folder holds the socket of the master connection; both go when we do, however we end."""
    place = Path(tempfile.gettempdir())
    place = place if len(str(place)) < LONGEST_FOLDER else Path("/tmp")
    farewell = [*_options("{folder}/mux"), "-O", "exit", "--", device.address] if shutil.which("ssh") else []
    with (
        guarded_folder("acmix-", place, farewell) as folder,
        contextlib.closing(ShellTransport(device, SshLink(device.address, folder))) as transport,
    ):
        yield transport
