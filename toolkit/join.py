"""Joining in a process of its own, as lowering is: converters print, leak, and take seconds to import."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from acmix.toolkit import catalog
from acmix.toolkit.child import answer_and_leave, converter_environment, in_one_line, private_stdout
from acmix.toolkit.errors import AcmixError, GateError, UsageError
from acmix.toolkit.joining import JoinRequest

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class _Answer:
    error: str = ""
    refused: bool = False


def join(target: str, request: JoinRequest, log: Path) -> None:
    """Write request.file from its parts; what the child prints goes to the log.

    Raises UsageError where a part is damaged, GateError when the converter fails or dies.
    """
    command = [sys.executable, "-m", "acmix.toolkit.join", target]
    with converter_environment() as environment, log.open("ab") as stream:
        try:
            done = subprocess.run(
                command,
                input=msgspec.json.encode(request) + b"\n",
                stdout=subprocess.PIPE,
                stderr=stream,
                env=environment,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise GateError(f"joining took {target} more than {TIMEOUT_S:.0f} s.\nFull log: {log}") from error
    if done.returncode != 0 or not done.stdout.strip():
        raise GateError(f"joining the files of {target} ended with {done.returncode}.\nFull log: {log}")
    answer = msgspec.json.decode(done.stdout, type=_Answer)
    if answer.refused:
        raise UsageError(answer.error)
    if answer.error:
        raise GateError(f"the files of {target} could not be joined: {answer.error}\nFull log: {log}")


def _answer(target: str, request: JoinRequest) -> _Answer:
    joining = catalog.load_target(target).joining
    try:
        if joining is None:
            raise UsageError(f"files of {target} hold one network each.")
        joining.join(request)
        return _Answer()
    except AcmixError as error:
        return _Answer(error=str(error), refused=True)
    except Exception as error:
        # Converters raise anything.
        return _Answer(error=in_one_line(error))


def main(arguments: Sequence[str]) -> None:
    """The child's program: the target's name; the request comes as one line of JSON on stdin."""
    answers = private_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer = _answer(arguments[0], msgspec.json.decode(sys.stdin.buffer.readline(), type=JoinRequest))
    answer_and_leave(answers, answer)


if __name__ == "__main__":
    main(sys.argv[1:])
