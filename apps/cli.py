"""The programs acmix and acmix-export: the verbs put together, errors turned into sentences and exit codes."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Callable
from typing import Any

import typer

from acmix.apps import analyze, devices, export, profile, verbs
from acmix.apps.output import print_json
from acmix.apps.selftest.command import selftest
from acmix.toolkit.errors import DISK_FULL, AcmixError

app = typer.Typer(
    name="acmix",
    help="Export vision backbones to Core ML, TFLite, ExecuTorch and ONNX; prove every file by running it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("list")(verbs.list_room)
app.command("export")(export.export_model)
for verb in (verbs.verify, verbs.inspect, verbs.evaluate, verbs.compare, verbs.exits, profile.profile, verbs.doctor):
    app.command()(verb)
app.command()(analyze.analyze)
app.command()(selftest)
app.add_typer(devices.app, name="devices")


def _usage(error: Exception) -> tuple[str, int]:
    """The sentence for what typer refuses; anything else is a defect of ours and keeps its traceback."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return f"{error.format_message()}\n`acmix --help` lists the verbs, `acmix VERB --help` their flags.", 2
    raise error


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM: not an Exception, so that nothing on the way up takes it for a failure of its own."""


def _interrupt(*_: object) -> None:
    raise Interrupted


def _explain(error: BaseException) -> tuple[str, int]:
    """The sentence and the exit code for an error that reached the top."""
    if isinstance(error, AcmixError):
        return str(error), error.exit_code
    if isinstance(error, Interrupted):
        return "interrupted: nothing half-written was left behind.", 2
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DISK_FULL.format(place=error.filename or "the output folder"), 2
    if isinstance(error, OSError):
        return f"{error.filename or 'the system'}: {error.strerror or error}.", 2
    raise error


def guard(command: Callable[[], Any]) -> None:
    """Run a program: errors become sentences and exit codes, never tracebacks."""
    for interruption in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interruption, _interrupt)
    try:
        command()
    except (AcmixError, Interrupted, OSError) as error:
        sentence, code = _explain(error)
    except Exception as error:
        sentence, code = _usage(error)
    else:
        return
    first, *rest = sentence.splitlines()
    print("\n".join([f"acmix: {first}", *(f"       {line}" for line in rest)]), file=sys.stderr)
    if "--json" in sys.argv:
        print_json("error", error=sentence, exit_code=code)
    sys.exit(code)


def _run() -> None:
    # Without standalone mode typer returns the code of typer.Exit instead of leaving with it.
    if code := app(standalone_mode=False):
        sys.exit(code)


def main() -> None:
    """The program `acmix`."""
    guard(_run)


def main_export() -> None:
    """The program `acmix-export`: `acmix export` by a shorter name."""
    sys.argv.insert(1, "export")
    guard(_run)
