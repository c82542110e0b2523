"""A measurement: raw samples, conditions and verdict, as a file and as numbers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from acmix.toolkit.conditions import Conditions
from acmix.toolkit.errors import UsageError
from acmix.toolkit.journal import SUFFIX, Journal, Sample, lines_of
from acmix.toolkit.measure import Event, Plan, Recorder
from acmix.toolkit.ratio import Ratio, paired_ratio
from acmix.toolkit.verdict import Judgement, Shape, judge
from acmix.toolkit.whole import write_whole

SCHEMA_VERSION = 2
HOST_DIED = "the measuring process ended before it was done"
AGAIN = "Measure again, or use the acmix that wrote it."


@dataclass(frozen=True)
class Timings:
    """One artifact's raw samples in nanoseconds; statistics are computed from them when asked.

    load_ns: imports not counted. first_run_ns: the first inference after loading; both of the first process.
    warm_up_ns: the runs before the steady state. process_starts: places in latency_ns where a new process began.
    emulated: these are no latency of a real device. instructions: of some inferences there, where they were counted.
    peak_memory_mb: of the whole process, its Python and runtime included.
    """

    artifact: str
    target: str
    precision: str
    file_sha256: str
    load_ns: int
    first_run_ns: int
    warm_up_ns: tuple[int, ...]
    latency_ns: tuple[int, ...]
    peak_memory_mb: float
    is_steady: bool = True
    emulated: bool = False
    process_starts: tuple[int, ...] = (0,)
    instructions: tuple[int, ...] = ()

    @property
    def median_instructions(self) -> int | None:
        """Of an inference; None where nobody counted."""
        return int(np.median(self.instructions)) if self.instructions else None

    @property
    def processes(self) -> tuple[tuple[int, ...], ...]:
        """The latencies of each process."""
        ends = (*self.process_starts[1:], len(self.latency_ns))
        return tuple(self.latency_ns[start:end] for start, end in zip(self.process_starts, ends, strict=False))

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latency; NaN without samples."""
        if not self.latency_ns:
            return float("nan")
        return float(np.percentile(np.asarray(self.latency_ns), percent)) / 1e6

    @property
    def mean_ms(self) -> float:
        return float(np.mean(self.latency_ns)) / 1e6 if self.latency_ns else float("nan")

    @property
    def variation(self) -> float:
        """Standard deviation over mean."""
        return float(np.std(self.latency_ns) / np.mean(self.latency_ns)) if self.latency_ns else float("nan")


@dataclass(frozen=True)
class Subject:
    """What is measured: an artifact, by its name and the digest of its model file.

    instructions: of some inferences, counted before; only on an emulated device that can.
    """

    artifact: str
    target: str
    precision: str
    file_sha256: str
    instructions: tuple[int, ...] = ()


@dataclass(frozen=True)
class Header:
    """The journal's first line: everything that is known before the first sample. inputs: what the runs are fed."""

    subjects: tuple[Subject, ...]
    plan: Plan
    inputs: str
    conditions: Conditions
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Measurement:
    """What `acmix profile` measured: all artifacts of one interleaved run, the conditions, and what they are worth."""

    timings: tuple[Timings, ...]
    conditions: Conditions
    plan: Plan
    inputs: str
    judgement: Judgement
    schema_version: int = SCHEMA_VERSION

    @property
    def is_emulated(self) -> bool:
        """Whether its milliseconds must not be shown as latency."""
        return bool(self.conditions.identity.emulation)


@contextlib.contextmanager
def recorded(header: Header, file: Path | None) -> Iterator[Recorder]:
    """A recorder of all subjects. file: a new journal that takes every sample; it goes where none was taken."""
    if file is None:
        yield Recorder(len(header.subjects))
        return
    journal = Journal(file)
    recorder = Recorder(len(header.subjects), journal)
    try:
        journal.write(header)
        yield recorder
    finally:
        journal.close()
        if not recorder.has_samples:
            file.unlink()


def ratios(timings: Sequence[Timings]) -> list[Ratio | None]:
    """Each artifact's latency over the first one's, by mirrored rounds; None for the first, and without samples."""
    base = timings[0]
    found: list[Ratio | None] = [None]
    for other in timings[1:]:
        pairs = list(zip(base.processes, other.processes, strict=False))
        found.append(paired_ratio(pairs) if base.latency_ns and other.latency_ns else None)
    return found


def assemble(header: Header, recorder: Recorder, cut: str) -> Measurement:
    """The measurement of what a recorder holds. cut: why it ended early, '' when it did not."""
    conditions = replace(header.conditions, before=recorder.before, during=tuple(recorder.during), after=recorder.after)
    emulated = bool(conditions.identity.emulation)
    timings = []
    for subject, samples in zip(header.subjects, recorder.lanes, strict=True):
        taken = samples.taken
        timings.append(
            Timings(
                subject.artifact,
                subject.target,
                subject.precision,
                subject.file_sha256,
                sum(taken["load"][:1]),
                sum(taken["first_run"][:1]),
                tuple(taken["warm_up"]),
                tuple(taken["latency"]),
                round(samples.peak_memory_mb, 1),
                samples.is_steady,
                emulated,
                tuple(samples.process_starts) or (0,),
                subject.instructions,
            )
        )
    shapes = [Shape(t.artifact, t.latency_ns, t.is_steady, r) for t, r in zip(timings, ratios(timings), strict=True)]
    return Measurement(tuple(timings), conditions, header.plan, header.inputs, judge(conditions, shapes, cut))


def summaries(measurement: Measurement) -> list[dict[str, Any]]:
    """Numbers of every artifact, computed from its raw samples; the ratio is to the first, with its 95 % interval.

    An emulated device's milliseconds are not among them; its instructions are, where they were counted.
    """
    rows: list[dict[str, Any]] = []
    found = ratios(measurement.timings)
    found[0] = Ratio(1.0, None, None)
    for timing, ratio in zip(measurement.timings, found, strict=True):
        row: dict[str, Any] = {"artifact": timing.artifact, "runs": len(timing.latency_ns)}
        if measurement.is_emulated:
            counted = {"instructions": timing.median_instructions} if timing.instructions else {}
            rows.append({**row, "emulated": True, **counted})
            continue
        if timing.latency_ns:
            row |= {f"p{p}_ms": timing.percentile_ms(p) for p in (50, 90, 99)}
            row |= {"mean_ms": timing.mean_ms, "variation": timing.variation}
        if ratio is not None:
            row |= {"ratio": ratio.estimate, "ratio_low": ratio.low, "ratio_high": ratio.high}
        rows.append(row)
    return rows


def save(measurement: Measurement, folder: Path, file: Path | None = None) -> Path:
    """Write the raw samples into a folder, under the time of the measurement unless a file is named; whole or not."""
    file = file or folder / f"profile-{time.strftime('%Y%m%d-%H%M%S')}.json"
    return write_whole(file, msgspec.json.encode(measurement) + b"\n")


def read_measurement(file: Path) -> Measurement:
    """A saved measurement, or the journal of one that was cut: that one is incomplete.

    Raises UsageError for another version, and for what is neither.
    """
    try:
        if file.suffix == SUFFIX:
            return _recover(file)
        data = file.read_bytes()
        _check_version(file, data)
        measurement = msgspec.json.decode(data, type=Measurement)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{file} is no measurement: {error}\nGive a file that `acmix profile` wrote.") from error
    if not measurement.timings:
        raise UsageError(f"{file} holds no artifact.\nGive a file that `acmix profile` wrote.")
    return measurement


def _check_version(file: Path, data: bytes) -> None:
    content = msgspec.json.decode(data)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UsageError(f"{file} has schema version {version}; this acmix reads {SCHEMA_VERSION}.\n{AGAIN}")


def _recover(file: Path) -> Measurement:
    lines = lines_of(file)
    first = next(lines, None)
    if first is None:
        raise UsageError(f"{file} is empty: the measurement was cut before it began.\nMeasure again.")
    _check_version(file, first)
    header = msgspec.json.decode(first, type=Header)
    if not header.subjects:
        raise UsageError(f"{file} names no artifact.\nGive a journal that `acmix profile` wrote.")
    recorder = Recorder(len(header.subjects))
    for line in lines:
        if line.startswith(b"["):
            sample = msgspec.json.decode(line, type=Sample)
            if not 0 <= sample.lane < len(recorder.lanes):
                raise UsageError(f"{file} names artifact {sample.lane} of {len(recorder.lanes)}.\nIt was damaged.")
            recorder.remember(sample)
        else:
            recorder.note(msgspec.json.decode(line, type=Event))
    return assemble(header, recorder, HOST_DIED)
