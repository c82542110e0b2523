"""`acmix selftest --device NAME --out FILE`: somebody with the hardware turns our claims into recorded facts."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acmix.apps.output import console, print_json
from acmix.toolkit.errors import UsageError

if TYPE_CHECKING:
    from acmix.apps.selftest.record import Check, Evidence, Record, Report, Subject
    from acmix.toolkit.artifact import Artifact
    from acmix.toolkit.device import Device, Transport

STYLES = {"passed": "green", "failed": "red", "skipped": "yellow"}
EXPORTED = ("tflite", "executorch", "onnx")
"""What a device other than Apple's can run."""
PRECISIONS = ("float32", "w8a8")
PACKAGES = ("ai-edge-litert", "executorch", "onnxruntime", "torch", "numpy")


def selftest(
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="One of `acmix devices list`; host too.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the records go: rpi_5.json.")],
    artifact: Annotated[
        list[Path] | None,
        typer.Option("--artifact", help="Artifacts to run there; without any, a tiny network is exported."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier record.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Check on a device what the documentation claims of devices, and write down what was found."""
    from acmix.apps.selftest import record
    from acmix.toolkit.artifact import open_artifact
    from acmix.toolkit.devices import connect, load_device
    from acmix.toolkit.devices._guard import guarded_folder

    asked = load_device(device)
    _check_out(out, overwrite)
    opened = [open_artifact(folder) for folder in artifact or ()]
    begun, addresses = record.now(), _addresses(asked)
    with (
        guarded_folder("acmix-selftest-") as scratch,
        connect(asked) as transport,
        console().status(asked.name) as status,
    ):
        records = tuple(_without_address(r, addresses) for r in _records(transport, opened, scratch, status.update))
    report = record.Report(_subject(asked, records), begun, record.now(), _versions(asked), _host(), records)
    record.write(report, out)
    if as_json:
        print_json("selftest", report=report, saved=str(out))
    _show(report, out)
    raise typer.Exit(1 if report.has_failed else 0)


def _without_address(made: Record, addresses: Sequence[str]) -> Record:
    """Reasons and evidence may quote ssh or adb; a serial is nobody's business, a name is."""
    import msgspec

    text = msgspec.json.encode(made).decode()
    for address in addresses:
        text = text.replace(msgspec.json.encode(address).decode()[1:-1], "(its address)")
    return msgspec.json.decode(text, type=type(made))


def _addresses(device: Device) -> list[str]:
    """How the device's file, and ssh's own config, call the place: the longest first."""
    from acmix.toolkit.devices.ssh import resolved

    known = [device.address]
    if device.transport == "ssh":
        with contextlib.suppress(UsageError):
            known.append(resolved(device.address))
    hosts = [one.rpartition("@")[2].removeprefix("ssh://") for one in known]
    hosts += [host.rpartition(":")[0] for host in hosts if ":" in host]
    found = {one for one in (*known, *hosts) if one and one != device.name}
    return sorted(found, key=len, reverse=True)


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out} cannot be written: there is no folder {out.parent}.\nMake it, or choose another.")
    if not os.access(out.absolute().parent, os.W_OK):
        raise UsageError(f"{out} cannot be written: you may not write into {out.parent}.\nChoose another folder.")
    if out.is_dir():
        raise UsageError(f"{out} is a folder.\nName a file: --out {out / 'selftest.json'}.")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already.\nAdd --overwrite to replace it, or choose another name.")


def _records(
    transport: Transport, opened: Sequence[Artifact], scratch: Path, report: Callable[[str], None]
) -> Iterator[Record]:
    """Every check in order. What cannot work any more after a failure is skipped, with that as its reason."""
    from acmix.apps.selftest import links, runs
    from acmix.apps.selftest.record import Check, conduct, skip

    bench = runs.Bench(transport, scratch / "log")
    blocked = ""

    def tried(check: Check) -> Record:
        report(check.name)
        return skip(check, blocked) if blocked else conduct(check)

    ready = tried(Check("state", "the device is reached, and ready", lambda: _state(transport)))
    yield ready
    if ready.outcome != "passed":
        blocked = "the device is not ready"
    elif transport.device.transport == "ios":
        blocked = "iOS runs no commands of ours"
    for check in links.shell_checks(transport):
        made = tried(check)
        yield made
        if check.name == "arguments" and made.outcome == "failed":
            blocked = "no shell there takes commands as they are"
    yield tried(runs.state_check(bench))
    for check in links.file_checks(transport, scratch):
        made = tried(check)
        yield made
        if check.name == "push and pull" and made.outcome == "failed":
            blocked = "files do not arrive there"
    files = list(opened)
    for precision in () if opened else PRECISIONS:
        claim = f"the package's own tiny network is exported here as {precision}"
        export = partial(_exported, scratch, precision, files)
        yield tried(Check(f"tiny network, {precision}", claim, export))
    for artifact in files:
        yield from map(tried, runs.artifact_checks(bench, artifact))
    yield from map(tried, runs.kernel_checks(bench, files))
    if files:
        yield tried(runs.measurement_check(bench, files))
    yield tried(links.clean_up_check(transport, scratch))


def _state(transport: Transport) -> Evidence:
    from acmix.apps.selftest.record import FailedError

    state = transport.state()
    if not state.ready:
        raise FailedError(f"it is {state.availability}: {state.detail} {state.cure}", availability=state.availability)
    return {"availability": state.availability}


def _exported(scratch: Path, precision: str, files: list[Artifact]) -> Evidence:
    made = export_tiny(scratch, precision)
    files += made
    return {"artifacts": [file.name for file in made]}


def export_tiny(scratch: Path, precision: str, targets: Sequence[str] = EXPORTED) -> list[Artifact]:
    """The package's own tiny network at a precision, for each runtime that is installed here.

    Raises SkippedError where something that it needs is not installed, FailedError where a target fails.
    """
    from acmix.apps.requests import ExportFlags, export_request
    from acmix.apps.selftest import tiny
    from acmix.apps.selftest.record import FailedError, SkippedError
    from acmix.toolkit import catalog, pipeline

    installed = [name for name in targets if catalog.missing_package(name) is None]
    if not installed:
        raise SkippedError(
            "no runtime for devices is installed here, so that no file can be exported.\n"
            "Install one: pip install 'acmix[tflite]'; or give files: --artifact FOLDER."
        )
    flags = ExportFlags(
        model=tiny.REFERENCE, target=",".join(installed), precision=precision, inputs=(tiny.INPUT,),
        preprocess="imagenet", out=scratch / "exported", calibration="builtin" if precision == "w8a8" else None,
    )  # fmt: skip
    try:
        request = export_request(flags, {})
    except UsageError as error:
        raise SkippedError(str(error)) from error
    outcomes = pipeline.export(request, lambda target, stage, seconds: None)
    if broken := [outcome.error for outcome in outcomes if outcome.artifact is None]:
        raise FailedError(f"the tiny network cannot be exported here: {broken[0]}\n`acmix doctor` may help.")
    return [outcome.artifact for outcome in outcomes if outcome.artifact is not None]


def _subject(device: Device, records: Sequence[Record]) -> Subject:
    import msgspec

    from acmix.apps.selftest.record import Subject
    from acmix.toolkit.conditions import Identity

    told = next((r.evidence.get("identity") for r in records if r.name == "condition"), None)
    identity = msgspec.convert(told, Identity) if told else None
    return Subject(device.name, device.transport, device.description, device.cores, device.threads, identity)


def _versions(device: Device) -> dict[str, str]:
    import importlib.metadata as metadata

    from acmix.toolkit.machine import versions

    found = {"acmix": metadata.version("acmix"), "python": platform.python_version(), **versions(PACKAGES)}
    words = {"adb": ["adb", "--version"], "ssh": ["ssh", "-V"]}.get(device.transport)
    return {**found, device.transport: _said(words)} if words else found


def _said(words: Sequence[str]) -> str:
    from acmix.toolkit.device import printable
    from acmix.toolkit.devices.adb import program
    from acmix.toolkit.state.reading import run_here

    done = run_here([program() if words[0] == "adb" else words[0], *words[1:]], timeout_s=15.0)
    return printable((done.stdout or done.stderr).partition(b"\n")[0], 120) or "unknown"


def _host() -> dict[str, str]:
    from acmix.toolkit.machine import describe

    return describe()


def _show(report: Report, out: Path) -> None:
    from rich.text import Text

    from acmix.apps import tables
    from acmix.apps.selftest.record import counts

    made = tables.table("check", "", "claim", "why")
    for each in report.records:
        made.add_row(each.name, Text(each.outcome, STYLES[each.outcome]), each.claim, each.reason)
    screen = console()
    screen.print(made)
    numbers = ", ".join(f"{count} {outcome}" for outcome, count in counts(report.records).items())
    screen.print(f"{report.device.name}: {numbers}. Written down: {out}", soft_wrap=True)
