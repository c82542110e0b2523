"""A session: one saved file in its own runtime in a fresh process, driven over a pipe.

The child answers one JSON line a command, followed by its arrays in .npy form; whatever the runtime prints
goes to the log. A runtime that crashes or hangs takes the child with it, never us.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from acmix.toolkit import catalog
from acmix.toolkit._session_messages import Answer, Command, receive_arrays, send
from acmix.toolkit.child import private_stdout
from acmix.toolkit.errors import AcmixError, GateError, UsageError
from acmix.toolkit.imports import collecting_nothing
from acmix.toolkit.joining import Function, open_runners
from acmix.toolkit.kernels import KernelTimes, Notes, Profiled
from acmix.toolkit.target import Array, Placement, Runner

TIMEOUT_S = 600.0
TELL_KERNELS = "time the kernels of"
NAME_KERNELS = "name the kernels of"
Cpus = tuple[int, ...] | None


@dataclass(frozen=True)
class SessionRequest:
    """What a child loads and where it may run. cpus: None leaves the scheduler free.

    reference: by the target's reference evaluator.  profiled: with every kernel timed.  function: of several in it.
    """

    target: str
    file: str
    threads: int = 1
    cpus: Cpus = None
    reference: bool = False
    profiled: bool = False
    function: Function | None = None


def peak_memory_mb() -> float:
    """The largest resident size that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its maximum outlives exec, so a child would report its parent's.
        line = next(line for line in status.read_text("ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


# The parent's side


@dataclass(frozen=True)
class Session:
    """A running child. Use `open_session`."""

    request: SessionRequest
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, command: Command, arrays: Sequence[Array] = ()) -> tuple[Answer, list[Array]]:
        """Send a command and wait for its answer.

        Raises GateError when the runtime reports an error, crashes, or does not answer within TIMEOUT_S.
        """
        if self.process.stdin is None or self.process.stdout is None:
            raise ValueError("the session was opened without pipes")
        watchdog = threading.Timer(TIMEOUT_S, self.process.kill)
        # A user who interrupts while it starts must not wait for it.
        watchdog.daemon = True
        watchdog.start()
        try:
            send(self.process.stdin, command, arrays)
            line = self.process.stdout.readline()
            if not line:
                raise BrokenPipeError
            answer = msgspec.json.decode(line, type=Answer)
            outputs = receive_arrays(self.process.stdout, answer.arrays)
        except (OSError, ValueError, EOFError) as error:
            raise GateError(f"{self._what_failed(command)}: {self._death()}\nFull log: {self.log}") from error
        finally:
            watchdog.cancel()
        if answer.error:
            raise GateError(f"{self._what_failed(command)}: {answer.error}\nFull log: {self.log}")
        return answer, outputs

    def _what_failed(self, command: Command) -> str:
        return f"the {self.request.target} runtime failed to {command.do} {Path(self.request.file).name}"

    def _death(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        code = self.process.returncode
        if code is not None and code < 0:
            return f"it was killed by signal {-code}"
        return f"it ended with exit code {code}"

    def load(self) -> Answer:
        """Load the file; the answer's latency is the load time, imports not counted."""
        return self.ask(Command("load"))[0]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One inference. The inputs stay set for `time`."""
        return self.run_timed(inputs)[1]

    def run_timed(self, inputs: Sequence[Array]) -> tuple[Answer, list[Array]]:
        """One inference, with its latency."""
        return self.ask(Command("run", arrays=len(inputs)), inputs)

    def time(self, count: int) -> Answer:
        """`count` inferences of the inputs of the last `run`, each timed on its own."""
        return self.ask(Command("time", count=count))[0]

    def placement(self) -> Placement:
        """Where each operator of the file runs."""
        placement = self.ask(Command("place"))[0].placement
        if placement is None:
            raise GateError(f"the {self.request.target} runtime tells no placement")
        return placement

    def kernels(self) -> KernelTimes:
        """The times of every kernel in all runs of a profiled session; asked once, after the last run."""
        return self._kernels(Command(TELL_KERNELS))

    def name_kernels(self, notes: Notes, runs: int, runtime: str) -> KernelTimes:
        """What a device noted of `runs` runs of this file, by the file's own values; the file is not loaded for it."""
        return self._kernels(Command(NAME_KERNELS, count=runs, notes=notes, runtime=runtime))

    def _kernels(self, command: Command) -> KernelTimes:
        kernels = self.ask(command)[0].kernels
        if kernels is None:
            raise GateError(f"the {self.request.target} runtime tells no times of its kernels")
        return kernels


@contextlib.contextmanager
def open_session(request: SessionRequest, log: Path) -> Iterator[Session]:
    """Start a child for one file; its output is appended to `log`."""
    command = [sys.executable, "-m", "acmix.toolkit.session", msgspec.json.encode(request).decode()]
    with log.open("ab") as log_stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_stream,
            env=_environment(request),
        )
    try:
        yield Session(request, process, log)
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(request: SessionRequest) -> dict[str, str]:
    threads = str(request.threads)
    return {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}


# The child's side


class _Child:
    def __init__(self, request: SessionRequest, stack: ExitStack) -> None:
        self.target, self.request, self.stack = catalog.load_target(request.target), request, stack
        self.runner: Runner | None = None
        self.profiled: Profiled | None = None
        self.inputs: list[Array] = []

    def answer(self, command: Command, inputs: list[Array]) -> tuple[Answer, list[Array]]:
        file = Path(self.request.file)
        if command.do == "place":
            return Answer(placement=self.target.placement(file)), []
        if command.do == NAME_KERNELS:
            notes = command.notes or Notes()
            return Answer(kernels=self.target.kernel_times(file, notes, command.count, command.runtime)), []
        if command.do == "load":
            if not self.request.reference:
                with collecting_nothing():
                    self.target.preload_runtime()
            begin = time.perf_counter_ns()
            self.runner = self._loaded(file)
            return Answer(latency_ns=(time.perf_counter_ns() - begin,), peak_memory_mb=peak_memory_mb()), []
        if self.runner is None:
            raise UsageError(f"{command.do!r} came before 'load'")
        if self.profiled is not None and command.do == TELL_KERNELS:
            return Answer(kernels=self.profiled.kernels()), []
        if command.do == "run":
            self.inputs = inputs
            begin = time.perf_counter_ns()
            outputs = self.runner(inputs)
            elapsed = time.perf_counter_ns() - begin
            return Answer(arrays=len(outputs), latency_ns=(elapsed,), peak_memory_mb=peak_memory_mb()), outputs
        return Answer(latency_ns=_timed(self.runner, self.inputs, command.count), peak_memory_mb=peak_memory_mb()), []

    def _loaded(self, file: Path) -> Runner:
        asked, stack = self.request, self.stack
        if asked.profiled:
            self.profiled = stack.enter_context(self.target.profiler(file, asked.threads))
            return self.profiled
        wanted = () if asked.function is None else (asked.function,)
        return stack.enter_context(open_runners(self.target, file, asked.threads, wanted, asked.reference))[0]


def _timed(runner: Runner, inputs: Sequence[Array], count: int) -> tuple[int, ...]:
    samples = []
    for _ in range(count):
        begin = time.perf_counter_ns()
        runner(inputs)
        samples.append(time.perf_counter_ns() - begin)
    return tuple(samples)


def serve(request: SessionRequest, commands: IO[bytes], answers: IO[bytes]) -> None:
    """Answer commands until the pipe closes."""
    if request.cpus is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, request.cpus)
    with ExitStack() as stack:
        child = _Child(request, stack)
        for line in commands:
            command = msgspec.json.decode(line, type=Command)
            inputs = receive_arrays(commands, command.arrays)
            try:
                answer, outputs = child.answer(command, inputs)
            except AcmixError as error:
                answer, outputs = Answer(error=str(error)), []
            except Exception as error:
                # The runtime is foreign code: whatever it raises is the answer.
                answer, outputs = Answer(error=f"{type(error).__name__}: {error}"), []
            send(answers, answer, outputs)


def main(arguments: Sequence[str]) -> None:
    """The child's program: one argument, the request as JSON."""
    answers = private_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request: Any = msgspec.json.decode(arguments[0], type=SessionRequest)
    serve(request, sys.stdin.buffer, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
