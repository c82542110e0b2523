"""Importing coremltools without the frameworks that it only looks for."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from acmix.toolkit.imports import collecting_nothing

# coremltools tries each of these at import, to offer converters and operators that we never call.
PROBED = frozenset(
    {
        "executorch",
        "keras",
        "libsvm",
        "pandas",
        "sklearn",
        "tensorflow",
        "torchao",
        "torchaudio",
        "torchvision",
        "transformers",
        "xgboost",
    }
)


class _Absent:
    """A module finder that lets one thread find none of the given packages; other threads see no change."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.thread = threading.get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if name in self.names and threading.get_ident() == self.thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def coremltools() -> Any:
    """The coremltools module, imported in half a second in place of four.

    A package of PROBED that is already imported stays visible to it; the others are hidden meanwhile.
    """
    if "coremltools" in sys.modules:
        return sys.modules["coremltools"]
    if "executorch" in sys.modules:
        # Where coremltools sees it, it imports this, which looks for some of the others.
        importlib.import_module("executorch.exir")
    finder: Any = _Absent(PROBED - sys.modules.keys())
    sys.meta_path.insert(0, finder)
    try:
        with quiet(), collecting_nothing():
            return importlib.import_module("coremltools")
    finally:
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without coremltools' progress bars and its remarks on versions and on not being on a Mac."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
