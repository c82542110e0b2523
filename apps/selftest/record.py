"""What a selftest writes down: one record a claim, and the file that holds them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from acmix.toolkit.conditions import Identity
from acmix.toolkit.device import printable
from acmix.toolkit.errors import AcmixError, UsageError
from acmix.toolkit.whole import write_whole

SCHEMA_VERSION = 1
Outcome = Literal["passed", "failed", "skipped"]
Evidence = dict[str, Any]
"""What was seen, by name: numbers, words, lists of them."""


@dataclass(frozen=True)
class Record:
    """One claim and what became of it. reason: why it failed or was skipped."""

    name: str
    claim: str
    outcome: Outcome
    reason: str = ""
    evidence: Evidence = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Subject:
    """The device as its file and it itself describe it. Its address stays at home: a serial is nobody's business."""

    name: str
    transport: str
    description: str
    cores: tuple[int, ...]
    threads: int
    identity: Identity | None = None


@dataclass(frozen=True)
class Report:
    """The whole selftest. versions: of acmix and of what it used; host: the machine that asked. Times are UTC."""

    device: Subject
    begun: str
    ended: str
    versions: dict[str, str]
    host: dict[str, str]
    records: tuple[Record, ...]
    schema_version: int = SCHEMA_VERSION

    @property
    def has_failed(self) -> bool:
        """Whether any check did."""
        return any(record.outcome == "failed" for record in self.records)


class FailedError(Exception):
    """A claim that does not hold, and what was seen."""

    def __init__(self, reason: str, **evidence: Any) -> None:
        super().__init__(reason)
        self.evidence = evidence


class SkippedError(Exception):
    """A claim that cannot be checked: nothing there can run it, or something is not installed here."""


@dataclass(frozen=True)
class Check:
    """A claim and how it is tried. run: what was seen; raises FailedError, SkippedError or what the work raises."""

    name: str
    claim: str
    run: Callable[[], Evidence]


def conduct(check: Check) -> Record:
    """Try one claim. Whatever goes wrong is a failed check, but for what the check itself skips."""
    begin = time.perf_counter()

    def made(outcome: Outcome, reason: str, evidence: Evidence) -> Record:
        took = round(time.perf_counter() - begin, 2)
        return Record(check.name, check.claim, outcome, _harmless(reason), evidence, took)

    try:
        return made("passed", "", check.run())
    except FailedError as error:
        return made("failed", str(error), error.evidence)
    except SkippedError as error:
        return made("skipped", str(error), {})
    except AcmixError as error:
        return made("failed", str(error), {})


def skip(check: Check, reason: str) -> Record:
    """A check that was not tried."""
    return Record(check.name, check.claim, "skipped", reason)


def now() -> str:
    """This moment, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write(report: Report, file: Path) -> None:
    """Save a report; the file appears whole."""
    write_whole(file, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def read(file: Path) -> Report:
    """A saved report; UsageError for what is none."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(f"{file} is no selftest: {error}\nGive a file that `acmix selftest` wrote.") from error


def counts(records: Sequence[Record]) -> dict[Outcome, int]:
    """How many of each outcome."""
    outcomes: tuple[Outcome, ...] = ("passed", "failed", "skipped")
    return {outcome: sum(record.outcome == outcome for record in records) for outcome in outcomes}


def _harmless(text: str) -> str:
    return "; ".join(printable(line) for line in text.splitlines() if line)
