"""Checks of the way to a device: commands, arguments, what is ended there, and files."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from acmix.apps.selftest.record import Check, Evidence, FailedError, SkippedError
from acmix.toolkit._remote_runner import pinned
from acmix.toolkit.device import Device, Transport, printable
from acmix.toolkit.devices._checks import AWKWARD
from acmix.toolkit.devices._item import items
from acmix.toolkit.devices._keeper import GRACE_S
from acmix.toolkit.devices._shell import ShellTransport
from acmix.toolkit.errors import GateError

TIMEOUT_S = 30.0
HANG_S = 2.0
NAP_S = "600"
FILE_BYTES = 1 << 20
KILLED_CODES = (137, -signal.SIGKILL)
# What a host does that is killed in mid-run: its device file's fields, then a file to push.
VICTIM = """
import sys, time
from pathlib import Path
import msgspec
from acmix.toolkit.device import Device
from acmix.toolkit.devices import connect

with connect(msgspec.json.decode(sys.argv[1], type=Device)) as transport:
    remote = transport.push(Path(sys.argv[2]), "victim.bin")
    with transport.stream(["sh", "-c", "echo $$; while read line; do :; done"]) as lines:
        print(remote, int(lines.readline(60, 100)), flush=True)
        time.sleep(600)
"""


def shell_checks(transport: Transport) -> list[Check]:
    """Commands and what becomes of them."""
    return [
        Check("arguments", "every argument arrives as it is, whatever a shell would make of it",
              lambda: _arguments(transport)),
        Check("exit codes", "exit codes and both outputs come back apart, 255 too", lambda: _exit_codes(transport)),
        Check("bytes", "bytes stay bytes in both directions", lambda: _bytes(transport)),
        Check("time-out", "a command that hangs is ended on the device too", lambda: _time_out(transport)),
        Check("killed runner", "a runner that is killed there is told by its exit code",
              lambda: _killed_runner(transport)),
        Check("closed stream", "a runner that ignores its input is ended with the stream",
              lambda: _closed_stream(transport)),
        Check("pinning", "taskset keeps a runner on the processors that were asked for", lambda: _pinning(transport)),
    ]  # fmt: skip


def file_checks(transport: Transport, scratch: Path) -> list[Check]:
    """Files there and back, and nothing that stays. scratch: an empty folder here."""
    return [
        Check("push and pull", "a pushed folder comes back byte for byte, by the device's own SHA-256; a second push "
              "sends nothing", lambda: _push_and_pull(transport, scratch)),
        Check("resumed push", "a push that was cut goes on; one that was damaged begins anew",
              lambda: _resumed(transport, scratch)),
        Check("killed host", "when acmix is killed (SIGKILL), its command there ends and its work folder goes",
              lambda: _killed_host(transport, scratch)),
    ]  # fmt: skip


def clean_up_check(transport: Transport, scratch: Path) -> Check:
    """The last one: it removes what the others needed."""
    claim = "the work folder is removed, and nothing of it stays"
    return Check("cleanup", claim, lambda: _clean_up(transport, scratch))


def _arguments(transport: Transport) -> Evidence:
    done = transport.run(["sh", "-c", 'printf "%s\\0" "$@"', "sh", *AWKWARD], timeout_s=TIMEOUT_S)
    found = done.stdout.split(b"\0")[:-1]
    if found != [word.encode() for word in AWKWARD]:
        raise FailedError(f"{len(AWKWARD)} arguments came back changed", found=printable(done.stdout, 200))
    return {"arguments": len(AWKWARD)}


def _exit_codes(transport: Transport) -> Evidence:
    for code in (0, 1, 127, 255):
        done = transport.run(["sh", "-c", f"echo out; echo err >&2; exit {code}"], timeout_s=TIMEOUT_S)
        if (done.code, done.stdout, done.stderr) != (code, b"out\n", b"err\n"):
            found = [done.code, printable(done.stdout, 80), printable(done.stderr, 80)]
            raise FailedError(f"exit {code} came back as {done.code}, or its outputs were mixed", found=found)
    return {"exit_codes": [0, 1, 127, 255]}


def _bytes(transport: Transport) -> Evidence:
    data = bytes(range(256)) * (FILE_BYTES // 256)
    done = transport.run(["cat"], timeout_s=2 * TIMEOUT_S, stdin=data)
    if done.stdout != data:
        raise FailedError("what was sent through `cat` came back changed", sent=len(data), came=len(done.stdout))
    return {"bytes": len(data)}


def _is_alive(transport: Transport, pid: int) -> bool:
    # A process that has ended and that nobody has asked after is a zombie: it takes signals and runs no more.
    script = 'kill -0 "$1" || exit 1; case "$(cat "/proc/$1/status")" in *zombie*) exit 1;; esac'
    return transport.run(["sh", "-c", script, "sh", str(pid)], timeout_s=TIMEOUT_S).code == 0


def _must_end(transport: Transport, pid: int, within_s: float) -> float:
    """Seconds until a process there was gone; FailedError when it stays."""
    begin = time.monotonic()
    while _is_alive(transport, pid):
        if time.monotonic() - begin > within_s:
            raise FailedError(f"process {pid} still runs there after {within_s:g} s", pid=pid)
        time.sleep(0.2)
    return round(time.monotonic() - begin, 1)


def _pid_of(line: bytes) -> int:
    word = line.strip()
    if not word.isdigit() or not 1 < int(word) < 2**22:
        raise FailedError(f"a shell there says that its process is {printable(word, 40)!r}")
    return int(word)


def _time_out(transport: Transport) -> Evidence:
    # Its number goes through a file: an error brings no output.
    folder = transport.push(Path(__file__), "selftest/here.py").rpartition("/")[0]
    begin = time.monotonic()
    try:
        transport.run(["sh", "-c", f'echo $$ >"$1"; exec sleep {NAP_S}', "sh", f"{folder}/pid"], timeout_s=HANG_S)
    except GateError as error:
        took, said = round(time.monotonic() - begin, 1), str(error)
    else:
        raise FailedError(f"a command of {NAP_S} s ended at once")
    pid = _pid_of(transport.run(["cat", f"{folder}/pid"], timeout_s=TIMEOUT_S).stdout)
    return {"limit_s": HANG_S, "ended_after_s": took, "said": printable(said), "gone": _gone(transport, pid)}


def _gone(transport: Transport, pid: int) -> bool:
    _must_end(transport, pid, 5.0)
    return True


def _killed_runner(transport: Transport) -> Evidence:
    with transport.stream(["sh", "-c", f"echo $$; exec sleep {NAP_S}"]) as lines:
        pid = _pid_of(lines.readline(TIMEOUT_S, 100))
        transport.run(["sh", "-c", f"kill -9 {pid}"], timeout_s=TIMEOUT_S)
        try:
            lines.readline(TIMEOUT_S, 100)
        except GateError as error:
            said = str(error)
        else:
            raise FailedError("a killed runner went on")
    if not any(f"exit code {code}" in said for code in KILLED_CODES):
        raise FailedError("what became of a killed runner was not told", said=printable(said))
    return {"said": printable(said)}


def _closed_stream(transport: Transport) -> Evidence:
    with transport.stream(["sh", "-c", f"echo $$; exec sleep {NAP_S}"]) as lines:
        pid = _pid_of(lines.readline(TIMEOUT_S, 100))
    return {"gone_after_s": _must_end(transport, pid, 5.0)}


def _pinning(transport: Transport) -> Evidence:
    cores = transport.device.cores or (0,)
    if transport.run(["sh", "-c", "command -v taskset"], timeout_s=TIMEOUT_S).code != 0:
        if transport.device.cores:
            raise FailedError("the device's file names cores, and there is no taskset on it", cores=list(cores))
        raise SkippedError("there is no taskset on it, and its file names no cores")
    done = transport.run(pinned(["cat", "/proc/self/status"], cores), timeout_s=TIMEOUT_S)
    told = next((row for row in done.stdout.decode("utf-8", "replace").splitlines() if "Cpus_allowed_list" in row), "")
    found = printable(told.partition(":")[2], 80)
    if _numbers(found) != set(cores):
        raise FailedError(f"asked for {list(cores)}, it ran on {found or printable(done.stderr, 80)!r}")
    return {"cores": list(cores), "allowed_there": found}


def _numbers(text: str) -> set[int]:
    """The processors of '0-1,3'."""
    found: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        if not low.isdecimal() or (high and not high.isdecimal()) or len(part) > 11:
            return set()
        found |= set(range(int(low), min(int(high or low), 4096) + 1))
    return found


def _push_and_pull(transport: Transport, scratch: Path) -> Evidence:
    source = scratch / "bundle"
    (source / "deep er").mkdir(parents=True)
    contents = {"data.bin": secrets.token_bytes(FILE_BYTES), "deep er/it's $(id)": b"x", "empty": b""}
    for name, data in contents.items():
        (source / name).write_bytes(data)
    begin = time.perf_counter()
    remote = transport.push(source, "selftest/bundle")
    took = time.perf_counter() - begin
    for name, data in contents.items():
        transport.pull(f"{remote}/{name}", scratch / "back")
        if (scratch / "back").read_bytes() != data:
            raise FailedError(f"{name} came back changed")
    before = _inode(transport, f"{remote}/data.bin")
    transport.push(source, "selftest/bundle")
    if _inode(transport, f"{remote}/data.bin") != before:
        raise FailedError("a second push sent the same file again")
    return {"files": len(contents), "bytes": sum(map(len, contents.values())), "push_s": round(took, 2)}


def _inode(transport: Transport, path: str) -> bytes:
    return transport.run(["ls", "-i", path], timeout_s=TIMEOUT_S).stdout


def _resumed(transport: Transport, scratch: Path) -> Evidence:
    if not isinstance(transport, ShellTransport):
        raise SkippedError("this machine copies files; nothing is sent")
    source = scratch / "cut.bin"
    data = secrets.token_bytes(FILE_BYTES)
    source.write_bytes(data)
    for beginning in (data[: FILE_BYTES // 2], b"damaged" * 100):
        (item,) = items(source, transport.work_folder(), "cut.bin")
        transport.run(["sh", "-c", 'rm -f "$1"; cat >"$2"', "sh", item.remote, item.part], timeout_s=TIMEOUT_S,
                      stdin=beginning)  # fmt: skip
        transport.pull(transport.push(source, "cut.bin"), scratch / "back")
        if (scratch / "back").read_bytes() != data:
            raise FailedError("a file that was sent in two parts came back changed")
    return {"bytes": FILE_BYTES, "held_before": FILE_BYTES // 2}


def _killed_host(transport: Transport, scratch: Path) -> Evidence:
    (scratch / "victim.bin").write_bytes(b"victim")
    device: Device = transport.device
    words = [sys.executable, "-c", VICTIM, msgspec.json.encode(device).decode(), str(scratch / "victim.bin")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as victim:
        assert victim.stdout is not None and victim.stderr is not None
        told = victim.stdout.readline().rsplit(maxsplit=1)
        victim.kill()
        if len(told) != 2:
            raise FailedError("the second acmix did not come so far", said=printable(victim.stderr.read()[-300:]))
    folder, pid = told[0].decode().rpartition("/")[0], _pid_of(told[1])
    process_s = _must_end(transport, pid, 10.0)
    return {"command_gone_after_s": process_s, "folder_gone_after_s": _must_go(transport, folder, GRACE_S + 15.0)}


def _must_go(transport: Transport, path: str, within_s: float) -> float:
    begin = time.monotonic()
    while _exists(transport, path):
        if time.monotonic() - begin > within_s:
            raise FailedError(f"{printable(path)} is still there after {within_s:g} s")
        time.sleep(0.5)
    return round(time.monotonic() - begin, 1)


def _exists(transport: Transport, path: str) -> bool:
    return transport.run(["ls", path], timeout_s=TIMEOUT_S).code == 0


def _clean_up(transport: Transport, scratch: Path) -> Evidence:
    (scratch / "last").write_bytes(b"last")
    folder = transport.push(scratch / "last", "last").rpartition("/")[0]
    if not _exists(transport, folder):
        raise FailedError("the work folder cannot be seen there")
    transport.remove_work_folder()
    return {"gone_after_s": _must_go(transport, folder, 5.0)}
