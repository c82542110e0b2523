"""`acmix profile`: measure artifacts on this host, or show a measurement that was saved or cut."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from acmix.apps import tables
from acmix.apps.output import console, log_file, print_json
from acmix.toolkit import profile as profiling
from acmix.toolkit.artifact import Artifact, open_artifact
from acmix.toolkit.device import printable
from acmix.toolkit.errors import UsageError, did_you_mean
from acmix.toolkit.journal import journal_beside, result_of
from acmix.toolkit.measure import Plan
from acmix.toolkit.measurement import ratios
from acmix.toolkit.ratio import Ratio
from acmix.toolkit.slower import SlowerInt8, slower_int8

if TYPE_CHECKING:
    from acmix.toolkit.samples import Samples

VERDICT_STYLES = {"valid": "green", "noisy": "yellow", "throttled": "red", "incomplete": "red", "emulated": "cyan"}


@dataclass(frozen=True)
class ProfileFlags:
    """The flags of `acmix profile`; runs and seconds, where given, take the place of the preset's.

    threads: None where it was not given: 1 on this host, elsewhere what the device's file says.  warm_up_limit_s: None
    leaves it to the measurement.
    """

    preset: str
    runs: int | None
    seconds: float | None
    threads: int | None
    wait_s: float
    photos: Path | None
    warm_up_limit_s: float | None = None


def plan_of(preset: str) -> Plan:
    """The lengths of a preset. Raises UsageError for an unknown one."""
    plan = next((plan for name, plan in profiling.PRESETS.items() if name == preset), None)
    if plan is None:
        known = ", ".join(f"{n} ({p.runs} runs, {p.seconds:.0f} s)" for n, p in profiling.PRESETS.items())
        meant = did_you_mean(preset, profiling.PRESETS)
        raise UsageError(f"there is no preset {preset!r}.{meant}\nacmix profile has {known}.")
    return plan


def request_of(flags: ProfileFlags) -> profiling.ProfileRequest:
    """How to measure. Raises UsageError for an unknown preset."""
    plan = plan_of(flags.preset)
    runs = plan.runs if flags.runs is None else flags.runs
    seconds = plan.seconds if flags.seconds is None else flags.seconds
    threads = 1 if flags.threads is None else flags.threads
    limit_s = plan.warm_up_limit_s if flags.warm_up_limit_s is None else flags.warm_up_limit_s
    return profiling.ProfileRequest(threads, runs, seconds, flags.wait_s, plan.processes, limit_s)


def profile(folders: Sequence[Path], flags: ProfileFlags, as_json: bool) -> None:
    """Measure, save beside the first artifact, print. Leaves with 1 when the measurement is incomplete."""
    request = request_of(flags)
    opened = [open_artifact(folder) for folder in folders]
    photos = photos_for(opened, flags.photos)
    beside = folders[0].absolute().parent
    journal = journal_beside(beside)
    screen = console()
    with log_file(folders[0], "profile") as log, screen.status("starting") as status:
        measurement = profiling.profile(opened, request, log, status.update, journal, photos)
        saved = profiling.save(measurement, beside, result_of(journal))
    journal.unlink()
    _print(measurement, saved, as_json, slower_int8(opened, measurement))


def photos_for(opened: Sequence[Artifact], folder: Path | None) -> list[Samples]:
    """The photos of a folder as each artifact wants them, no more than are held in memory; [] without a folder."""
    if folder is None:
        return []
    from acmix.calibration.photos import read_photo_folder

    return [
        read_photo_folder(folder, m.preprocess, m.further_preprocess).first(profiling.MOST_PHOTOS)
        for m in (artifact.manifest for artifact in opened)
    ]


def show(file: Path, as_json: bool) -> None:
    """Print a measurement that was saved, or what a journal holds of one that was cut."""
    _print(profiling.read_measurement(file), file, as_json)


def _print(measurement: profiling.Measurement, saved: Path, as_json: bool, slower: Sequence[SlowerInt8] = ()) -> None:
    if as_json:
        summary, path = profiling.summaries(measurement), str(saved)
        print_json("profile", measurement=measurement, summary=summary, saved=path, slower_int8=slower)
    screen = console()
    screen.print(latencies(measurement))
    screen.print(judgement(measurement))
    for one in slower:
        screen.print(warning(one))
    screen.print(f"Raw samples: {os.path.relpath(saved)}")
    raise typer.Exit(1 if measurement.judgement.verdict == "incomplete" else 0)


def latencies(measurement: profiling.Measurement) -> Table:
    """Percentiles of every artifact and its ratio to the first one; an emulated device has no latency to show."""
    c = measurement.conditions
    cpus = ",".join(map(str, c.cpus))
    threads = f"{c.threads} thread{'s' * (c.threads != 1)}"
    where = f"on cpu {cpus}" if cpus else "where the system puts it"
    caption = f"{printable(c.machine.get('cpu', ''))}, {threads} {where}, governor {printable(c.governor)}"
    if "runtime" in c.machine:
        caption += f"\n{printable(c.machine['runtime'])}"
    counted = any(t.instructions for t in measurement.timings)
    made = tables.table(
        "artifact", *[">M instructions"] * counted, ">runs", ">p50 ms", ">p90 ms", ">p99 ms", ">cv %", ">first ms",
        ">load ms", ">peak MB", ">ratio", caption=caption,
    )  # fmt: skip
    for t, ratio in zip(measurement.timings, ratios(measurement.timings), strict=True):
        numbers = (
            ["emulated"] * 6
            if measurement.is_emulated
            else [
                *(f"{t.percentile_ms(p):.2f}" for p in (50, 90, 99)),
                f"{100 * t.variation:.0f}",
                f"{t.first_run_ns / 1e6:.1f}",
                f"{t.load_ns / 1e6:.0f}",
            ]
        )
        runs, memory = str(len(t.latency_ns)), f"{t.peak_memory_mb:.0f}"
        count = [] if not counted else ["-" if t.median_instructions is None else f"{t.median_instructions / 1e6:.3f}"]
        # An emulator's ratios are as little those of the device as its milliseconds.
        made.add_row(
            printable(t.artifact),
            *count,
            runs,
            *numbers,
            memory,
            "emulated" if measurement.is_emulated else interval(ratio),
        )
    return made


def interval(ratio: Ratio | None) -> str:
    """'1.043 (1.038 to 1.049)'; '-' for the artifact that the others are compared with, and without samples."""
    if ratio is None:
        return "-"
    known = "" if ratio.low is None or ratio.high is None else f" ({ratio.low:.3f} to {ratio.high:.3f})"
    return f"{ratio.estimate:.3f}{known}"


def judgement(measurement: profiling.Measurement) -> Text:
    """The verdict, its reasons grouped by their cure, and what could not be known."""
    found = measurement.judgement
    said = Text.assemble("Verdict: ", (found.verdict, VERDICT_STYLES[found.verdict]))
    for cure in dict.fromkeys(reason.cure for reason in found.reasons):
        for reason in found.reasons:
            if reason.cure == cure:
                said.append(f"\n  {printable(reason.what)}")
        said.append(f"\n    -> {printable(cure)}")
    for note in found.notes:
        said.append(f"\n  Note: {printable(note)}.")
    return said


def warning(slower: SlowerInt8) -> Text:
    """That int8 is slower than float, with the operators to blame."""
    first, *others = slower.sentence.splitlines()
    return Text.assemble(("Warning: ", "yellow"), printable(first), *(f"\n  {printable(line)}" for line in others))
