"""`acmix profile --layers`: where the time of artifacts goes, module by module, as a table, a picture or JSON."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from acmix.apps import tables
from acmix.apps.output import console, log_file, print_json
from acmix.toolkit import machine
from acmix.toolkit.adaptive.artifact import is_adaptive
from acmix.toolkit.artifact import Artifact, open_artifact
from acmix.toolkit.device import HOST_NAME, printable
from acmix.toolkit.errors import UsageError
from acmix.toolkit.layer_times import UNACCOUNTED, UNMAPPED, LayerReport, LayerTimes, Row, rows, save, sum_of
from acmix.toolkit.profile_layers import LayersRequest, profile_layers

SHOWN, DRAWN = 20, 15
SUFFIXES = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class LayerFlags:
    """What a user asked for. threads: None takes 1, or what a device's file says."""

    runs: int
    threads: int | None
    model: str | None
    plot: Path | None


REFUSED = {
    "--seconds": "--layers counts runs: give --runs or --preset, not --seconds.",
    "--wait": "--layers has no verdict, so it waits for nothing: leave --wait out.",
    "--warm-up": "--layers warms up for 3 s at most: leave --warm-up out.",
    "--photos": "--layers repeats one input of noise: leave --photos out.",
}


def refuse(folders: Sequence[Path], given: Mapping[str, object], layers: bool) -> None:
    """Raises UsageError for what does not go with --layers, and for --plot and --model without it."""
    if not layers:
        raise UsageError("--plot and --model belong to --layers.\nWrite `acmix profile ARTIFACT... --layers`.")
    for flag, value in given.items():
        if value is not None:
            raise UsageError(REFUSED[flag])
    for folder in folders:
        if is_adaptive(folder):
            raise UsageError(
                f"{folder} is adaptive: several files, of which an easy photo runs few.\n"
                f"Profile the layers of one of its stages."
            )


def check_plot(plot: Path | None) -> None:
    """Raises UsageError where no picture could be written, before anything is measured."""
    if plot is None:
        return
    if plot.suffix not in SUFFIXES:
        raise UsageError(f"--plot {plot}: a picture ends in {', '.join(SUFFIXES)}.\nWrite --plot layers.png.")
    if not plot.absolute().parent.is_dir():
        raise UsageError(f"--plot {plot}: there is no folder {plot.parent}.\nMake it first.")


def show(folders: Sequence[Path], flags: LayerFlags, as_json: bool) -> None:
    """Measure here, save beside the first artifact, print and draw.

    Raises UsageError, GateError as profile_layers does.
    """
    check_plot(flags.plot)
    opened = [open_artifact(folder) for folder in folders]
    with console().status("starting") as status:
        report = measured_here(opened, flags, status.update)
    saved = save(report, folders[0].absolute().parent)
    if as_json:
        print_json("profile", **told(report, saved))
    present(report, saved, flags.plot)


def measured_here(opened: Sequence[Artifact], flags: LayerFlags, report: Callable[[str], None]) -> LayerReport:
    """On this host; UsageError for more threads than it has processors."""
    threads, usable = 1 if flags.threads is None else flags.threads, machine.usable_cpus()
    if not 1 <= threads <= len(usable):
        raise UsageError(f"--threads {threads}: this host has {len(usable)} usable processors.")
    with requested(opened, flags, threads, usable[-threads:]) as request:
        return profile_layers(opened, request, report)


@contextmanager
def requested(
    opened: Sequence[Artifact], flags: LayerFlags, threads: int, cpus: tuple[int, ...]
) -> Iterator[LayersRequest]:
    """With a log beside the first artifact and a folder for what is needed meanwhile."""
    with log_file(opened[0].folder, "layers") as log, tempfile.TemporaryDirectory(prefix="acmix-") as scratch:
        yield LayersRequest(flags.runs, threads, cpus, Path(scratch), log, flags.model)


def told(report: LayerReport, saved: Path) -> dict[str, object]:
    """What a program reads of a report."""
    return {"layers": report, "rows": rows(report), "summary": summaries(report), "saved": str(saved)}


def present(report: LayerReport, saved: Path, plot: Path | None) -> None:
    """What people read of a report, and the picture."""
    screen, found = console(), rows(report)
    if plot is not None:
        draw(report, found, plot)
    screen.print(modules(report, found))
    screen.print(totals(report))
    for sign in report.emulation:
        screen.print(f"emulated: this is no real device: {printable(sign)}. Its shares are an emulator's own.")
    for target, measured_by in {one.target: one.measured_by for one in report.layers}.items():
        screen.print(f"{target}: {printable(measured_by)}")
    for remark in report.remarks:
        screen.print(f"remark: {printable(remark)}")
    screen.print(f"Raw samples: {os.path.relpath(saved)}" + (f", picture: {plot}" if plot else ""))


def summaries(report: LayerReport) -> list[dict[str, object]]:
    """The numbers of each artifact, computed from its raw samples; an emulated device's times are not among them."""
    if report.is_emulated:
        return [
            {"artifact": one.artifact, "emulated": True, "outside_share": one.outside_share} for one in report.layers
        ]
    return [
        {
            "artifact": one.artifact,
            "profiled_ms": one.profiled_ms,
            "plain_ms": one.plain_ms,
            "slowdown": one.slowdown,
            "operators_ms": one.ms(one.operators),
            "unaccounted_ms": one.unaccounted_ms,
            "outside_share": one.outside_share,
            "gmacs_per_s": one.floor.gmacs_per_s if one.floor else None,
            "times_floor": one.times_floor,
        }
        for one in report.layers
    ]


def modules(report: LayerReport, found: Sequence[Row]) -> Table:
    """The modules with the largest shares, side by side; the rest in one row."""
    unit = "share, emulated" if report.is_emulated else "ms (%)"
    made = tables.table("module", *(f">{_title(report, one)} {unit}" for one in report.layers), "source")
    for row in _cut(found, SHOWN):
        made.add_row(printable(row.module), *_cells(row), printable(row.source))
    whole = [one.profiled_ms for one in report.layers]
    shares = (1.0,) * len(whole)
    made.add_row("one profiled run", *_cells(Row("", "", _shown(report, whole), shares)), "")
    return made


def _cut(found: Sequence[Row], most: int) -> list[Row]:
    """The modules with the largest shares, the others as one, then what is no module."""
    named = [row for row in found if row.module not in (UNMAPPED, UNACCOUNTED)]
    rest = [sum_of(named[most:], f"({len(named) - most} more)")] if len(named) > most else []
    return [*named[:most], *rest, *(row for row in found if row.module in (UNMAPPED, UNACCOUNTED))]


def _title(report: LayerReport, one: LayerTimes) -> str:
    targets = [other.target for other in report.layers]
    return one.target if targets.count(one.target) == 1 else f"{one.target} {one.precision}"


def _shown(report: LayerReport, ms: Sequence[float]) -> tuple[float | None, ...]:
    return (None,) * len(ms) if report.is_emulated else tuple(ms)


def _cells(row: Row) -> list[str]:
    cells = []
    for ms, share in zip(row.ms, row.shares, strict=True):
        text = "-" if share is None else f"{share:4.0%}"
        cells.append(text if ms is None else f"{ms:.3f} ({text})")
    return cells


def totals(report: LayerReport) -> Table:
    """What an artifact as a whole takes, and what the profile leaves out."""
    made = tables.table(
        "artifact", ">operators", ">in the file", ">plain ms", ">profiled", ">outside delegate", ">floor GMAC/s",
        ">times the floor",
    )  # fmt: skip
    for one in report.layers:
        outside = one.outside_share
        speed = [
            f"{one.plain_ms:.3f}",
            f"{one.slowdown:.2f}x",
            f"{one.floor.gmacs_per_s:.1f}" if one.floor else "-",
            "-" if one.times_floor is None else f"{one.times_floor:.2f}",
        ]
        plain, slowdown, rate, times = ["emulated"] * len(speed) if report.is_emulated else speed
        share = "unknown" if outside is None else f"{outside:.1%}"
        made.add_row(
            printable(one.artifact), str(len(one.operators)), str(one.placed), plain, slowdown, share, rate, times
        )
    return made


def draw(report: LayerReport, found: Sequence[Row], file: Path) -> None:
    """Horizontal bars, one an artifact, for the modules with the largest shares.

    In milliseconds of a profiled run; in per cent of it for an emulated device.
    """
    # The figure's own canvas: pyplot would look for a screen.
    from matplotlib.figure import Figure

    shown = _cut(found, DRAWN)
    figure = Figure(figsize=(10, 1.5 + 0.22 * len(shown) * (1 + len(report.layers))), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(report.layers)
    for i, one in enumerate(report.layers):
        places = [place + (i - (len(report.layers) - 1) / 2) * height for place in range(len(shown))]
        lengths = [100 * (row.shares[i] or 0.0) if report.is_emulated else row.ms[i] or 0.0 for row in shown]
        label = _title(report, one) + ("" if report.is_emulated else f", {one.profiled_ms:.2f} ms")
        bars = axes.barh(places, lengths, height, label=label)
        shares = ["" if share is None else f"{share:.0%}" for share in (row.shares[i] for row in shown)]
        axes.bar_label(bars, shares, padding=2, fontsize=7)
    axes.set_yticks(range(len(shown)), [row.module for row in shown], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    unit = "% of a profiled run, emulated" if report.is_emulated else "ms of a profiled run"
    axes.set_xlabel(f"{unit} (mean of the faster half)")
    where = "" if report.device == HOST_NAME else f" on {report.device}"
    threads = f"{report.threads} thread{'s' * (report.threads != 1)}"
    axes.set_title(f"{report.model}{where}: where the time goes, {threads}")
    # Below: inside, it would cover a long bar.
    figure.legend(loc="outside lower center", ncols=min(4, len(report.layers)), fontsize=8)
    figure.savefig(file, dpi=120)
