"""Published operating points: the `dynamic_threshold` table that GFNet's checkpoints carry, taken as it stands."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acmix.toolkit.checkpoint import IGNORED_NAMES, check_archive, check_file, unreadable
from acmix.toolkit.errors import UsageError

KEY = "dynamic_threshold"
LAST = -1e8
"""What the authors write as the threshold of the last exit: everything reaches it."""
DTYPES = ("f4", "f8")
LARGEST_TABLE = 100_000


class _Dtype:
    """Stands where a file has a numpy dtype: keeps its name."""

    def __new__(cls, name: object = "", *_: object) -> _Dtype:
        made = object.__new__(cls)
        made.name = str(name)
        return made

    def __setstate__(self, _: object) -> None:
        """Byte order is checked by name alone: the files are little-endian."""

    name: str


class _Array:
    """Stands where a file has a numpy array or scalar: keeps its bytes, until somebody asks for numbers."""

    def __new__(cls, *arguments: object) -> _Array:
        made = object.__new__(cls)
        # A scalar is built from its dtype and bytes, an array gets its state later.
        scalar = len(arguments) == 2 and isinstance(arguments[0], _Dtype)
        made.state = ((), *arguments) if scalar else None
        return made

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self.state = (shape, dtype, content) if not fortran else None

    state: tuple[Any, ...] | None

    def numbers(self) -> np.ndarray[Any, Any]:
        """The values; raises ValueError for what is no small table of floats."""
        if self.state is None:
            raise ValueError("an array without plain content")
        shape, dtype, content = self.state
        if not isinstance(dtype, _Dtype) or dtype.name not in DTYPES:
            raise ValueError("no array of floats")
        if not isinstance(content, bytes) or len(content) > 8 * LARGEST_TABLE:
            raise ValueError("no table of floats")
        return np.frombuffer(content, np.dtype(dtype.name).newbyteorder("<")).reshape(shape)


def published_thresholds(file: str) -> tuple[tuple[float, ...], ...]:
    """The rows of a checkpoint's table, cheapest first: thresholds of all exits but the last.

    Nothing in the file runs.  Raises UsageError where there is no such table.
    """
    path = Path(file)
    check_file(path)
    content = _loaded(path)
    if not isinstance(content, dict) or KEY not in content:
        raise UsageError(f"{path} has no table {KEY!r}.\nCalibrate on photos instead: --exits accuracy=0.5.")
    try:
        rows = np.asarray(_plain(content[KEY]), np.float64)
    except (ValueError, TypeError) as error:
        raise UsageError(f"the table {KEY!r} of {path} cannot be read: {error}") from error
    if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all() or (rows[:, -1] > 0).any():
        raise UsageError(
            f"the table {KEY!r} of {path} has shape {rows.shape}; it needs one row an operating point, finite, whose "
            f"last threshold is out of the way ({LAST:g})."
        )
    return tuple(tuple(row.tolist()) for row in rows[:, :-1])


def _loaded(path: Path) -> Any:
    # Scalars and arrays of numpy 1 and 2; the constructors that the file names never run.
    stand_ins: list[Any] = [(_Dtype if name.endswith("dtype") else _Array, name) for name in IGNORED_NAMES]
    try:
        check_archive(path)
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # a parser of foreign bytes fails in any way that there is
        raise UsageError(unreadable(path, str(error))) from error


def _plain(value: Any) -> Any:
    """Lists of numbers, whatever the table was kept in."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, _Array):
        return value.numbers().tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float | int) and math.isfinite(value):
        return float(value)
    raise TypeError(f"a {type(value).__name__} in the table")
