"""Commands on this machine, bounded in time and in output; nothing of them stays behind."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import IO, Protocol

from acmix.toolkit.device import OUTPUT_LIMIT_BYTES, Completed
from acmix.toolkit.errors import GateError, UsageError

CHUNK_BYTES = 1 << 16
STDERR_LIMIT_BYTES = 1 << 18
DRAIN_S = 1.0
"""How long a pipe may stay open after its command ended: a daemon that the command left may hold it."""


class Sink(Protocol):
    """Where a long output goes as it comes."""

    def write(self, data: bytes, /) -> object: ...


class StoppedError(GateError):
    """A command took too long or printed too much and was killed; stderr: what it had said."""

    def __init__(self, reason: str, stderr: bytes) -> None:
        super().__init__(reason)
        self.stderr = stderr


def start(argv: Sequence[str], *, stdin: int) -> subprocess.Popen[bytes]:
    """A child in a process group of its own, stdout and stderr piped; UsageError when there is no such program."""
    try:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Ctrl-C goes to us alone: we end the group ourselves.
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise UsageError(f"the program {argv[0]!r} is not there.\nInstall it, or put it on PATH.") from error
    except OSError as error:
        raise UsageError(f"the program {argv[0]!r} does not start: {error.strerror}.") from error


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a child and what it started, close its pipes, and wait for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def call(
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes | IO[bytes] = b"",
    limit_bytes: int = OUTPUT_LIMIT_BYTES,
    sink: Sink | None = None,
) -> Completed:
    """Run a program of this machine to its end.

    stdin: bytes, or an open file that is read from where it stands.
    sink: takes stdout in place of the answer's stdout; limit_bytes holds for it too.
    Raises StoppedError after killing the program and what it started.
    """
    piped = isinstance(stdin, bytes) and stdin != b""
    if isinstance(stdin, bytes):
        process = start(argv, stdin=subprocess.PIPE if piped else subprocess.DEVNULL)
    else:
        process = start(argv, stdin=stdin.fileno())
    try:
        return _Exchange(process, stdin if isinstance(stdin, bytes) else b"", limit_bytes, sink).run(timeout_s)
    finally:
        end(process)


class _Exchange:
    """One child's pipes, served without threads until all are closed or the time is over."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes, limit_bytes: int, sink: Sink | None) -> None:
        self.process, self.limit_bytes, self.sink = process, limit_bytes, sink
        self.unsent = memoryview(stdin)
        self.stdout, self.stderr = bytearray(), bytearray()
        self.stdout_bytes = 0

    def run(self, timeout_s: float) -> Completed:
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            for stream in (self.process.stdout, self.process.stderr):
                if stream is not None:
                    selector.register(stream, selectors.EVENT_READ)
            if self.process.stdin is not None:
                os.set_blocking(self.process.stdin.fileno(), False)
                selector.register(self.process.stdin, selectors.EVENT_WRITE)
            ended_at: float | None = None
            while selector.get_map():
                now = time.monotonic()
                if ended_at is None and self.process.poll() is not None:
                    ended_at = now
                if ended_at is not None and now - ended_at > DRAIN_S:
                    break
                if now > deadline:
                    raise self._late(timeout_s)
                for key, _ in selector.select(min(0.1, max(0.0, deadline - now))):
                    self._serve(selector, key)
        try:
            code = self.process.wait(max(0.05, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise self._late(timeout_s) from error
        return Completed(code, bytes(self.stdout), bytes(self.stderr))

    def _late(self, timeout_s: float) -> StoppedError:
        return StoppedError(f"the command did not finish within {timeout_s:g} s and was ended", bytes(self.stderr))

    def _serve(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        stream = key.fileobj
        assert not isinstance(stream, int)
        if stream is self.process.stdin:
            try:
                self.unsent = self.unsent[os.write(key.fd, self.unsent[:CHUNK_BYTES]) :]
            except BlockingIOError:
                return
            except OSError:
                # The command does not read its input to the end: its exit code tells why.
                self.unsent = memoryview(b"")
            if not self.unsent:
                selector.unregister(stream)
                with contextlib.suppress(OSError):
                    self.process.stdin.close()
            return
        data = os.read(key.fd, CHUNK_BYTES)
        if not data:
            selector.unregister(stream)
        elif stream is self.process.stderr:
            self._keep_stderr(data)
        else:
            self._keep_stdout(data)

    def _keep_stdout(self, data: bytes) -> None:
        self.stdout_bytes += len(data)
        if self.stdout_bytes > self.limit_bytes:
            reason = f"the command printed more than {self.limit_bytes} bytes and was ended"
            raise StoppedError(reason, bytes(self.stderr))
        if self.sink is None:
            self.stdout += data
        else:
            self.sink.write(data)

    def _keep_stderr(self, data: bytes) -> None:
        self.stderr += data
        # The first line says who it is and the last what became of it: what is between may go.
        if len(self.stderr) > STDERR_LIMIT_BYTES:
            half = STDERR_LIMIT_BYTES // 2
            self.stderr = self.stderr[:half] + self.stderr[-half:]
