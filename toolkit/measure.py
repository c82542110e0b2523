"""Measuring artifacts side by side: load, first run, warm-up to a steady state, then interleaved runs.

Nothing here knows what reaches the device: a lane may be a child process or a runner on a phone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from acmix.toolkit.conditions import State
from acmix.toolkit.errors import GateError
from acmix.toolkit.journal import Journal, Record, Sample, Stage
from acmix.toolkit.steady import Warmth

SAMPLE_STATE_S = 1.0
"""The state is read between two runs, never beside one, at most so often."""
INTERRUPTED = "it was interrupted"
"""Why a measurement ended that its user stopped."""

Preset = Literal["rapid", "quick", "normal"]


@dataclass(frozen=True)
class Plan:
    """At least `runs` runs and at least `seconds` of them, for each artifact, after at most so long a warm-up.

    processes: over so many restarts of all artifacts, so that the luck of one process's memory can be told apart.
    """

    runs: int
    seconds: float
    processes: int = 1
    warm_up_limit_s: float = 15.0

    @property
    def share(self) -> Plan:
        """What each of its processes does."""
        return Plan(-(-self.runs // self.processes), self.seconds / self.processes, 1, self.warm_up_limit_s)


PRESETS: dict[Preset, Plan] = {"rapid": Plan(64, 6.0, 3), "quick": Plan(128, 10.0, 5), "normal": Plan(1024, 60.0, 10)}
"""Lengths as MLPerf's mobile benchmarks have them: for development, for a look, for publication."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happened beside the runs: readings of the state, a start of all processes, which warm-ups got steady."""

    before: State | None = None
    during: State | None = None
    after: State | None = None
    steady: tuple[bool, ...] = ()
    restarted: bool = False


@dataclass(frozen=True)
class Timed:
    """One thing that a lane did: nanoseconds, and the peak memory of its process so far."""

    ns: int
    peak_memory_mb: float = 0.0


class Lane(Protocol):
    """One artifact under measurement. Every call raises GateError when its runtime or device fails."""

    def load(self) -> Timed: ...
    def run(self) -> Timed:
        """One inference; only the runtime's own time counts, not the way to it."""


class Recorder:
    """Record of all lanes, in memory and in the journal."""

    def __init__(self, lanes: int, journal: Journal | None = None) -> None:
        self.lanes = [Record() for _ in range(lanes)]
        self.before: State | None = None
        self.during: list[State] = []
        self.after: State | None = None
        self.journal = journal

    def add(self, lane: int, stage: Stage, run: Timed) -> None:
        """Remember first: an interruption between the two must not leave the result behind the journal."""
        sample = Sample(lane, stage, run.ns, run.peak_memory_mb)
        self.remember(sample)
        if self.journal:
            self.journal.write(sample)

    def remember(self, sample: Sample) -> None:
        """A sample as it comes from a run or out of a journal."""
        samples = self.lanes[sample.lane]
        samples.taken[sample.stage].append(sample.ns)
        samples.peak_memory_mb = max(samples.peak_memory_mb, sample.peak_memory_mb)

    @property
    def has_samples(self) -> bool:
        """Whether anything was taken that is worth keeping."""
        return any(samples.taken["warm_up"] for samples in self.lanes)

    def note(self, event: Event) -> None:
        """A reading of the state, or which lanes got steady; the journal's own lines come back the same way."""
        self.before = self.before or event.before
        self.after = event.after or self.after
        if event.restarted:
            for samples in self.lanes:
                samples.process_starts.append(len(samples.taken["latency"]))
        if event.during:
            self.during.append(event.during)
        for samples, steady in zip(self.lanes, event.steady, strict=False):
            # One process that stayed restless is enough.
            samples.is_steady = steady and (samples.is_steady or len(samples.process_starts) == 1)
        if self.journal:
            self.journal.write(event)


@dataclass(frozen=True)
class Watch:
    """Reads the device's state between runs (True: thoroughly) and says what is going on."""

    read_state: Callable[[bool], State]
    report: Callable[[str], None]


def measure(lanes: Sequence[Lane], plan: Plan, recorder: Recorder, watch: Watch) -> None:
    """Measure all lanes, freshly started, into the recorder. Call it inside `keep`."""
    recorder.note(Event(restarted=True))
    _load(lanes, recorder, watch)
    _warm_up(lanes, plan, recorder, watch)
    _interleave(lanes, plan, recorder, watch)


def keep(recorder: Recorder, work: Callable[[], None]) -> str:
    """Do the work that fills a recorder; '' when all was taken, otherwise why it ended.

    A runtime that fails and an interruption end the measurement, not the program: what was taken is kept.  Where
    nothing was, both are raised: a file that does not load is no measurement.
    """
    try:
        work()
    except GateError as error:
        if not recorder.has_samples:
            raise
        return f"a runtime failed: {str(error).splitlines()[0]}"
    except BaseException as error:
        # An interruption is whatever the program makes of its signals; a defect of ours keeps its traceback.
        if isinstance(error, (Exception, SystemExit, GeneratorExit)) or not recorder.has_samples:
            raise
        return INTERRUPTED
    return ""


def _load(lanes: Sequence[Lane], recorder: Recorder, watch: Watch) -> None:
    for place, lane in enumerate(lanes):
        watch.report(f"loading {place + 1} of {len(lanes)}")
        recorder.add(place, "load", lane.load())
        recorder.add(place, "first_run", lane.run())


def _mirrored(lanes: Sequence[Lane], forward: bool) -> Sequence[tuple[int, Lane]]:
    """A B, then B A: drift of the machine hits all alike, and each follows itself as often as another."""
    order = list(enumerate(lanes))
    return order if forward else order[::-1]


def _warm_up(lanes: Sequence[Lane], plan: Plan, recorder: Recorder, watch: Watch) -> None:
    """Interleaved like the runs that count: alone, each would get used to caches that it will have to share."""
    watch.report("warming up")
    warmth = [Warmth() for _ in lanes]
    forward, begin = True, time.monotonic()
    # By the clock: of a network that takes microseconds, most of the time goes into asking for the next run.
    while not all(w.is_steady or w.gave_up(time.monotonic() - begin, plan.warm_up_limit_s) for w in warmth):
        for place, lane in _mirrored(lanes, forward):
            run = lane.run()
            recorder.add(place, "warm_up", run)
            warmth[place].add(run.ns)
        forward = not forward
    recorder.note(Event(steady=tuple(w.is_steady for w in warmth)))


def _interleave(lanes: Sequence[Lane], plan: Plan, recorder: Recorder, watch: Watch) -> None:
    """Whole mirrored rounds until the slowest to gather has enough; the state is read between rounds."""
    watch.report("measuring")
    recorder.note(Event(before=watch.read_state(True)))
    totals, runs = [0] * len(lanes), 0
    read_at = time.monotonic()
    while runs < plan.runs or min(totals) < plan.seconds * 1e9:
        for forward in (True, False):
            for place, lane in _mirrored(lanes, forward):
                run = lane.run()
                recorder.add(place, "latency", run)
                totals[place] += run.ns
        runs += 2
        if time.monotonic() - read_at > SAMPLE_STATE_S:
            recorder.note(Event(during=watch.read_state(False)))
            share = min(runs / plan.runs, min(totals) / (plan.seconds * 1e9) if plan.seconds else 1.0)
            watch.report(f"measuring, {share:.0%}")
            read_at = time.monotonic()
