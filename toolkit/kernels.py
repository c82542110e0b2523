"""What a runtime tells of where its time goes: the kernels that a saved file became, with the time of each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from acmix.toolkit.target import Array


@dataclass(frozen=True)
class KernelTime:
    """One kernel of a loaded file.

    kind: the runtime's own name (Conv, 'Convolution (NHWC, F32) IGEMM').  value: the name that `Target.tap` gives to
    its result, `output.0` for the file's own; '' where the runtime does not tell which it is.
    times_ns: one a run, in order; a kernel that a run did not reach has 0.
    """

    kind: str
    value: str
    runs_on: str
    delegated: bool | None
    times_ns: tuple[int, ...]


@dataclass(frozen=True)
class KernelTimes:
    """Every kernel in the order of execution. measured_by: which profiler, its resolution, and what it leaves out."""

    kernels: tuple[KernelTime, ...]
    measured_by: str


class Profiled(Protocol):
    """A runner whose runtime notes the time of every kernel."""

    def __call__(self, inputs: Sequence[Array], /) -> list[Array]: ...
    def kernels(self) -> KernelTimes:
        """All runs since loading; call it once, after the last one."""
