"""Where output goes: JSON to stdout, words to stderr, runtimes' noise to a log."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

JSON_SCHEMA_VERSION = 1


def console() -> Console:
    """Where people read: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, width=None if sys.stderr.isatty() else 160)


def print_json(verb: str, **content: Any) -> None:
    """One JSON object on stdout, with the schema version first."""
    import msgspec

    sys.stdout.buffer.write(
        msgspec.json.encode({"schema_version": JSON_SCHEMA_VERSION, "verb": verb, **content}) + b"\n"
    )
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def log_file(beside: Path, verb: str) -> Iterator[Path]:
    """A log beside the artifact, kept only when something fails; in the temporary folder if that is not writable."""
    beside = beside.resolve()
    folder = beside.parent
    folder = folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())
    log = folder / f"{beside.name}.{verb}.log"
    log.unlink(missing_ok=True)
    yield log
    log.unlink(missing_ok=True)
