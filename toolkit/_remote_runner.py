"""A runner on a device: a bundle that was pushed, started, and asked by one JSON object a line."""

from __future__ import annotations

import base64
import binascii
import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from acmix.toolkit.device import LineStream, LongLineError, Transport, printable
from acmix.toolkit.errors import GateError
from acmix.toolkit.kernels import Noted, Notes
from acmix.toolkit.measure import Timed
from acmix.toolkit.spec import TensorSpec
from acmix.toolkit.target import Array

LOAD_TIMEOUT_S = 300.0
RUN_TIMEOUT_S = 300.0
ROOM_BYTES = 1 << 16
"""Of an answer, beside its arrays."""
NOTES_LIMIT_BYTES = 1 << 24
MOST_KERNELS = 10_000
"""Of a file, and of one run."""
LONGEST_NAME = 300
"""Characters; what is behind them goes."""
MOST_NS = 10**13
MOST_COUNT = 10**15
LOOP = 2_000_000
"""Instructions of the loop in instructions.c."""
COUNT_TOLERANCE = 0.01
FOLDER = "{folder}"


@dataclass(frozen=True)
class RunnerBundle:
    """A runner for one kind of device: a folder to push, and the command that starts it there.

    name: of the folder on the device; tells one build from another.  command: its words; '{folder}' in a word
    stands for the place of the folder on the device.  runtime: which one it is, for people.
    """

    folder: Path
    name: str
    command: tuple[str, ...]
    runtime: str

    def command_in(self, folder: str) -> list[str]:
        """The command once the bundle lies in `folder` on the device."""
        return [word.replace(FOLDER, folder) for word in self.command]


class _Reply(msgspec.Struct, frozen=True):
    """What a runner may answer; anything else is refused."""

    error: str = ""
    load_ns: int = 0
    latency_ns: tuple[int, ...] = ()
    peak_memory_kb: int = 0
    outputs: tuple[str, ...] = ()
    instructions: tuple[int, ...] = ()
    loops: tuple[int, ...] = ()


class _Profile(msgspec.Struct, frozen=True):
    """What a runner may answer when it is asked for the kernels of all runs."""

    error: str = ""
    kernels: tuple[Noted, ...] = ()
    runs: tuple[tuple[tuple[int, int], ...], ...] = ()


Answered = TypeVar("Answered", _Reply, _Profile)


def pinned(command: Sequence[str], cores: Sequence[int]) -> list[str]:
    """The command on these processors alone; as it is without any."""
    # Every taskset, toybox's and busybox's too, takes a mask in hex.
    return ["taskset", f"{sum(1 << core for core in cores):x}", *command] if cores else list(command)


class RemoteRunner:
    """A started runner. Use `start_runner`. Every call ends within its time-out, and raises GateError."""

    def __init__(self, device: str, lines: LineStream, outputs: Sequence[TensorSpec]) -> None:
        self.device, self.lines, self.outputs = device, lines, outputs
        sizes = [math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in outputs]
        self.limit_bytes = sum(4 * (size // 3 + 2) for size in sizes) + ROOM_BYTES

    def load(self, file: str, threads: int, profiled: bool = False) -> Timed:
        """Load a file of the device. profiled: the kernels of every run are timed."""
        command: dict[str, object] = {"do": "load", "file": file, "threads": threads}
        reply = self._ask({**command, "profile": 1} if profiled else command, LOAD_TIMEOUT_S)
        return self._timed(reply.load_ns, reply)

    def run(self, inputs: Sequence[str]) -> tuple[Timed, list[Array]]:
        """One inference of files of the device, each an input's raw bytes; the outputs as the file has them."""
        reply = self._ask({"do": "run", "inputs": list(inputs)}, RUN_TIMEOUT_S)
        if len(reply.outputs) != len(self.outputs):
            raise self._nonsense(f"{len(reply.outputs)} outputs in place of {len(self.outputs)}")
        arrays = [self._array(text, spec) for text, spec in zip(reply.outputs, self.outputs, strict=True)]
        return self._one(reply), arrays

    def time(self, inputs: Sequence[str] = ()) -> Timed:
        """One more inference, its outputs left there. inputs: files, as `run` takes them; () repeats the last ones."""
        command: dict[str, object] = {"do": "time", "count": 1}
        return self._one(self._ask({**command, "inputs": list(inputs)} if inputs else command, RUN_TIMEOUT_S))

    def count(self, runs: int) -> tuple[int, ...]:
        """Instructions in user mode of so many more inferences, each a count of its own.

        Raises GateError, too, where the processor does not count a loop that is known, or not twice alike.
        """
        reply = self._ask({"do": "count", "count": runs}, RUN_TIMEOUT_S)
        counts = (*reply.instructions, *reply.loops)
        if len(reply.instructions) != runs or len(reply.loops) != 2 or not all(0 < one < MOST_COUNT for one in counts):
            raise self._nonsense(f"{len(reply.instructions)} counts of {runs} runs")
        for what, counts, least in (
            ("a loop", reply.loops, LOOP),
            ("a run", reply.instructions, min(reply.instructions)),
        ):
            if not least <= min(counts) <= max(counts) <= least * (1 + COUNT_TOLERANCE):
                wanted = f", which has {LOOP}" if what == "a loop" else ""
                raise GateError(
                    f"{self.device}: its processor's counter of instructions cannot be believed: for {what}{wanted} it "
                    f"gives {min(counts)} and {max(counts)}.\nMeasure again with nothing else running there."
                )
        return reply.instructions

    def kernels(self) -> Notes:
        """What a profiled file ran in all of its runs; asked once, after the last one."""
        try:
            told = self._answer({"do": "kernels"}, RUN_TIMEOUT_S, NOTES_LIMIT_BYTES, _Profile)
        except LongLineError as error:
            raise GateError(f"{error}\nThe profile is too long: profile fewer runs, --runs 20.") from error
        if (most := max(map(len, (told.kernels, *told.runs)))) > MOST_KERNELS:
            raise self._nonsense(f"{most} kernels")
        for place, ns in itertools.chain.from_iterable(told.runs):
            if not 0 <= place < len(told.kernels) or not 0 <= ns < MOST_NS:
                raise self._nonsense(f"{ns} ns of kernel {place} of {len(told.kernels)}")
        return Notes(tuple(map(self._noted, told.kernels)), told.runs)

    def _noted(self, kernel: Noted) -> Noted:
        """Its words can be shown, and its place is one."""
        if not all(0 <= number < 2**31 for number in kernel.place):
            raise self._nonsense(f"a kernel at {kernel.place}")
        name, kind, runs_on, makes = (
            printable(word, LONGEST_NAME) for word in (kernel.name, kernel.kind, kernel.runs_on, kernel.makes)
        )
        return Noted(name, kind, runs_on, kernel.delegated, kernel.place, makes)

    def _ask(self, command: dict[str, object], timeout_s: float) -> _Reply:
        return self._answer(command, timeout_s, self.limit_bytes, _Reply)

    def _answer(self, command: dict[str, object], timeout_s: float, limit_bytes: int, kind: type[Answered]) -> Answered:
        self.lines.write(msgspec.json.encode(command) + b"\n")
        line = self.lines.readline(timeout_s, limit_bytes)
        try:
            reply: Answered = msgspec.json.decode(line, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._nonsense(printable(line, 80)) from error
        if reply.error:
            raise GateError(f"{self.device}: the runner could not {command['do']}: {printable(reply.error)}")
        return reply

    def _one(self, reply: _Reply) -> Timed:
        if len(reply.latency_ns) != 1:
            raise self._nonsense(f"{len(reply.latency_ns)} latencies of one run")
        return self._timed(reply.latency_ns[0], reply)

    def _timed(self, ns: int, reply: _Reply) -> Timed:
        if not 0 < ns < MOST_NS or not 0 <= reply.peak_memory_kb < 2**40:
            raise self._nonsense(f"{ns} ns and {reply.peak_memory_kb} kB")
        return Timed(ns, round(reply.peak_memory_kb / 1024, 1))

    def _array(self, text: str, spec: TensorSpec) -> Array:
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise self._nonsense(f"output {spec.name} is no base64") from error
        kind = np.dtype(spec.dtype).newbyteorder("<")
        if len(data) != math.prod(spec.shape) * kind.itemsize:
            raise self._nonsense(f"{len(data)} bytes of output {spec.name}, whose shape is {spec.shape}")
        return np.frombuffer(data, kind).reshape(spec.shape)

    def _nonsense(self, what: str) -> GateError:
        return GateError(f"{self.device}: the runner answers nonsense: {what}")


@contextlib.contextmanager
def start_runner(
    transport: Transport, bundle: RunnerBundle, folder: str, outputs: Sequence[TensorSpec]
) -> Iterator[RemoteRunner]:
    """Start a bundle that was pushed to `folder`; it ends on the device when the context closes."""
    device = transport.device
    with transport.stream(pinned(bundle.command_in(folder), device.cores)) as lines:
        yield RemoteRunner(device.name, lines, outputs)
