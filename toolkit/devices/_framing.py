"""What is sent to a shell on the other side, and how its answer is told from noise.

A login shell may print a greeting, a connection may break, and 255 is ssh's own exit code as well as a program's.
So each command runs between two marks with a word that was never used before:

    stdout  <newline> WORD begin PID
    stderr  <newline> WORD begin PID ... <newline> WORD end CODE

No end mark: the command did not finish. PID leads the process group there (sshd and adbd start one a command).
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from acmix.toolkit.devices._process import Sink
from acmix.toolkit.errors import UsageError

MAX_PID = 2**22
GREETING_LIMIT_BYTES = 1 << 16
LONGEST_MARK_BYTES = 64


@dataclass(frozen=True)
class Frame:
    """One command's script and how to read what comes back."""

    word: str
    script: str

    @property
    def begin(self) -> re.Pattern[bytes]:
        """The first mark, with the process id."""
        return re.compile(rb"(?:\A|\n)" + self.word.encode() + rb" begin ([0-9]{1,9})\r?\n")

    @property
    def end(self) -> re.Pattern[bytes]:
        """The last mark, with the exit code."""
        return re.compile(rb"\n" + self.word.encode() + rb" end ([0-9]{1,3})\r?\n")


@dataclass(frozen=True)
class Framed:
    """What was between the marks. pid: None when it never began; code: None when it never ended."""

    pid: int | None
    code: int | None
    stderr: bytes


def quote(command: Sequence[str]) -> str:
    """A command line for a POSIX shell in which every argument stays what it is; UsageError where none can."""
    if not command:
        raise UsageError("an empty command cannot be run; name a program")
    for argument in command:
        if "\0" in argument:
            raise UsageError(f"the argument {argument!r} holds a NUL character, which no command can be given")
    return shlex.join(command)


def frame(snippet: str) -> Frame:
    """Put a shell snippet between marks. echo, not printf: mksh has no printf of its own."""
    word = f"acmix-{secrets.token_hex(8)}"
    begin = f"echo; echo {word} begin $$"
    script = f"{begin}; {{ {begin}; }} >&2\n( {snippet}\n)\n{{ c=$?; echo; echo {word} end $c; }} >&2"
    return Frame(word, script)


def read_pid(digits: bytes) -> int | None:
    """A process id that may be ended: a device's word is not trusted to be one."""
    pid = int(digits)
    return pid if 1 < pid <= MAX_PID else None


def unframe(made: Frame, stderr: bytes) -> Framed:
    """Read the marks of stderr."""
    begin = made.begin.search(stderr)
    if begin is None:
        return Framed(None, None, stderr)
    rest = stderr[begin.end() :]
    ends = list(made.end.finditer(rest))
    if not ends:
        return Framed(read_pid(begin[1]), None, rest)
    return Framed(read_pid(begin[1]), int(ends[-1][1]), rest[: ends[-1].start()])


def payload(made: Frame, stdout: bytes) -> bytes:
    """stdout after the mark; what came before was somebody's greeting."""
    begin = made.begin.search(stdout)
    return b"" if begin is None else stdout[begin.end() :]


class AfterMark:
    """Passes on what comes after the first mark."""

    def __init__(self, made: Frame, sink: Sink) -> None:
        self.made, self.sink = made, sink
        self.before: bytearray | None = bytearray()

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        if self.before is None:
            self.sink.write(data)
            return
        self.before += data
        if begin := self.made.begin.search(bytes(self.before)):
            self.sink.write(bytes(self.before[begin.end() :]))
            self.before = None
        elif len(self.before) > GREETING_LIMIT_BYTES:
            del self.before[:-LONGEST_MARK_BYTES]
