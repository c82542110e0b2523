"""`acmix profile ARTIFACT... --layers --device NAME[,NAME]`: where the time goes on each device in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from acmix.apps import layers
from acmix.apps.board.choose import choose_runners
from acmix.apps.board.profile import check_all_ready, named_devices
from acmix.apps.output import console, print_json
from acmix.toolkit._layer_report import check_one_network, find_network
from acmix.toolkit.artifact import Artifact, open_artifact
from acmix.toolkit.device import HOST_NAME, Device
from acmix.toolkit.devices import connect
from acmix.toolkit.errors import AcmixError
from acmix.toolkit.journal import journal_beside
from acmix.toolkit.layer_times import LayerReport, save
from acmix.toolkit.remote_layers import profile_layers_on_device


@dataclass(frozen=True)
class Outcome:
    """What one device gave: a report and its file, or why there is none. kept: what was taken until then."""

    device: str
    report: LayerReport | None = None
    saved: Path = Path()
    error: str = ""
    kept: Path | None = None


def show(folders: Sequence[Path], names: str, flags: layers.LayerFlags, as_json: bool) -> None:
    """Measure on each device in turn, save beside the first artifact, print and draw.

    Leaves with 1 when a device failed.  Nothing is measured anywhere when a device is unknown or away, or the
    artifacts or --model are of several networks: UsageError.
    """
    layers.check_plot(flags.plot)
    devices = named_devices(names)
    opened = [open_artifact(folder) for folder in folders]
    check_one_network(opened)
    if flags.model is not None:
        find_network(opened, flags.model)
    check_all_ready(devices)
    screen, outcomes = console(), []
    for device in devices:
        outcome = _measured(device, opened, flags)
        outcomes.append(outcome)
        screen.print(f"\n{device.name}")
        if outcome.report is None:
            screen.print(outcome.error)
            if outcome.kept is not None:
                _tell(outcome.kept)
        else:
            layers.present(outcome.report, outcome.saved, _picture(flags.plot, device, len(devices)))
    if as_json:
        print_json("profile", devices=[_row(outcome) for outcome in outcomes])
    raise typer.Exit(1 if any(outcome.report is None for outcome in outcomes) else 0)


def _tell(kept: Path) -> None:
    console().print(f"The runs until then are kept: acmix profile --show {os.path.relpath(kept)}", soft_wrap=True)


def _picture(plot: Path | None, device: Device, devices: int) -> Path | None:
    """One a device, under its name where there are several."""
    return plot if plot is None or devices == 1 else plot.with_stem(f"{plot.stem}-{device.name}")


def _row(outcome: Outcome) -> dict[str, object]:
    if outcome.report is None:
        row: dict[str, object] = {"device": outcome.device, "error": outcome.error}
        return row if outcome.kept is None else {**row, "kept": str(outcome.kept)}
    return {"device": outcome.device, **layers.told(outcome.report, outcome.saved)}


def _measured(device: Device, opened: Sequence[Artifact], flags: layers.LayerFlags) -> Outcome:
    """What fails is this device's own, a missing compiler or runtime too; the next may do better."""
    beside = opened[0].folder.absolute().parent
    journal = journal_beside(beside, "layers")
    try:
        with console().status(device.name) as status:
            report = _measure(device, opened, flags, status.update, journal)
    except AcmixError as error:
        return Outcome(device.name, error=str(error), kept=journal if journal.exists() else None)
    except BaseException:
        # Ctrl-C.
        if journal.exists():
            _tell(journal)
        raise
    saved = save(report, beside)
    journal.unlink(missing_ok=True)
    return Outcome(device.name, report, saved)


def _measure(
    device: Device,
    opened: Sequence[Artifact],
    flags: layers.LayerFlags,
    report: Callable[[str], None],
    journal: Path,
) -> LayerReport:
    threads = device.threads if flags.threads is None else flags.threads
    if device.name == HOST_NAME:
        return layers.measured_here(opened, replace(flags, threads=threads), report)
    with connect(device) as transport, layers.requested(opened, flags, threads, device.cores) as request:
        pairs = list(zip(opened, choose_runners(transport, opened, profiled=True), strict=True))
        return profile_layers_on_device(transport, pairs, request, report, journal)
