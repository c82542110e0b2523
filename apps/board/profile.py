"""`acmix profile ARTIFACT... --device NAME[,NAME]`: one table a device; the host among them like any other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from acmix.apps import profiles
from acmix.apps.board.choose import choose_runners
from acmix.apps.output import console, log_file, print_json
from acmix.toolkit import profile as profiling
from acmix.toolkit.artifact import Artifact, open_artifact
from acmix.toolkit.device import HOST_NAME, Device
from acmix.toolkit.devices import connect, load_device
from acmix.toolkit.errors import AcmixError, UsageError
from acmix.toolkit.journal import journal_beside, result_of
from acmix.toolkit.measure import INTERRUPTED
from acmix.toolkit.remote import profile_on_device
from acmix.toolkit.samples import Samples
from acmix.toolkit.slower import SlowerInt8, slower_int8


@dataclass(frozen=True)
class Outcome:
    """What one device gave: a measurement and its file, or why there is none."""

    device: str
    measurement: profiling.Measurement | None = None
    saved: str = ""
    error: str = ""
    slower: tuple[SlowerInt8, ...] = ()


def profile(folders: Sequence[Path], names: str, flags: profiles.ProfileFlags, as_json: bool) -> None:
    """Measure on each device in turn, save beside the first artifact, print.

    Leaves with 1 when a device failed or its measurement is incomplete.  Nothing is measured anywhere when a
    device is unknown or away.  An interruption ends the whole command, after what was taken is saved.
    """
    devices = named_devices(names)
    opened = [open_artifact(folder) for folder in folders]
    photos = profiles.photos_for(opened, flags.photos)
    request = profiles.request_of(flags)
    check_all_ready(devices)
    screen, outcomes = console(), []
    for device in devices:
        outcome = _measured(device, opened, request, flags.threads, photos)
        outcomes.append(outcome)
        screen.print(f"\n{device.name}")
        if outcome.measurement is None:
            screen.print(outcome.error)
            continue
        screen.print(profiles.latencies(outcome.measurement))
        screen.print(profiles.judgement(outcome.measurement))
        for one in outcome.slower:
            screen.print(profiles.warning(one))
        screen.print(f"Raw samples: {os.path.relpath(outcome.saved)}")
        if INTERRUPTED in _cuts(outcome.measurement):
            break
    if as_json:
        print_json("profile", devices=[_row(outcome) for outcome in outcomes])
    raise typer.Exit(1 if any(map(_failed, outcomes)) else 0)


def _failed(outcome: Outcome) -> bool:
    return outcome.measurement is None or bool(_cuts(outcome.measurement))


def _cuts(measurement: profiling.Measurement) -> list[str]:
    """Why it ended early; an emulator's verdict is worse than that and hides it."""
    return [reason.what for reason in measurement.judgement.reasons if reason.leads_to == "incomplete"]


def _row(outcome: Outcome) -> dict[str, object]:
    if outcome.measurement is None:
        return {"device": outcome.device, "error": outcome.error}
    summary = profiling.summaries(outcome.measurement)
    return {
        "device": outcome.device,
        "measurement": outcome.measurement,
        "summary": summary,
        "saved": outcome.saved,
        "slower_int8": outcome.slower,
    }


def named_devices(names: str) -> list[Device]:
    """The devices of --device; UsageError for an unknown one, none, or one twice."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted or len(set(wanted)) != len(wanted):
        raise UsageError(f"--device {names!r} must name each device once: --device rpi_5,pixel_8.")
    return [load_device(name) for name in wanted]


def check_all_ready(devices: Sequence[Device]) -> None:
    """UsageError with the cure of the first device that cannot be used now: hours may go by before its turn."""
    for device in devices:
        with connect(device) as transport:
            state = transport.state()
        if not state.ready:
            raise UsageError(f"{device.name} is {state.availability}: {state.detail}\n{state.cure}".strip())


def _measured(
    device: Device,
    opened: Sequence[Artifact],
    request: profiling.ProfileRequest,
    threads: int | None,
    photos: Sequence[Samples],
) -> Outcome:
    """What fails is this device's own, a missing compiler or runtime too; the next may do better."""
    request = replace(request, threads=device.threads if threads is None else threads)
    beside = opened[0].folder.absolute().parent
    journal = journal_beside(beside)
    try:
        measurement = _measure(device, opened, request, journal, photos)
    except AcmixError as error:
        journal.unlink(missing_ok=True)
        return Outcome(device.name, error=str(error))
    saved = profiling.save(measurement, beside, result_of(journal))
    journal.unlink()
    return Outcome(device.name, measurement, str(saved), slower=slower_int8(opened, measurement))


def _measure(
    device: Device,
    opened: Sequence[Artifact],
    request: profiling.ProfileRequest,
    journal: Path,
    photos: Sequence[Samples] = (),
) -> profiling.Measurement:
    with log_file(opened[0].folder, "profile") as log, console().status(device.name) as status:
        if device.name == HOST_NAME:
            return profiling.profile(opened, request, log, status.update, journal, photos)
        with connect(device) as transport:
            runners = choose_runners(transport, opened)
            pairs = list(zip(opened, runners, strict=True))
            return profile_on_device(transport, pairs, request, status.update, journal, photos)
