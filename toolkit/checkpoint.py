"""Reading a checkpoint file without running its code: tensors by name, whatever dict they are wrapped in."""

from __future__ import annotations

import argparse
import os
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from acmix.toolkit.errors import UsageError, did_you_mean

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin")
LARGEST_CHECKPOINT_BYTES = 4 * 2**30
WRAPPERS = ("model", "state_dict", "state_dict_ema", "model_ema")
LONE_WRAPPER = "model_state_dict"
"""What DVT's files call all of their weights; in GFNet's it is one network of several."""
CONFIGURATION = "yacs.config.CfgNode"
"""What Swin's files keep beside their weights: a dict that has attributes, read as the one that torch allows."""
# What numpy arrays and scalars name when torch.save writes them (numpy 2 says _core, numpy 1 core): GFNet's tables.
IGNORED_NAMES = (
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)
SAVE_AGAIN = "Save it again where it is trusted: torch.save(dict(model.state_dict()), 'weights.pth')"


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors, .pth, .pt, .tar or .bin file, on the CPU. No code in the file runs.

    A training checkpoint is unwrapped: `model` or `state_dict` first, which is what the papers' own loaders
    take, and the averages `state_dict_ema` or `model_ema` only where a file has neither.
    A file of several state dicts and none of those names (GFNet's networks) gives all of them, each key after the
    name of its own: `policy.actor.0.weight`. Tables and settings beside them are left out.
    A `module.` that begins every key (DataParallel) is cut off.
    Raises UsageError for a file that is missing, damaged, hostile, or holds anything but tensors.
    """
    check_file(path)
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_pickled(path)
    return without_prefix(checked(path, unwrapped(path, content)))


def check_file(path: Path) -> None:
    """Refuse what cannot be a checkpoint, before any byte of it is parsed."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name the checkpoint file in it ({', '.join(SUFFIXES)})")
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} does not end in a checkpoint suffix. Known: {', '.join(SUFFIXES)}")
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
    except FileNotFoundError as error:
        siblings = [p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES]
        raise UsageError(f"there is no file {path}.{did_you_mean(path.name, siblings)}") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    if size == 0:
        raise UsageError(f"{path} is empty; download or copy it again")
    if size > LARGEST_CHECKPOINT_BYTES:
        raise UsageError(f"{path} has {size:,} bytes; a backbone's checkpoint has at most 4 GiB")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise UsageError(unreadable(path, str(error))) from error


class IgnoredValue:
    """Stands where a file has a numpy value: takes whatever builds one, and keeps nothing.

    numpy's own constructors trust the bytes that they are given, so no file gets to call them.
    """

    def __new__(cls, *_: object) -> IgnoredValue:
        return object.__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Nothing is restored."""


def read_pickled(path: Path) -> Any:
    """Whatever torch.save wrote, zip or legacy format, as far as it is made of tensors and plain values."""
    if zipfile.is_zipfile(path):
        check_archive(path)
    try:
        # Official LSNet and DeiT files keep their command line beside the weights: a plain bag of values.
        ignored = [(IgnoredValue, name) for name in IGNORED_NAMES]
        known: list[Any] = [argparse.Namespace, (OrderedDict, CONFIGURATION), *ignored]
        with torch.serialization.safe_globals(known), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a parser of foreign bytes fails in any way that there is
        raise UsageError(unreadable(path, str(error))) from error


def check_archive(path: Path) -> None:
    """Refuse a zip that unpacks to far more than it holds: torch.save never compresses."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as error:
        raise UsageError(unreadable(path, str(error))) from error
    size = path.stat().st_size
    if unpacked > 2 * size or unpacked > LARGEST_CHECKPOINT_BYTES:
        declared = f"{size:,} bytes that declare {unpacked:,} bytes of content"
        raise UsageError(f"{path} has {declared}, which torch.save never writes. {SAVE_AGAIN}")


def unreadable(path: Path, reason: str) -> str:
    """Why torch refused a file, in a sentence, and what to do."""
    if wanted := re.search(r"GLOBAL ([\w.]+)", reason):
        wish = f"{path} wants to run or build {wanted[1]!r} while it loads, which acmix never allows"
        return f"{wish}: a checkpoint is tensors in a dict. {SAVE_AGAIN}"
    if "TorchScript" in reason:
        return f"{path} is a TorchScript program, not a checkpoint. Load it with torch.jit.load. {SAVE_AGAIN}"
    first = reason.split(". ")[0].strip()[:160] or "no reason given"
    return f"{path} is cut off, damaged or no checkpoint at all ({first}). Download or copy it again"


def unwrapped(path: Path, content: Any) -> Mapping[Any, Any]:
    """The mapping that holds the tensors: the first of WRAPPERS in the content, all its state dicts, or the content."""
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} holds a {type(content).__name__}, not a dict of tensors. {SAVE_AGAIN}")
    # Before any look at tensors: training scripts keep the best accuracy beside the weights, as a tensor.
    for name in WRAPPERS:
        if isinstance(content.get(name), Mapping):
            return dict(content[name])
    parts = {name: value for name, value in content.items() if is_state_dict(value)}
    if list(parts) == [LONE_WRAPPER]:
        return dict(content[LONE_WRAPPER])
    if len(parts) > 1:
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    if any(isinstance(value, Tensor) for value in content.values()):
        return content
    raise UsageError(f"{path} holds no tensors and none of {', '.join(WRAPPERS)}; it has: {few(content) or 'nothing'}")


def is_state_dict(value: object) -> bool:
    """Whether it is a mapping of tensors, and of nothing else."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def checked(path: Path, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The same entries, once each is known to be a plain tensor with its data under a text key."""
    if not state:
        raise UsageError(f"{path} holds an empty state dict. {SAVE_AGAIN}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UsageError(f"entry {key!r} of {path} is a {type(value).__name__}, not a tensor. {SAVE_AGAIN}")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            kind = f"{value.layout}, {value.dtype}, {value.device.type}"
            raise UsageError(f"entry {key!r} of {path} is {kind}; weights must be dense, plain and with data")
    return {key: value.detach() for key, value in state.items()}


def without_prefix(state: dict[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    """The state without a prefix, if every key begins with it."""
    common = all(key.startswith(prefix) for key in state)
    return {key.removeprefix(prefix): value for key, value in state.items()} if common else state


def few(names: Iterable[object], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    listed = [str(name) for name in names]
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest
