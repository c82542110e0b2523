"""What a session and its child say to each other: one JSON line, then arrays in .npy form."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import msgspec
import numpy as np

from acmix.toolkit.kernels import KernelTimes, Notes
from acmix.toolkit.target import Array, Placement


@dataclass(frozen=True)
class Command:
    """One line to the child; `arrays` blocks follow it. notes: of `count` runs of the file in `runtime`."""

    do: str
    arrays: int = 0
    count: int = 0
    notes: Notes | None = None
    runtime: str = ""


@dataclass(frozen=True)
class Answer:
    """One line from the child; `arrays` blocks follow it."""

    error: str = ""
    arrays: int = 0
    latency_ns: tuple[int, ...] = ()
    peak_memory_mb: float = 0.0
    placement: Placement | None = None
    kernels: KernelTimes | None = None


def send(stream: IO[bytes], message: Command | Answer, arrays: Sequence[Array] = ()) -> None:
    """A message and its arrays, at once."""
    block = io.BytesIO()
    for array in arrays:
        np.lib.format.write_array(block, np.ascontiguousarray(array), allow_pickle=False)
    stream.write(msgspec.json.encode(message) + b"\n" + block.getvalue())
    stream.flush()


class _Pipe:
    """Hides that a stream is a file: numpy would ask a pipe for its position."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.read = stream.read


def receive_arrays(stream: IO[bytes], count: int) -> list[Array]:
    """The arrays behind a message."""
    return [np.lib.format.read_array(_Pipe(stream), allow_pickle=False) for _ in range(count)]
