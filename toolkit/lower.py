"""Lowering in a process of its own: converters print, leak, crash, and take seconds to import.

The child imports its converter at once, then waits for its job on stdin, so that imports overlap with the
capture in the parent.
"""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

import msgspec

from acmix.toolkit import catalog
from acmix.toolkit.child import (
    answer_and_leave,
    converter_environment,
    in_a_fork,
    in_one_line,
    leave,
    private_stdout,
    settle,
    tell,
)
from acmix.toolkit.errors import AcmixError, GateError, UsageError
from acmix.toolkit.imports import collecting_nothing
from acmix.toolkit.ranges import load_ranges
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Lowered, LoweringJob
from acmix.toolkit.warm import STAY, converter

TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class LoweringRequest:
    """A lowering job with paths instead of objects: what crosses the pipe."""

    program: str
    file: str
    model: str
    recipe: Recipe
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: dict[str, Any]
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    ranges: str = ""
    kept_float: tuple[str, ...] = ()
    samples_file: str = ""


@dataclass(frozen=True)
class LoweringAnswer:
    """What came of it; `refused` marks an error that is the user's to mend, else it says what the converter did."""

    lowered: Lowered | None = None
    error: str = ""
    refused: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class _Job:
    """A request, and what a converter that stays has to change for it."""

    request: LoweringRequest
    log: str
    scratch: str


@dataclass(frozen=True)
class Lowering:
    """A child that has its converter imported, or is importing it, with a log and a temporary folder for one job."""

    target: str
    process: subprocess.Popen[bytes]
    log: Path
    scratch: str

    def lower(self, request: LoweringRequest) -> tuple[Lowered, float]:
        """Send the job and wait; what was lowered, and the seconds it took without imports.

        Raises UsageError when the target refuses, GateError when the converter fails or dies.
        """
        answer = self._asked(_Job(request, str(self.log), self.scratch))
        if answer.lowered is None:
            if answer.refused:
                raise UsageError(answer.error)
            raise GateError(f"the {self.target} converter {answer.error}\nFull log: {self.log}")
        return answer.lowered, answer.seconds

    def _asked(self, job: _Job) -> LoweringAnswer:
        commands, answers = self.process.stdin, self.process.stdout
        assert commands is not None and answers is not None
        with contextlib.suppress(BrokenPipeError):
            commands.write(msgspec.json.encode(job) + b"\n")
            commands.flush()
        if not select.select([answers], [], [], TIMEOUT_S)[0]:
            self.process.kill()
            self.process.wait()
            return LoweringAnswer(error=f"took more than {TIMEOUT_S:.0f} s.")
        if not (line := answers.readline()):
            return LoweringAnswer(error=_death(self.process.wait()))
        return msgspec.json.decode(line, type=LoweringAnswer)


def _death(code: int) -> str:
    return f"was killed by signal {-code} ({signal.Signals(-code).name})." if code < 0 else f"ended with {code}."


@contextlib.contextmanager
def start_lowering(target: str, log: Path, threads: int) -> Iterator[Lowering]:
    """Start a child for one job of one target, or take one that is kept warm; a started one is ended with the block."""
    log.write_bytes(b"")
    with converter_environment() as environment:
        environment["OMP_NUM_THREADS"] = str(threads)
        with converter(target, threads, log, environment) as process:
            yield Lowering(target, process, log, environment["TMPDIR"])


def _lower(target_name: str, request: LoweringRequest) -> LoweringAnswer:
    from acmix.toolkit.program import load_program

    target = catalog.load_target(target_name)
    begin = time.perf_counter()
    job = LoweringJob(
        request.model,
        request.recipe,
        request.inputs,
        request.outputs,
        msgspec.convert(request.options, target.options),
        request.preprocess,
        request.labels,
        load_ranges(Path(request.ranges)) if request.ranges else None,
        request.kept_float,
        request.samples_file,
    )
    try:
        lowered = target.lower(load_program(Path(request.program)), job, Path(request.file))
    except AcmixError as error:
        return LoweringAnswer(error=str(error), refused=True)
    except Exception as error:
        # Converters raise anything.
        return LoweringAnswer(error=f"failed: {in_one_line(error)}")
    return LoweringAnswer(lowered, seconds=time.perf_counter() - begin)


def main(arguments: Sequence[str]) -> None:
    """The child's program: the target's name, and STAY for more than one job; each comes as a line of JSON on stdin."""
    answers = private_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    target, stays = arguments[0], STAY in arguments[1:]
    with collecting_nothing():
        catalog.load_target(target).preload()
    while line := sys.stdin.buffer.readline():
        job = msgspec.json.decode(line, type=_Job)
        if not stays:
            answer_and_leave(answers, _lower(target, job.request))
        answer, code = in_a_fork(partial(_in_its_place, target, job))
        if code != 0:
            tell(answers, LoweringAnswer(error=_death(code)))
        else:
            answers.write(answer)
            answers.flush()
    leave()


def _in_its_place(target: str, job: _Job, answers: IO[bytes]) -> NoReturn:
    """A forked child's work: it prints into its own job's log, and writes into its own temporary folder."""
    settle(Path(job.log), Path(job.scratch))
    answer_and_leave(answers, _lower(target, job.request))


if __name__ == "__main__":
    main(sys.argv[1:])
