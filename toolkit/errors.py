"""The error tree.

AcmixError           anything we explain to the user in a sentence
├── UsageError       exit 2: bad input, an unsupported combination, a missing package, a full disk
└── GateError        exit 1: the work was done and its result is not good enough
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AcmixError(Exception):
    """An error whose text is for the user: what failed, what would have worked, what to do."""

    exit_code = 2


class UsageError(AcmixError):
    """Bad input or something that this installation cannot do."""


class GateError(AcmixError):
    """Finished, and not good enough: agreement, accuracy, delegation."""

    exit_code = 1


DISK_FULL = "the disk is full at {place}.\nFree some space, or choose another folder: --out DIR."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean a or b?' for the closest known words, '' when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""
