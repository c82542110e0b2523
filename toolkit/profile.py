"""Latency on this host: every artifact in its own process, interleaved run by run, raw samples kept."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acmix.toolkit import machine
from acmix.toolkit.artifact import Artifact, check_digests, executed_by
from acmix.toolkit.errors import UsageError
from acmix.toolkit.execute import Interface, file_inputs
from acmix.toolkit.samples import Probes
from acmix.toolkit.session import Answer, Session, SessionRequest, open_session

WARM_UP_RUNS = 10
WARM_UP_S = 0.3
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ProfileRequest:
    """How to measure. At least `runs` runs and at least `seconds` of them, for each artifact."""

    threads: int = 1
    runs: int = 50
    seconds: float = 1.0


@dataclass(frozen=True)
class Conditions:
    """Where a measurement was taken."""

    threads: int
    cpus: tuple[int, ...]
    governor: str
    machine: dict[str, str]


@dataclass(frozen=True)
class Timings:
    """One artifact's raw samples in nanoseconds; statistics are computed from them when asked.

    load_ns: imports not counted. first_run_ns: the first inference after loading. warm_up_ns: the runs that
    were thrown away. peak_memory_mb: of the whole process, its Python and runtime included.
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

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latency."""
        return float(np.percentile(np.asarray(self.latency_ns), percent)) / 1e6

    @property
    def mean_ms(self) -> float:
        return float(np.mean(self.latency_ns)) / 1e6

    @property
    def variation(self) -> float:
        """Standard deviation over mean."""
        return float(np.std(self.latency_ns) / np.mean(self.latency_ns))


@dataclass(frozen=True)
class Measurement:
    """What `acmix profile` measured: all artifacts of one interleaved run, and the conditions."""

    timings: tuple[Timings, ...]
    conditions: Conditions
    schema_version: int = SCHEMA_VERSION


def profile(
    artifacts: Sequence[Artifact], request: ProfileRequest, log: Path, report: Callable[[str], None]
) -> Measurement:
    """Measure artifacts on this host.

    Raises UsageError for one that cannot run here or was changed, GateError when a runtime fails.
    """
    cpus = _pinned(request.threads)
    for artifact in artifacts:
        check_digests(artifact)
        by, reason = executed_by(artifact)
        if by != "runtime":
            raise UsageError(f"{artifact.name} cannot be profiled on this host: {reason}")
    with contextlib.ExitStack() as stack:
        benches = [
            _Bench(artifact, stack.enter_context(_open(artifact, request, cpus, log)), report) for artifact in artifacts
        ]
        report("measuring")
        _interleave(benches, request)
        timings = tuple(bench.timings() for bench in benches)
    conditions = Conditions(request.threads, cpus, machine.governor(cpus[0]), machine.describe())
    return Measurement(timings, conditions)


def interface_of(artifact: Artifact) -> Interface:
    """How an artifact's samples are fed and read."""
    m = artifact.manifest
    return Interface(m.inputs, m.outputs, m.file_inputs, m.file_outputs, m.preprocess)


def _pinned(threads: int) -> tuple[int, ...]:
    usable = machine.usable_cpus()
    if not 1 <= threads <= len(usable):
        raise UsageError(f"--threads {threads}: this host has {len(usable)} usable processors.")
    return usable[-threads:]


def _open(
    artifact: Artifact, request: ProfileRequest, cpus: tuple[int, ...], log: Path
) -> contextlib.AbstractContextManager[Session]:
    file = str(artifact.model_file)
    return open_session(SessionRequest(artifact.manifest.target.name, file, request.threads, cpus), log)


class _Bench:
    """One artifact under measurement: loaded and warm once constructed."""

    def __init__(self, artifact: Artifact, session: Session, report: Callable[[str], None]) -> None:
        report(f"loading {artifact.name}")
        self.artifact = artifact
        self.session = session
        probes = Probes(artifact.manifest.inputs)
        noise = dict(zip(probes.identifiers, probes, strict=True))["noise"]
        self.load_ns = session.load().latency_ns[0]
        first, _ = session.run_timed(file_inputs(noise, interface_of(artifact)))
        self.first_run_ns = first.latency_ns[0]
        self.warm_up_ns = self._warm_up()
        self.latency_ns: list[int] = []
        self.last: Answer = first

    def _warm_up(self) -> tuple[int, ...]:
        samples: list[int] = []
        while len(samples) < WARM_UP_RUNS or sum(samples) < WARM_UP_S * 1e9:
            samples += self.session.time(1).latency_ns
        return tuple(samples)

    def run_once(self) -> None:
        self.last = self.session.time(1)
        self.latency_ns += self.last.latency_ns

    def enough(self, request: ProfileRequest) -> bool:
        return len(self.latency_ns) >= request.runs and sum(self.latency_ns) >= request.seconds * 1e9

    def timings(self) -> Timings:
        manifest = self.artifact.manifest
        return Timings(
            self.artifact.name,
            manifest.target.name,
            manifest.recipe.name,
            manifest.files[0].sha256,
            self.load_ns,
            self.first_run_ns,
            self.warm_up_ns,
            tuple(self.latency_ns),
            round(self.last.peak_memory_mb, 1),
        )


def _interleave(benches: Sequence[_Bench], request: ProfileRequest) -> None:
    """A B B A, so that drift of the machine hits all alike, until the slowest to gather has enough."""
    order = list(benches)
    while not all(bench.enough(request) for bench in benches):
        for bench in order:
            bench.run_once()
        order.reverse()


def summaries(measurement: Measurement) -> list[dict[str, float | str]]:
    """Percentiles of every artifact, computed from its raw samples; the ratio is of medians, to the first."""
    base = measurement.timings[0].percentile_ms(50)
    return [
        {
            "artifact": t.artifact,
            "runs": len(t.latency_ns),
            **{f"p{p}_ms": t.percentile_ms(p) for p in (50, 90, 99)},
            "mean_ms": t.mean_ms,
            "ratio": t.percentile_ms(50) / base,
        }
        for t in measurement.timings
    ]


def save(measurement: Measurement, folder: Path) -> Path:
    """Write the raw samples beside the artifacts, under the time of the measurement."""
    import msgspec

    file = folder / f"profile-{time.strftime('%Y%m%d-%H%M%S')}.json"
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as partial:
        partial.write(msgspec.json.encode(measurement) + b"\n")
    Path(partial.name).chmod(0o644)
    return Path(partial.name).rename(file)
