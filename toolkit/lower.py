"""Lowering in a process of its own: converters print, leak, crash, and take seconds to import.

The child imports its converter at once, then waits for its job on stdin, so that imports overlap with the
capture in the parent.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from acmix.toolkit import catalog
from acmix.toolkit.child import answer_and_leave, converter_environment, in_one_line, private_stdout
from acmix.toolkit.errors import AcmixError, GateError, UsageError
from acmix.toolkit.imports import collecting_nothing
from acmix.toolkit.ranges import load_ranges
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Lowered, LoweringJob

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
    """What came of it; `refused` marks an error that is the user's to mend."""

    lowered: Lowered | None = None
    error: str = ""
    refused: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Lowering:
    """A child that has its converter imported, or is importing it."""

    target: str
    process: subprocess.Popen[bytes]
    log: Path

    def lower(self, request: LoweringRequest) -> tuple[Lowered, float]:
        """Send the job and wait; what was lowered, and the seconds it took without imports.

        Raises UsageError when the target refuses, GateError when the converter fails or dies.
        """
        with contextlib.suppress(BrokenPipeError):
            try:
                output, _ = self.process.communicate(msgspec.json.encode(request) + b"\n", timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                raise GateError(
                    f"the {self.target} converter took more than {TIMEOUT_S:.0f} s.\nFull log: {self.log}"
                ) from error
        code = self.process.returncode
        if code != 0 or not output.strip():
            how = f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with {code}"
            raise GateError(f"the {self.target} converter {how}.\nFull log: {self.log}")
        answer = msgspec.json.decode(output, type=LoweringAnswer)
        if answer.lowered is None:
            if answer.refused:
                raise UsageError(answer.error)
            raise GateError(f"the {self.target} converter failed: {answer.error}\nFull log: {self.log}")
        return answer.lowered, answer.seconds


@contextlib.contextmanager
def start_lowering(target: str, log: Path, threads: int) -> Iterator[Lowering]:
    """Start a child for one target; it is ended when the block is left."""
    with converter_environment() as environment:
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "acmix.toolkit.lower", target],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**environment, "OMP_NUM_THREADS": str(threads)},
            )
        try:
            yield Lowering(target, process, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


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
        return LoweringAnswer(error=in_one_line(error))
    return LoweringAnswer(lowered, seconds=time.perf_counter() - begin)


def main(arguments: Sequence[str]) -> None:
    """The child's program: the target's name; the request comes as one line of JSON on stdin."""
    answers = private_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    target = arguments[0]
    with collecting_nothing():
        catalog.load_target(target).preload()
    line = sys.stdin.buffer.readline()
    if not line:
        return
    answer = _lower(target, msgspec.json.decode(line, type=LoweringRequest))
    answer_and_leave(answers, answer)


if __name__ == "__main__":
    main(sys.argv[1:])
