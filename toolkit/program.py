"""Captured programs as files: saved for the lowering processes, and read without running what is in them."""

from __future__ import annotations

import copy
import logging
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# Registers the operators of quantized programs, ours and those of torchao's PT2E: without it they cannot be read.
from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib  # noqa: F401
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from acmix.toolkit.errors import UsageError


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warnings about its own deprecations."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program for the lowering processes."""
    with quiet():
        torch.export.save(program, path)


def copy_program(program: ExportedProgram) -> ExportedProgram:
    """A copy with weights of its own, so that rules can change either in place.

    A deep copy names its nodes anew; the signature still has the old names, which are renamed here.
    """
    with quiet():
        made = copy.deepcopy(program)
    pairs = zip(program.graph.nodes, made.graph.nodes, strict=True)
    names = {old.name: new.name for old, new in pairs}
    for spec in (*made.graph_signature.input_specs, *made.graph_signature.output_specs):
        if isinstance(spec.arg, TensorArgument):
            spec.arg = TensorArgument(name=names[spec.arg.name])
    return made


RUNS_CODE = ("opaque_obj", "custom_obj", "aotinductor")
"""Parts of an archive that torch.export.load unpickles or loads as a library."""

POINTS_AT_CODE = re.compile(r'"path_name"\s*:\s*"(?:opaque_obj|custom_obj|[^"]*\\)[^"]*"')
"""A tensor that names such a part as its file, escaped or not."""


def _refuse_code(path: Path) -> None:
    """Refuse an archive whose loading could run code: pickled objects, libraries, size expressions (evaluated)."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            texts = [archive.read(n).decode("utf-8", "replace") for n in names if n.endswith(".json")]
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} is not a saved ExportedProgram: {error}.\nSave it again.") from error
    if not any("/models/" in name for name in names):
        raise UsageError(f"{path} is not an archive of torch {torch.__version__.split('+')[0]}.\nSave it again.")
    found = next((n for n in names if any(part.startswith(RUNS_CODE) for part in n.split("/"))), None)
    found = found or next((match[0] for text in texts if (match := POINTS_AT_CODE.search(text))), None)
    if found:
        raise UsageError(f"{path} holds {found}, which could run code: refused.")
    if any('"as_expr"' in text for text in texts):
        raise UsageError(
            f"{path} has a dynamic shape, written as an expression.\n"
            "Capture it with torch.export.export(...) without dynamic_shapes."
        )


def load_program(path: Path) -> ExportedProgram:
    """Read a .pt2; no pickled code runs.

    Raises UsageError when the file is missing, is no program, or holds objects that only pickle can make.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}.\nSave one with torch.export.save(program, 'captured.pt2').")
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path} is not a saved ExportedProgram: it is truncated or of another kind.\nSave it again.")
    _refuse_code(path)
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:
        raise UsageError(
            f"{path} cannot be read as an ExportedProgram: {type(error).__name__}: {str(error)[:200]}\n"
            f"Save it again with torch.export.save of torch {torch.__version__.split('+')[0]}."
        ) from error
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
