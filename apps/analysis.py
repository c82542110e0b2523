"""`acmix analyze`, and what people see of the ladder of `mixed`: tables, JSON, pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from acmix.apps import requests, tables
from acmix.apps.output import console, print_json
from acmix.toolkit import catalog
from acmix.toolkit.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from acmix.calibration.sensitivity import Cost, Sensitivity
    from acmix.calibration.tradeoff import Latency, Rung, Tradeoff
    from acmix.toolkit.request import ExportRequest, Outcome
    from acmix.toolkit.samples import Samples
    from acmix.toolkit.source import ModelSource

SAMPLES = 16
"""On which modules are compared, unless --data-count says otherwise."""


def analyze(flags: requests.ExportFlags, plot: Path | None, as_json: bool) -> None:
    """Rank the modules of a network by what int8 in each alone costs. Raises UsageError as an export does."""
    from rich.progress import Progress

    from acmix.calibration.sensitivity import sensitivity
    from acmix.toolkit import capture
    from acmix.toolkit.grid import statistics_layers
    from acmix.toolkit.quantize import graph_module

    recipe = catalog.load_recipe(flags.precision)
    if recipe.weights != "int8" or not recipe.needs_ranges:
        raise UsageError(
            f"acmix analyze rounds weights and activations to int8, and {recipe.name!r} does not.\n"
            "Leave --precision out: w8a8 is what it looks at."
        )
    if plot is not None:
        from acmix.calibration.tradeoff import require_picture

        require_picture(plot, "--plot")
    target = flags.target
    catalog.check_target(target)
    source = requests.model_source(flags)
    if requests.has_pairs(source):
        raise UsageError(
            f"{source.reference} holds its own quantize and dequantize pairs, so no module of it is float.\n"
            "Give the float network; acmix compare --layers looks at a finished file."
        )
    calibrator = requests.sample_calibrator(flags, recipe, source)
    judged = _judged(flags, source, calibrator.samples)
    screen = console()
    for remark in calibrator.remarks:
        screen.print(f"calibration: {remark}", style="yellow")
    with Progress(console=screen, transient=True) as progress:
        task = progress.add_task("calibrating", total=len(judged))
        network = capture.build(source, flags.weights, flags.seed)
        captured = capture.capture(network, [target])
        program = captured.programs[target].program
        asked = tuple(statistics_layers(graph_module(program).graph))
        calibrated = calibrator(program, recipe, asked)
        progress.update(task, description="rounding module by module")
        found = sensitivity(calibrated, judged, asked, lambda done: progress.update(task, completed=done))
    for repair in calibrated.repairs:
        screen.print(repair)
    screen.print(ranking(found))
    screen.print(conclusion(found))
    if plot is not None:
        draw(plot, found, source.spec.name)
        screen.print(f"Drew {plot}")
    # Last: what fails before it is the one JSON object that is printed.
    if as_json:
        print_json("analyze", model=source.spec.name, target=target, repairs=calibrated.repairs, sensitivity=found)


def _judged(flags: requests.ExportFlags, source: ModelSource, samples: Samples) -> Samples:
    """The samples on which modules are compared: of --data where given, else some that calibrated."""
    from acmix.toolkit.samples import Spread

    count = SAMPLES if flags.data_count is None else flags.data_count
    if flags.data is None:
        return Spread(samples, min(count, len(samples)))
    return requests.held_out(flags, source, samples, count)


def conclusion(found: Sensitivity) -> str:
    """What the table says, in one sentence."""
    whole = found.whole
    right = ""
    if whole.top1 is not None and found.float_top1 is not None:
        right = f", top-1 {100 * whole.top1:.1f} % (float: {100 * found.float_top1:.1f} %)"
    same = "" if whole.top1_agreement is None else f", {100 * whole.top1_agreement:.1f} % of classes as in float"
    return (
        f"All modules int8 together: {tables.snr(whole.snr_db)} dB{same}{right}. {found.samples_count} samples of "
        f"{found.samples_name}, {found.seconds:.0f} s."
    )


def ranking(found: Sensitivity) -> Table:
    """Every module, the most harmful first."""
    made = tables.table("module", ">SQNR dB", ">same class %", ">top-1 %", ">MACs M", ">of all MACs %", ">of weights %")
    for one in found.modules:
        made.add_row(
            one.module,
            tables.snr(one.cost.snr_db),
            _percent(one.cost.top1_agreement),
            _percent(one.cost.top1),
            f"{one.macs / 1e6:.2f}",
            f"{100 * one.macs_share:.2f}",
            f"{100 * one.weights_share:.2f}",
        )
    return made


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def draw(file: Path, found: Sensitivity, name: str) -> None:
    """A bar a module, the most harmful on top; all modules together as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from acmix.calibration.tradeoff import whole

    rows = found.modules
    figure = Figure(figsize=(7.5, max(3.0, 0.19 * len(rows) + 1.2)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(rows))
    axes.barh(list(places), [_height(row.cost) for row in rows], color="tab:blue")
    axes.axvline(_height(found.whole), color="tab:red", linestyle="--", label="all modules int8")
    axes.set_yticks(list(places), [row.module for row in rows], fontsize="x-small")
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("SQNR of the output in dB with this module alone in int8: less is worse")
    axes.set_title(f"{name}, {found.samples_count} samples of {found.samples_name}", fontsize="medium")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper right", fontsize="small")
    with whole(file) as part:
        figure.savefig(part, dpi=120, metadata={})


def _height(cost: Cost) -> float:
    return 0.0 if cost.snr_db is None else max(cost.snr_db, 0.0)


def following(request: ExportRequest) -> ExportRequest:
    """The request, saying each rung of a ladder as it is measured; as it is without one."""
    if request.recipe.name != requests.MIXED:
        return request
    from acmix.calibration.ladder import MixedCalibrator

    assert isinstance(request.calibrator, MixedCalibrator)
    screen = console()

    def say(rung: Rung) -> None:
        steady = "" if rung.steady_db is None else f", steady to {tables.snr(rung.steady_db)} dB"
        screen.print(
            f"rung {rung.name!r}: drops {rung.drop_points:.2f} points, same class {100 * rung.agreement:.1f} %, "
            f"{tables.snr(rung.snr_db)} dB{steady} ({rung.seconds:.0f} s)"
        )

    return dataclasses.replace(request, calibrator=dataclasses.replace(request.calibrator, report=say))


def tradeoff_of(request: ExportRequest) -> Tradeoff | None:
    """The ladder that an export climbed; None where there was none."""
    plan = getattr(request.calibrator, "plan", None)
    return None if plan is None else plan.tradeoff


def keep_tradeoff(request: ExportRequest, results: Sequence[Outcome]) -> None:
    """Write the ladder and its picture beside the artifacts, and show it. No other export writes the same files."""
    found = tradeoff_of(request)
    if found is None or not any(result.artifact for result in results):
        return
    from acmix.calibration import tradeoff

    screen = console()
    screen.print(rungs(found))
    file = request.out / f"{request.source.spec.name}-{request.recipe.name}-{tradeoff.file_name(found)}"
    tradeoff.write(file, found)
    if tradeoff.can_draw():
        tradeoff.draw(file.with_suffix(".png"), found)
        screen.print(f"Wrote {file} and {file.with_suffix('.png').name}")
    else:
        screen.print(f"Wrote {file}; the picture needs matplotlib: pip install matplotlib")


def _latency(found: Latency | None) -> tuple[str, str]:
    """The median in ms, and the ratio to the float file; '-' where it was not measured."""
    if found is None:
        return "-", "-"
    known = "" if found.ratio_low is None else f" ({found.ratio_low:.2f} to {found.ratio_high:.2f})"
    return f"{found.p50_ms:.2f}", f"{found.ratio:.2f}{known}"


def _timed(found: Tradeoff) -> str:
    """What the latencies are of, or why there are none; why some are missing."""
    reasons = dict.fromkeys(rung.latency_reason for rung in found.rungs if rung.latency_reason)
    said = "".join(f"\n{reason}" for reason in reasons)
    if found.float_latency is None:
        return said
    return f"\n{found.latency_target} on this host, one thread: float {found.float_latency.p50_ms:.2f} ms{said}"


def rungs(found: Tradeoff) -> Table:
    """Every rung that was tried; the one that was taken has a mark."""
    before = "" if found.float_top1 is None else f"; float: top-1 {100 * found.float_top1:.1f} %"
    made = tables.table(
        "rung", ">top-1 %", ">same class %", ">drop", ">SQNR dB", ">MB", ">int8 MACs %", ">ms", ">of float", ">s", "",
        caption=f"drop of {found.measure} in points on {found.photos_count} photos of {found.photos_name}, "
        f"{found.max_drop:g} allowed{before}{_timed(found)}",
    )  # fmt: skip
    for i, rung in enumerate(found.rungs):
        made.add_row(
            rung.name,
            _percent(rung.top1),
            _percent(rung.agreement),
            f"{rung.drop_points:.2f}",
            tables.snr(rung.snr_db),
            f"{rung.size_mb:.2f}",
            _percent(rung.int8_macs_share),
            *_latency(rung.latency),
            f"{rung.seconds:.0f}",
            "taken" if i == found.chosen else "",
        )
    return made
