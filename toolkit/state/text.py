"""Untrusted text of a device: bounded, and numbers only where they are numbers."""

from __future__ import annotations

import re

from acmix.toolkit.conditions import Run
from acmix.toolkit.device import printable
from acmix.toolkit.errors import AcmixError

LIMIT_CHARACTERS = 2**18
MOST_CPUS = 1024
TIMEOUT_S = 5.0
_WHOLE = re.compile(r"\s*(-?[0-9]{1,18})\s*", re.ASCII)
_DECIMAL = re.compile(r"\s*(-?[0-9]{1,15}(?:\.[0-9]{1,15})?)\s*", re.ASCII)
_SPAN = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)


def output_of(run: Run, *command: str) -> str | None:
    """What a command printed; None when it failed, is not there, or the device went away."""
    try:
        done = run(command, timeout_s=TIMEOUT_S)
    except (AcmixError, OSError):
        return None
    return done.stdout[:LIMIT_CHARACTERS].decode("utf-8", "replace") if done.code == 0 else None


def whole(text: str | None) -> int | None:
    """A whole number, alone."""
    found = _WHOLE.fullmatch(text[:40]) if text else None
    return int(found[1]) if found else None


def decimal(text: str | None) -> float | None:
    """A decimal number, alone."""
    found = _DECIMAL.fullmatch(text[:40]) if text else None
    return float(found[1]) if found else None


def word(text: str | None, limit: int = 80) -> str | None:
    """A name for a person: no control characters; None when nothing is left."""
    # Device trees end their strings with NUL.
    return printable(text.split("\0")[0], limit) or None if text else None


def cpu_list(text: str | None) -> tuple[int, ...] | None:
    """'0-3,5' or '0 1 2' as numbers; None when it is anything else."""
    parts = re.split(r"[,\s]+", text.strip()) if text and len(text) < 4096 else []
    spans = [_SPAN.fullmatch(part) for part in parts]
    if not spans or any(span is None for span in spans):
        return None
    cpus: set[int] = set()
    for span in spans:
        if span is None or (last := int(span[2] or span[1])) > MOST_CPUS:
            return None
        cpus.update(range(int(span[1]), last + 1))
    return tuple(sorted(cpus)) or None


def milli(value: int | None) -> float | None:
    """Thousandths as units."""
    return None if value is None else value / 1000
