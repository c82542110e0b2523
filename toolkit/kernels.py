"""What a runtime tells of where its time goes: the kernels that a saved file became, with the time of each run.

`Notes` are as the runtime gives them, here or on a device; the file's target makes `KernelTimes` of them, here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from acmix.toolkit.errors import UsageError

if TYPE_CHECKING:
    from acmix.toolkit.target import Array


@dataclass(frozen=True)
class Noted:
    """One kernel as a runtime notes it; '' where it does not tell.

    name: its own.  kind: what it computes, where the name does not say that.  runs_on: who executes it.
    place: chain and instruction, or 0 and the operator's number.  makes: the name of its result in the runtime's graph.
    """

    name: str
    kind: str = ""
    runs_on: str = ""
    delegated: bool = False
    place: tuple[int, int] = (0, 0)
    makes: str = ""


@dataclass(frozen=True)
class Notes:
    """What a runtime noted. runs: of each its kernels in order, by their places in `kernels`, with nanoseconds."""

    kernels: tuple[Noted, ...] = ()
    runs: tuple[tuple[tuple[int, int], ...], ...] = ()


def check_whole(notes: Notes, runs: int, runtime: str) -> None:
    """UsageError where the notes do not hold every run."""
    if len(notes.runs) != runs:
        raise UsageError(
            f"the profile of {runtime} holds {len(notes.runs)} of {runs} runs: it was cut. Profile fewer runs: --runs."
        )


def same_in_every_run(notes: Notes, runs: int, runtime: str) -> list[tuple[Noted, tuple[int, ...]]]:
    """Each kernel in order with one time a run.

    Raises UsageError where the notes do not hold `runs` runs, or the runs are not of the same kernels.
    """
    check_whole(notes, runs, runtime)
    order = [place for place, _ in notes.runs[0]] if notes.runs else []
    if any([place for place, _ in run] != order for run in notes.runs):
        raise UsageError(
            f"{runtime} did not run the same kernels in each of {runs} runs: their times cannot be told apart."
        )
    times = zip(*([ns for _, ns in run] for run in notes.runs), strict=True)
    return list(zip((notes.kernels[place] for place in order), times, strict=True))


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
