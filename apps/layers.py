"""`acmix profile --layers`: where the time of artifacts goes, module by module, as a table, a picture or JSON."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from acmix.apps import tables
from acmix.apps.output import console, log_file, print_json
from acmix.toolkit import machine
from acmix.toolkit.adaptive.artifact import is_adaptive
from acmix.toolkit.artifact import open_artifact
from acmix.toolkit.device import printable
from acmix.toolkit.errors import UsageError
from acmix.toolkit.layer_times import UNACCOUNTED, UNMAPPED, LayerReport, LayerTimes, Row, rows, save
from acmix.toolkit.profile_layers import LayersRequest, profile_layers

SHOWN, DRAWN = 20, 15
SUFFIXES = (".png", ".pdf", ".svg")


REFUSED = {
    "--device": "--layers runs on this host only: a device's runner does not speak of operators yet.",
    "--seconds": "--layers counts runs: give --runs or --preset, not --seconds.",
    "--wait": "--layers has no verdict, so it waits for nothing: leave --wait out.",
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


def show(folders: Sequence[Path], runs: int, threads: int, model: str | None, plot: Path | None, as_json: bool) -> None:
    """Measure, save beside the first artifact, print and draw. Raises UsageError, GateError as profile_layers does."""
    check_plot(plot)
    usable = machine.usable_cpus()
    if not 1 <= threads <= len(usable):
        raise UsageError(f"--threads {threads}: this host has {len(usable)} usable processors.")
    opened = [open_artifact(folder) for folder in folders]
    screen = console()
    with (
        log_file(folders[0], "layers") as log,
        tempfile.TemporaryDirectory(prefix="acmix-") as scratch,
        screen.status("starting") as status,
    ):
        request = LayersRequest(runs, threads, usable[-threads:], Path(scratch), log, model)
        report = profile_layers(opened, request, status.update)
    saved = save(report, folders[0].absolute().parent)
    found = rows(report)
    if plot is not None:
        draw(report, found, plot)
    if as_json:
        print_json("profile", layers=report, rows=found, summary=summaries(report), saved=str(saved))
    screen.print(modules(report, found))
    screen.print(totals(report))
    for target, measured_by in {one.target: one.measured_by for one in report.layers}.items():
        screen.print(f"{target}: {printable(measured_by)}")
    for remark in report.remarks:
        screen.print(f"remark: {printable(remark)}")
    screen.print(f"Raw samples: {os.path.relpath(saved)}" + (f", picture: {plot}" if plot else ""))


def summaries(report: LayerReport) -> list[dict[str, object]]:
    """The numbers of each artifact, computed from its raw samples."""
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
    made = tables.table("module", *(f">{_title(report, one)} ms (%)" for one in report.layers), "source")
    named = [row for row in found if row.module not in (UNMAPPED, UNACCOUNTED)]
    for row in named[:SHOWN]:
        made.add_row(printable(row.module), *_cells(report, row.ms), printable(row.source))
    if rest := named[SHOWN:]:
        ms = [sum(row.ms[i] or 0.0 for row in rest) for i in range(len(report.layers))]
        made.add_row(f"({len(rest)} more)", *_cells(report, ms), "")
    for row in found:
        if row.module in (UNMAPPED, UNACCOUNTED):
            made.add_row(row.module, *_cells(report, row.ms), "")
    made.add_row("one profiled run", *_cells(report, [one.profiled_ms for one in report.layers]), "")
    return made


def _title(report: LayerReport, one: LayerTimes) -> str:
    targets = [other.target for other in report.layers]
    return one.target if targets.count(one.target) == 1 else f"{one.target} {one.precision}"


def _cells(report: LayerReport, ms: Sequence[float | None]) -> list[str]:
    pairs = zip(ms, report.layers, strict=True)
    return ["-" if value is None else f"{value:.3f} ({value / one.profiled_ms:4.0%})" for value, one in pairs]


def totals(report: LayerReport) -> Table:
    """What an artifact as a whole takes, and what the profile leaves out."""
    made = tables.table(
        "artifact", ">operators", ">in the file", ">plain ms", ">profiled", ">outside delegate", ">floor GMAC/s",
        ">times the floor",
    )  # fmt: skip
    for one in report.layers:
        outside = one.outside_share
        made.add_row(
            printable(one.artifact),
            str(len(one.operators)),
            str(one.placed),
            f"{one.plain_ms:.3f}",
            f"{one.slowdown:.2f}x",
            "unknown" if outside is None else f"{outside:.1%}",
            f"{one.floor.gmacs_per_s:.1f}" if one.floor else "-",
            "-" if one.times_floor is None else f"{one.times_floor:.2f}",
        )
    return made


def draw(report: LayerReport, found: Sequence[Row], file: Path) -> None:
    """Horizontal bars, one an artifact, for the modules with the largest shares, in milliseconds of a profiled run."""
    # The figure's own canvas: pyplot would look for a screen.
    from matplotlib.figure import Figure

    named = [row for row in found if row.module not in (UNMAPPED, UNACCOUNTED)]
    shown = [*named[:DRAWN], *(row for row in found if row not in named)]
    if rest := named[DRAWN:]:
        ms = tuple(sum(row.ms[i] or 0.0 for row in rest) for i in range(len(report.layers)))
        shown.insert(len(named[:DRAWN]), Row(f"({len(rest)} more)", "", ms, 0.0))
    figure = Figure(figsize=(10, 1.5 + 0.22 * len(shown) * (1 + len(report.layers))), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(report.layers)
    for i, one in enumerate(report.layers):
        places = [place + (i - (len(report.layers) - 1) / 2) * height for place in range(len(shown))]
        label = f"{_title(report, one)}, {one.profiled_ms:.2f} ms"
        bars = axes.barh(places, [row.ms[i] or 0.0 for row in shown], height, label=label)
        shares = ["" if row.ms[i] is None else f"{(row.ms[i] or 0.0) / one.profiled_ms:.0%}" for row in shown]
        axes.bar_label(bars, shares, padding=2, fontsize=7)
    axes.set_yticks(range(len(shown)), [row.module for row in shown], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("ms of a profiled run (mean of the faster half)")
    axes.set_title(f"{report.model}: where the time goes, {report.threads} thread{'s' * (report.threads != 1)}")
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=120)
