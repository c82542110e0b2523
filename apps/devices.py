"""`acmix devices`: what is known and attached, whether it works, and how to add one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from acmix.apps.output import console, print_json
from acmix.toolkit.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from acmix.toolkit.devices._discovery import Listed

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]

app = typer.Typer(
    help="Phones and boards: what is known and attached, whether it works, and how to add one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_known(as_json: Json = False) -> None:
    """Every device of the registry and every attached one, with its state and what to do about it."""
    from acmix.apps import tables
    from acmix.toolkit.devices._discovery import list_devices

    listed, problems = list_devices()
    if as_json:
        print_json("devices list", devices=listed, problems=problems)
    made = tables.table("device", "transport", "address", "state", "", "cure")
    for device in listed:
        cure = device.state.cure or ("" if device.name else _adding(device))
        seen = device.state.detail or device.description
        made.add_row(device.name or "-", device.transport, device.address, device.state.availability, seen, cure)
    screen = console()
    screen.print(made)
    for problem in problems:
        screen.print(problem)


def _adding(device: Listed) -> str:
    """The command that writes an attached device down; '' for an address that `add` would refuse.

    The address is the device's own word, and people paste commands.
    """
    from acmix.toolkit.devices._registry import ADDRESSES

    pattern, _ = ADDRESSES[device.transport]
    if not pattern.fullmatch(device.address):
        return ""
    return f"acmix devices add NAME --transport {device.transport} --address {shlex.quote(device.address)}"


@app.command()
def doctor(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Devices; without any, all.")] = None,
    as_json: Json = False,
) -> None:
    """Check each link of the chain to a device: program, server, authorisation, shell, files, runtimes, sysfs."""
    from acmix.apps import tables
    from acmix.toolkit.devices import load_device
    from acmix.toolkit.devices._checks import examine
    from acmix.toolkit.devices._registry import entries

    devices = [load_device(name) for name in names] if names else [entry.device for entry in entries()]
    reports = [(device, examine(device)) for device in devices]
    if as_json:
        print_json("devices doctor", devices=[{"name": d.name, "checks": checks} for d, checks in reports])
    made = tables.table("device", "", "what", "found", "cure")
    for device, checks in reports:
        for number, check in enumerate(checks):
            made.add_row("" if number else device.name, tables.mark(check.fine), check.what, check.found, check.cure)
    console().print(made)
    raise typer.Exit(0 if all(check.fine for _, checks in reports for check in checks) else 1)


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What you will call it: rpi_5.")],
    transport: Annotated[str, typer.Option("--transport", help="adb, ssh, ios or local.")],
    address: Annotated[str, typer.Option("--address", help="adb serial, ssh host or UDID.")] = "",
    cores: Annotated[str, typer.Option("--cores", help="Processors to pin a runner to: 4,5,6,7.")] = "",
    threads: Annotated[int, typer.Option("--threads", help="Threads of the runtime.")] = 1,
    work_folder: Annotated[str, typer.Option("--work-folder", help="On the device; acmix makes its own in it.")] = "",
    cache_mb: Annotated[
        int, typer.Option("--cache-mb", help="The most it keeps of what was pushed; 0: nothing.")
    ] = 256,
    description: Annotated[str, typer.Option("--description", help="One line for people.")] = "",
    project: Annotated[bool, typer.Option("--project", help="Into ./devices, not into your own folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a device of the same name.")] = False,
    as_json: Json = False,
) -> None:
    """Write a device down, so that its name can be used."""
    from acmix.toolkit.device import Device, TransportName
    from acmix.toolkit.devices._registry import folders, write

    if transport not in get_args(TransportName):
        known = get_args(TransportName)
        raise UsageError(
            f"there is no transport {transport!r}.{did_you_mean(transport, known)}\nWhat there is: {', '.join(known)}."
        )
    fields: dict[str, Any] = {"transport": transport, "address": address, "threads": threads}
    fields |= {"work_folder": work_folder, "cache_mb": cache_mb, "description": description}
    device = Device(name, cores=_numbers(cores), **fields)
    file: Path = write(device, folders()[0 if project else 1], overwrite)
    if as_json:
        print_json("devices add", device=device, file=str(file))
    console().print(f"{name} is written down: {file}\nTry it: acmix devices doctor {name}", soft_wrap=True)


@app.command()
def clean(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Devices on which nothing is measured now.")],
    as_json: Json = False,
) -> None:
    """Remove all of acmix from a device: the files that it keeps, and every work folder, also of a power cut."""
    from acmix.toolkit.devices import connect, load_device
    from acmix.toolkit.devices._shell import ShellTransport

    rows: list[dict[str, object]] = []
    devices = [load_device(name) for name in names]
    for device in devices:
        if device.transport not in ("adb", "ssh"):
            raise UsageError(f"{device.name}: nothing of acmix stays there.\nClean devices over adb or ssh.")
    for device in devices:
        with connect(device) as transport:
            assert isinstance(transport, ShellTransport)
            folders, kept = transport.remove_everything()
            rows.append({"name": device.name, "removed": folders, "kept_files": kept.files, "kept_mb": kept.mb})
    if as_json:
        print_json("devices clean", devices=rows)
    for row in rows:
        console().print(
            f"{row['name']}: {row['removed']} work folders removed, and {row['kept_files']} kept files of "
            f"{row['kept_mb']} MB"
        )


def _numbers(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")] if text else []
    if any(not word.isascii() or not word.isdigit() or len(word) > 4 for word in words):
        raise UsageError(f"--cores {text!r}: these are no processors' numbers.\nWrite 4,5,6,7.")
    return tuple(int(word) for word in words)
