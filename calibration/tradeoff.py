"""The trade-off of a mixed export: every rung that was tried, what it keeps and costs; as JSON, as a picture."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from acmix.toolkit.errors import AcmixError, UsageError
from acmix.toolkit.ranges import Observer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch.export import ExportedProgram

    from acmix.toolkit.quantized import Calibrated

SCHEMA_VERSION = 2
SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Latency:
    """One file on this host, one thread: the median of its runs, and its ratio to the float file with 95 % interval."""

    p50_ms: float
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    runs: int


@dataclass(frozen=True)
class Rung:
    """One way to quantize, measured on the evaluation photos with its integers simulated.

    top1: share that is right, None without labels. agreement: share whose class is that of the float program.
    drop_points: what the budget is compared with, in points (percent of the photos). snr_db: None for outputs of zeros.
    size_mb: of the constants, 10 ** 6 bytes. kept: modules in float. seconds: to calibrate and to measure.
    latency: None where it was not measured, and latency_reason says why. steady_db: what it keeps of itself under other
    float arithmetic; None for a rung beyond the budget.
    """

    name: str
    observer: Observer
    equalize: bool
    correct_bias: bool
    kept: tuple[str, ...]
    top1: float | None
    agreement: float
    drop_points: float
    snr_db: float | None
    size_mb: float
    int8_macs_share: float
    seconds: float
    latency: Latency | None = None
    latency_reason: str = ""
    steady_db: float | None = None


@dataclass(frozen=True)
class Tradeoff:
    """The ladder that was climbed. chosen: position of the rung that was taken, None where none meets the budget.

    float_top1: of the float program, None without labels: then agreement with it is what drops.
    float_latency: of the float file on `latency_target`, whose files were timed; None and '' where none was.
    """

    max_drop: float
    photos_name: str
    photos_count: int
    photos_digest: str
    float_top1: float | None
    float_size_mb: float
    rungs: tuple[Rung, ...]
    chosen: int | None
    float_latency: Latency | None = None
    latency_target: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def measure(self) -> str:
        """What drops, in words."""
        return "top-1" if self.float_top1 is not None else "agreement with the float network"

    @property
    def best(self) -> Rung:
        """The chosen rung, or the one that drops least."""
        return self.rungs[self.chosen] if self.chosen is not None else min(self.rungs, key=lambda r: r.drop_points)


SAME_OPERATORS = "not measured: the operators of {name!r}, with other constants"


class Timer(Protocol):
    """Times files on this host; acmix.calibration.rung_latency has the one there is."""

    @property
    def obstacle(self) -> str:
        """Why nothing can be timed here; '' where it can."""

    @property
    def target_name(self) -> str: ...

    def __call__(
        self, program: ExportedProgram, rungs: Sequence[Calibrated], asked: Sequence[str] = ()
    ) -> tuple[Latency, ...]:
        """The latency of the float program, then of each rung. asked: nodes that are float in any case."""


def timed(
    tradeoff: Tradeoff, program: ExportedProgram, tried: Sequence[Calibrated], timer: Timer, asked: Sequence[str]
) -> Tradeoff:
    """The trade-off with the latency of every rung whose float modules no earlier one has.

    Rungs that differ in ranges and weights alone are files of the same operators: one of them is measured, the chosen
    one if it is among them. tried: the programs of the rungs.
    """
    if timer.obstacle:
        rungs = tuple(replace(rung, latency_reason=timer.obstacle) for rung in tradeoff.rungs)
        return replace(tradeoff, rungs=rungs)
    first = {rung.kept: i for i, rung in reversed(list(enumerate(tradeoff.rungs)))}
    if tradeoff.chosen is not None:
        first[tradeoff.rungs[tradeoff.chosen].kept] = tradeoff.chosen
    measured = sorted(first.values())
    try:
        base, *others = timer(program, [tried[i] for i in measured], asked)
    except AcmixError as error:
        # The ladder stands without it; a target that fails here fails again, and tells, when it is exported.
        reason = f"not measured: {str(error).splitlines()[0]}"
        return replace(tradeoff, rungs=tuple(replace(rung, latency_reason=reason) for rung in tradeoff.rungs))
    known = dict(zip(measured, others, strict=True))
    rungs = tuple(
        replace(rung, latency=known[i])
        if i in known
        else replace(rung, latency_reason=SAME_OPERATORS.format(name=tradeoff.rungs[first[rung.kept]].name))
        for i, rung in enumerate(tradeoff.rungs)
    )
    return replace(tradeoff, rungs=rungs, float_latency=base, latency_target=timer.target_name)


def encoded(tradeoff: Tradeoff) -> bytes:
    """tradeoff.json."""
    return msgspec.json.format(msgspec.json.encode(tradeoff), indent=1) + b"\n"


def digest(tradeoff: Tradeoff) -> str:
    """sha256 of tradeoff.json."""
    return hashlib.sha256(encoded(tradeoff)).hexdigest()


def file_name(tradeoff: Tradeoff) -> str:
    """tradeoff-<8 digits of its sha256>.json: what a manifest cites is never overwritten by another ladder."""
    return f"tradeoff-{digest(tradeoff)[:8]}.json"


def write(file: Path, tradeoff: Tradeoff) -> None:
    """Write tradeoff.json, whole or not at all."""
    with whole(file) as part:
        part.write_bytes(encoded(tradeoff))


@contextlib.contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A hidden file beside `file`, with its suffix, which takes its name when everything is written."""
    part = file.with_name(f".{file.name}")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def read_tradeoff(file: Path) -> Tradeoff:
    """Read a tradeoff.json; raises UsageError for anything else."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Tradeoff)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{file} is no tradeoff.json: {error}\nGive one that acmix-export wrote.") from error
    if found.schema_version != SCHEMA_VERSION:
        raise UsageError(f"{file} has schema version {found.schema_version}; this acmix reads {SCHEMA_VERSION}.")
    return found


def require_picture(file: Path, flag: str) -> None:
    """Raise UsageError where a picture cannot be drawn: before the work, not after it."""
    if file.suffix not in SUFFIXES:
        raise UsageError(f"{flag} {file} has no known suffix.\nDraw to {', '.join(SUFFIXES)}.")
    if not can_draw():
        raise UsageError(f"{flag} needs matplotlib, which is not installed.\nInstall it: pip install matplotlib")
    if not file.parent.is_dir():
        raise UsageError(f"{flag} {file} cannot be written: there is no folder {file.parent}.\nMake it first.")


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def draw(file: Path, tradeoff: Tradeoff) -> None:
    """Draw every rung in its order: what it drops above, its size, share of int8 and latency below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rungs = tradeoff.rungs
    places = range(len(rungs))
    # A figure of its own: pyplot keeps figures and asks for a display.
    figure = Figure(figsize=(max(6.4, 0.9 * len(rungs) + 2.4), 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below, last = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 2])
    colours = ["tab:green" if i == tradeoff.chosen else "tab:blue" for i in places]
    drops = [rung.drop_points for rung in rungs]
    bars = above.bar(places, drops, color=colours, width=0.6)
    above.bar_label(bars, [f"{drop:.1f}" for drop in drops], padding=2, fontsize="small")
    above.axhline(tradeoff.max_drop, color="tab:red", linestyle="--", label=f"--max-drop {tradeoff.max_drop:g}")
    above.axhline(0.0, color="black", linewidth=0.8)
    # The budget must be seen beside a collapse of ninety points.
    above.set_yscale("symlog", linthresh=max(1.0, 2.0 * math.ceil(tradeoff.max_drop)))
    above.yaxis.set_major_formatter("{x:g}")
    above.margins(y=0.15)
    above.set_ylabel(f"drop of {'top-1' if tradeoff.float_top1 is not None else 'agreement'} in points")
    above.set_title(f"{tradeoff.photos_count} photos of {tradeoff.photos_name}; green: taken", fontsize="medium")
    above.legend(loc="best", fontsize="small")
    below.plot(places, [rung.size_mb for rung in rungs], "o-", color="tab:gray", label="size in MB")
    below.axhline(tradeoff.float_size_mb, color="tab:gray", linestyle=":", label="size in float32")
    below.set_ylim(bottom=0)
    below.set_ylabel("size in MB")
    shares = below.twinx()
    shares.plot(places, [100 * rung.int8_macs_share for rung in rungs], "s-", color="tab:orange", label="int8 MACs")
    shares.set_ylim(0, 105)
    shares.set_ylabel("int8 multiply-accumulates in %", color="tab:orange")
    below.legend(loc="center left", fontsize="small")
    _draw_latencies(last, tradeoff)
    last.set_xticks(list(places), [rung.name for rung in rungs], rotation=30, ha="right", fontsize="small")
    with whole(file) as part:
        figure.savefig(part, dpi=120, metadata={})


def _draw_latencies(axes: Axes, tradeoff: Tradeoff) -> None:
    """The measured rungs as points; a rung without a point was not measured."""
    base, found = tradeoff.float_latency, [(i, r.latency) for i, r in enumerate(tradeoff.rungs) if r.latency]
    if base is None:
        reason = tradeoff.rungs[0].latency_reason if tradeoff.rungs else ""
        axes.text(0.5, 0.5, reason or "latency was not measured", ha="center", va="center", transform=axes.transAxes)
        axes.set_yticks([])
        return
    axes.plot([i for i, _ in found], [one.p50_ms for _, one in found], "D", color="tab:purple", label="measured")
    for i, one in found:
        axes.annotate(f"{one.p50_ms:.2f}", (i, one.p50_ms), (0, 6), textcoords="offset points", ha="center", size=8)
    axes.axhline(base.p50_ms, color="tab:purple", linestyle=":", label=f"float32, {base.p50_ms:.2f} ms")
    axes.set_ylim(0, 1.3 * max(base.p50_ms, *(one.p50_ms for _, one in found)))
    axes.set_ylabel(f"ms, {tradeoff.latency_target},\nthis host")
    axes.legend(loc="lower right", fontsize="small")
