"""A running command as a two-way stream of lines, whoever started it."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time

from acmix.toolkit.device import LongLineError, printable
from acmix.toolkit.devices._framing import GREETING_LIMIT_BYTES, LONGEST_MARK_BYTES, Frame, read_pid, unframe
from acmix.toolkit.devices._process import CHUNK_BYTES, STDERR_LIMIT_BYTES
from acmix.toolkit.errors import GateError

WRITE_TIMEOUT_S = 60.0
FAREWELL_S = 2.0
"""How long a runner may take to end once its input is closed."""


class ProcessLines:
    """LineStream over a child's pipes. frame: the marks around a command on another machine; None for one of ours."""

    def __init__(self, device: str, process: subprocess.Popen[bytes], made: Frame | None) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self.device, self.process, self.made = device, process, made
        self.stdin_fd, self.stdout_fd = process.stdin.fileno(), process.stdout.fileno()
        self.stderr_fd: int | None = process.stderr.fileno()
        self.stdout, self.stderr = bytearray(), bytearray()
        self.stdout_open = True
        self.begun = made is None
        self.pid: int | None = None
        os.set_blocking(self.stdin_fd, False)

    def write(self, data: bytes) -> None:
        """Send all of it, reading what comes meanwhile, so that neither side waits for the other for ever."""
        unsent = memoryview(data)
        deadline = time.monotonic() + WRITE_TIMEOUT_S
        while unsent:
            if self._wait(deadline, to_write=True):
                try:
                    unsent = unsent[os.write(self.stdin_fd, unsent[:CHUNK_BYTES]) :]
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._wait(time.monotonic() + 0.2, to_write=False)
                    raise self._gone() from error
            elif time.monotonic() > deadline:
                raise GateError(f"{self.device}: the runner reads nothing since {WRITE_TIMEOUT_S:g} s")

    def readline(self, timeout_s: float, limit_bytes: int) -> bytes:
        """One line with its newline; GateError when it does not come, or does not end."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._skip_greeting()
            if self.begun and (end := self.stdout.find(b"\n", 0, limit_bytes)) >= 0:
                line = bytes(self.stdout[: end + 1])
                del self.stdout[: end + 1]
                return line
            if self.begun and len(self.stdout) >= limit_bytes:
                raise LongLineError(f"{self.device}: the runner sent a line of more than {limit_bytes} bytes")
            if not self.stdout_open:
                raise self._gone()
            if time.monotonic() > deadline:
                raise GateError(f"{self.device}: the runner sent no line within {timeout_s:g} s{self._last_words()}")
            self._wait(deadline, to_write=False)

    def close_input(self) -> None:
        """Say that nothing more comes, and leave the command a moment to end by itself."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        deadline = time.monotonic() + FAREWELL_S
        while self.process.poll() is None and time.monotonic() < deadline:
            self._wait(min(deadline, time.monotonic() + 0.1), to_write=False)
            self.stdout.clear()

    def wait(self, timeout_s: float) -> int | None:
        """The exit code of a command that ends by itself; None when it does not in time, or the connection breaks."""
        deadline = time.monotonic() + timeout_s
        while self.exit_code is None and time.monotonic() < deadline:
            if self.process.poll() is not None and not self.stdout_open and self.stderr_fd is None:
                break
            self._wait(deadline, to_write=False)
            self.stdout.clear()
        return self.exit_code

    @property
    def exit_code(self) -> int | None:
        """Of the command; None while it runs, or when the connection broke before it ended."""
        while self.stderr_fd is not None and select.select([self.stderr_fd], [], [], 0)[0]:
            self._read_stderr()
        if self.made is None:
            return self.process.poll()
        return unframe(self.made, bytes(self.stderr)).code

    def _wait(self, deadline: float, to_write: bool) -> bool:
        """Take in what has come; whether there is room to write."""
        reading = ([self.stdout_fd] if self.stdout_open and len(self.stdout) < 2**26 else []) + (
            [self.stderr_fd] if self.stderr_fd is not None else []
        )
        writing = [self.stdin_fd] if to_write else []
        if not reading and not writing:
            time.sleep(0.02)
            return False
        readable, writable, _ = select.select(reading, writing, [], max(0.0, min(0.5, deadline - time.monotonic())))
        if self.stdout_fd in readable:
            data = os.read(self.stdout_fd, CHUNK_BYTES)
            self.stdout += data
            self.stdout_open = data != b""
        if self.stderr_fd is not None and self.stderr_fd in readable:
            self._read_stderr()
        return bool(writable)

    def _read_stderr(self) -> None:
        if self.stderr_fd is None:
            return
        data = os.read(self.stderr_fd, CHUNK_BYTES)
        if not data:
            self.stderr_fd = None
        self.stderr += data
        if len(self.stderr) > STDERR_LIMIT_BYTES:
            half = STDERR_LIMIT_BYTES // 2
            self.stderr = self.stderr[:half] + self.stderr[-half:]

    def _skip_greeting(self) -> None:
        if self.begun or self.made is None:
            return
        if begin := self.made.begin.search(bytes(self.stdout)):
            self.pid = read_pid(begin[1])
            self.begun = True
            del self.stdout[: begin.end()]
        elif len(self.stdout) > GREETING_LIMIT_BYTES:
            del self.stdout[:-LONGEST_MARK_BYTES]

    def _last_words(self) -> str:
        stderr = bytes(self.stderr) if self.made is None else unframe(self.made, bytes(self.stderr)).stderr
        said = printable(stderr[-400:])
        return f"; its last words: {said}" if said else ""

    def _gone(self) -> GateError:
        deadline = time.monotonic() + 0.5
        while self.exit_code is None and time.monotonic() < deadline:
            self._wait(deadline, to_write=False)
        code = self.exit_code
        how = "the connection broke while the runner ran" if code is None else f"the runner ended with exit code {code}"
        return GateError(f"{self.device}: {how}{self._last_words()}")
