"""Where the time of saved files goes: operators with their times and modules, and what is computed from them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from acmix.toolkit.device import HOST_NAME
from acmix.toolkit.whole import write_whole

SCHEMA_VERSION = 1
UNMAPPED = "(unmapped)"
UNACCOUNTED = "(outside the operators)"


Places = npt.NDArray[np.int64]


def faster_half(samples_ns: Sequence[int]) -> Places:
    """The places of the faster half of some runs, at least one."""
    return np.argsort(np.asarray(samples_ns), kind="stable")[: max(1, len(samples_ns) // 2)]


def half_ms(samples_ns: Sequence[int]) -> float:
    """Mean of the faster half of some runs."""
    return float(np.asarray(samples_ns)[faster_half(samples_ns)].mean()) / 1e6


@dataclass(frozen=True)
class OperatorTime:
    """One operator as the runtime executes it.

    operator: the file's name of its result, '' where the runtime does not tell; kind: the runtime's name.
    module: path in the prepared network, '' for the network itself, None where nobody can tell; source: file:line.
    delegate: what executes it; delegated: None where that is not known.  times_ns: one a profiled run.
    """

    operator: str
    kind: str
    module: str | None
    source: str
    delegate: str
    delegated: bool | None
    times_ns: tuple[int, ...]

    @property
    def label(self) -> str:
        """The module's row in a table."""
        return UNMAPPED if self.module is None else self.module or "(the network itself)"


@dataclass(frozen=True)
class Floor:
    """One large 1 x 1 convolution in float32 on the same runtime, interleaved with the runs: what it could reach."""

    macs: int
    latency_ns: tuple[int, ...]

    @property
    def gmacs_per_s(self) -> float:
        """Billions of multiply-accumulates a second."""
        return self.macs / half_ms(self.latency_ns) / 1e6


@dataclass(frozen=True)
class LayerTimes:
    """One artifact. All samples are raw, in nanoseconds; run i of `profiled_ns` is place i of every operator.

    plain_ns: the same file without a profiler, in a process of its own, interleaved with the profiled one.
    placed: operators of the file by its manifest.  macs: their multiply-accumulates.  measured_by: which profiler.
    """

    artifact: str
    target: str
    precision: str
    file_sha256: str
    operators: tuple[OperatorTime, ...]
    profiled_ns: tuple[int, ...]
    plain_ns: tuple[int, ...]
    placed: int
    macs: int
    measured_by: str
    floor: Floor | None = None

    @property
    def kept(self) -> Places:
        """The faster half of the profiled runs: what the machine did beside the others is in no operator's time.

        Means over the same runs add up, which medians of each operator do not.
        """
        return faster_half(self.profiled_ns)

    @property
    def profiled_ms(self) -> float:
        """Mean of the kept profiled runs."""
        return float(np.asarray(self.profiled_ns)[self.kept].mean()) / 1e6

    @property
    def plain_ms(self) -> float:
        """Mean of the faster half of the runs without a profiler."""
        return half_ms(self.plain_ns)

    @property
    def slowdown(self) -> float:
        """What profiling costs: profiled over plain."""
        return self.profiled_ms / self.plain_ms

    def ms(self, operators: Sequence[OperatorTime]) -> float:
        """Mean of the operators' sum over the kept runs."""
        kept = self.kept
        return sum(float(np.asarray(one.times_ns)[kept].mean()) for one in operators) / 1e6

    @property
    def unaccounted_ms(self) -> float:
        """What no operator accounts for in the kept runs; negative where clocks round up."""
        return self.profiled_ms - self.ms(self.operators)

    @property
    def outside_share(self) -> float | None:
        """Of the operators' time, the share outside the delegate; None where somebody's place is unknown."""
        if any(one.delegated is None for one in self.operators):
            return None
        outside = [one for one in self.operators if not one.delegated]
        total = self.ms(self.operators)
        return self.ms(outside) / total if total else 0.0

    @property
    def times_floor(self) -> float | None:
        """The plain latency over what its multiply-accumulates would take at the floor's rate."""
        if self.floor is None or not self.macs:
            return None
        return self.plain_ms / (self.macs / self.floor.gmacs_per_s / 1e6)

    def by_module(self) -> dict[str, tuple[OperatorTime, ...]]:
        """The operators of each module in order of execution, those of no known module as '(unmapped)'."""
        found: dict[str, list[OperatorTime]] = {}
        for one in self.operators:
            found.setdefault(one.label, []).append(one)
        return {label: tuple(some) for label, some in found.items()}


@dataclass(frozen=True)
class LayerReport:
    """Several artifacts of one network, interleaved. remarks: what a reader must know.

    emulation: the evidence that the device is no real one; its times are then never shown as milliseconds.
    """

    model: str
    layers: tuple[LayerTimes, ...]
    threads: int
    cpus: tuple[int, ...]
    machine: dict[str, str]
    remarks: tuple[str, ...] = ()
    device: str = HOST_NAME
    emulation: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def is_emulated(self) -> bool:
        """Whether its milliseconds must not be shown."""
        return bool(self.emulation)


@dataclass(frozen=True)
class Row:
    """One module side by side: of each artifact its time and its share of a profiled run, None where it has none of it.

    ms: None everywhere for an emulated device, whose milliseconds are not those of a real one.
    """

    module: str
    source: str
    ms: tuple[float | None, ...]
    shares: tuple[float | None, ...]

    @property
    def share(self) -> float:
        """The largest of its shares."""
        return max(share or 0.0 for share in self.shares)


def rows(report: LayerReport) -> list[Row]:
    """Every module, the one with the largest share first; then unmapped time, then what no operator accounts for."""
    modules = [one.by_module() for one in report.layers]
    labels = dict.fromkeys(label for found in modules for label in found)
    made = [_row(report, label, [found.get(label, ()) for found in modules]) for label in labels if label != UNMAPPED]
    made.sort(key=lambda row: -row.share)
    if UNMAPPED in labels:
        made.append(_row(report, UNMAPPED, [found.get(UNMAPPED, ()) for found in modules]))
    rest = tuple(one.unaccounted_ms for one in report.layers)
    return [*made, _made(report, UNACCOUNTED, "", rest)]


def sum_of(some: Sequence[Row], module: str) -> Row:
    """Several rows as one of another name."""
    ms, shares = (tuple(_sum(values) for values in zip(*each, strict=True)) for each in _columns(some))
    return Row(module, "", ms, shares)


def _columns(some: Sequence[Row]) -> tuple[list[tuple[float | None, ...]], list[tuple[float | None, ...]]]:
    return [row.ms for row in some], [row.shares for row in some]


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _row(report: LayerReport, label: str, operators: Sequence[Sequence[OperatorTime]]) -> Row:
    pairs = zip(report.layers, operators, strict=True)
    ms = tuple(one.ms(some) if some else None for one, some in pairs)
    source = next((one.source for some in operators for one in some if one.source), "")
    return _made(report, label, source if label != UNMAPPED else "", ms)


def _made(report: LayerReport, module: str, source: str, ms: tuple[float | None, ...]) -> Row:
    pairs = zip(report.layers, ms, strict=True)
    shares = tuple(None if value is None else value / one.profiled_ms for one, value in pairs)
    return Row(module, source, (None,) * len(ms) if report.is_emulated else ms, shares)


def save(report: LayerReport, folder: Path) -> Path:
    """Write the raw samples into a folder, under the time of the measurement and the device; whole or not."""
    where = "" if report.device == HOST_NAME else f"-{report.device}"
    file = folder / f"layers-{time.strftime('%Y%m%d-%H%M%S')}{where}.json"
    return write_whole(file, msgspec.json.encode(report) + b"\n")
