"""Latency as users feel it: over photos, not one input again and again; adaptive and single models interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from acmix.toolkit import machine
from acmix.toolkit.adaptive.engine import Trace
from acmix.toolkit.adaptive.photos import Photos
from acmix.toolkit.adaptive.runner import Loaded
from acmix.toolkit.errors import UsageError
from acmix.toolkit.target import Array

SCHEMA_VERSION = 1
WARM_UP_PHOTOS = 5


@dataclass(frozen=True)
class PhotoTimings:
    """One model's raw times in nanoseconds, one entry a photo and round; statistics are computed when asked.

    From the decoded photo to the answer: host steps, networks, exit tests.  exits: the stage that answered, from 0.
    macs: of the networks that ran, mean over photos; a proxy for energy.
    """

    artifact: str
    stages: tuple[str, ...]
    latency_ns: tuple[int, ...]
    network_ns: tuple[int, ...]
    exit_test_ns: tuple[int, ...]
    exits: tuple[int, ...]
    labels: tuple[int, ...]
    mean_macs: float

    @property
    def mean_ms(self) -> float:
        return float(np.mean(self.latency_ns)) / 1e6

    @property
    def mean_network_ms(self) -> float:
        """Of the networks alone."""
        return float(np.mean(self.network_ns)) / 1e6

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latency over photos."""
        return float(np.percentile(np.asarray(self.latency_ns), percent)) / 1e6

    @property
    def exit_rates(self) -> tuple[float, ...]:
        """The share of photos that ended at each stage."""
        return tuple(self.exits.count(stage) / len(self.exits) for stage in range(len(self.stages)))

    def accuracy(self, truth: Sequence[int]) -> float:
        """The share of photos whose first answer is right."""
        return float(np.mean(np.asarray(self.labels[: len(truth)]) == np.asarray(truth)))


@dataclass(frozen=True)
class PhotoMeasurement:
    """All models of one interleaved run over photos."""

    timings: tuple[PhotoTimings, ...]
    samples: str
    digest: str
    photos: int
    rounds: int
    machine: dict[str, str]
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Contender:
    """A loaded model, and its multiply-accumulates up to each exit."""

    loaded: Loaded
    exit_macs: tuple[int, ...]


def measure(
    contenders: Sequence[Contender], photos: Photos, rounds: int = 1, advance: Callable[[int], None] | None = None
) -> PhotoMeasurement:
    """Run every model on every photo, model by model in turning order, so that drift of the machine hits all alike.

    Raises UsageError for a model that only a reference evaluator runs here: it has no latency.
    """
    for contender in contenders:
        if contender.loaded.reference:
            raise UsageError(f"{contender.loaded.name} has no runtime on this host, and so no latency.")
    traces: list[list[Trace]] = [[] for _ in contenders]
    order = list(range(len(contenders)))
    _warm_up(contenders, photos)
    for done, photo in enumerate((photo for _ in range(rounds) for photo in photos), 1):
        for number in order:
            traces[number].append(contenders[number].loaded(photo))
        order.reverse()
        if advance is not None:
            advance(done)
    timings = tuple(_timings(contender, run) for contender, run in zip(contenders, traces, strict=True))
    return PhotoMeasurement(timings, photos.name, photos.digest, len(photos), rounds, machine.describe())


def _warm_up(contenders: Sequence[Contender], photos: Iterable[Array]) -> None:
    for _, photo in zip(range(WARM_UP_PHOTOS), photos, strict=False):
        for contender in contenders:
            contender.loaded.every_stage(photo)


def _timings(contender: Contender, traces: Sequence[Trace]) -> PhotoTimings:
    ends = tuple(trace.exit for trace in traces)
    return PhotoTimings(
        contender.loaded.name,
        tuple(stage.name for stage in contender.loaded.engine.stages),
        tuple(trace.total_ns for trace in traces),
        tuple(sum(stage.time.network_ns for stage in trace.stages) for trace in traces),
        tuple(stage.time.exit_ns for trace in traces for stage in trace.stages),
        ends,
        tuple(trace.label for trace in traces),
        float(np.mean([contender.exit_macs[end] for end in ends])),
    )


def photo_summaries(measurement: PhotoMeasurement) -> list[dict[str, float | str | list[float]]]:
    """What the table shows, computed from the raw times; ratios are of means, to the first model."""
    base = measurement.timings[0]
    return [
        {
            "artifact": t.artifact,
            "photos": len(t.latency_ns),
            "mean_ms": t.mean_ms,
            **{f"p{p}_ms": t.percentile_ms(p) for p in (50, 90, 99)},
            "ratio": t.mean_ms / base.mean_ms,
            "network_ms": t.mean_network_ms,
            "network_ratio": t.mean_network_ms / base.mean_network_ms,
            "exit_test_us": float(np.median(t.exit_test_ns)) / 1e3,
            "mean_mmac": t.mean_macs / 1e6,
            "exit_rates": list(t.exit_rates),
        }
        for t in measurement.timings
    ]
