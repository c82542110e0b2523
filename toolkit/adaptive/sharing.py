"""Weights stored once: the networks of an adaptive artifact as functions of one file, where that saves anything."""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from acmix.toolkit import catalog
from acmix.toolkit.adaptive.artifact import Sharing
from acmix.toolkit.adaptive.runner import load_networks
from acmix.toolkit.artifact import BESIDE, Artifact, digest_files, executed_by, probes_of, sha256_of, write_manifest
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.execute import file_inputs
from acmix.toolkit.join import join
from acmix.toolkit.joining import JoinRequest, Part
from acmix.toolkit.manifest import FileDigest
from acmix.toolkit.profile import interface_of
from acmix.toolkit.request import TargetRequest
from acmix.toolkit.target import Target

if TYPE_CHECKING:
    from torch import nn

LEAST_SAVED = 0.05
"""What one file has to save of the separate ones: operators and names of a network come with its weights."""
NOTE = "the network is the function '{function}' of a file of several; equal weights lie there once"


@dataclass(frozen=True)
class Shelf:
    """Where a joined file goes, what it is called, and the log, which stays only where joining fails."""

    folder: Path
    model: str
    log: Path


def function_names(networks: Mapping[str, object]) -> dict[str, str]:
    """A function's name for each network: letters, digits and _, as every format takes it.

    Raises UsageError for two networks whose names are one then.
    """
    names = {network: re.sub(r"\W", "_", re.sub(r"^(?=\d)", "_", network), flags=re.ASCII) for network in networks}
    for network, name in names.items():
        if alike := [other for other, found in names.items() if found == name and other != network]:
            raise UsageError(
                f"the networks {network!r} and {alike[0]!r} would both be the function {name!r} of one file.\n"
                "Give one of them another name, or leave --shared-weights out."
            )
    return names


def targets_to_share(networks: Mapping[str, object], targets: Sequence[TargetRequest]) -> tuple[TargetRequest, ...]:
    """The targets with the options that files to be joined are lowered with.

    Raises UsageError, before any work, for networks and options of which there can be no file of all networks.
    """
    function_names(networks)
    changed = []
    for asked in targets:
        joining = catalog.load_target(asked.name).joining
        if joining is not None and (reason := joining.refuses(asked.options)):
            raise UsageError(f"--shared-weights on {asked.name}: {reason}")
        changed.append(asked if joining is None else replace(asked, options=joining.options(asked.options)))
    return tuple(changed)


def nothing_in_common(modules: Sequence[nn.Module]) -> str:
    """Why one file of all these networks would save nothing, in a sentence; '' where they have equal weights.

    Told before anything is lowered: a file to be joined may be for newer systems than a file of its own.
    """
    import torch

    separate, sizes = 0, dict[bytes, int]()
    for tensor in (t for module in modules for t in itertools.chain(module.parameters(), module.buffers())):
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        separate += data.numel()
        sizes[hashlib.sha256(data.numpy().tobytes()).digest()] = data.numel()
    if len(modules) < 2 or not separate or sum(sizes.values()) <= (1 - LEAST_SAVED) * separate:
        return ""
    saved = 1 - sum(sizes.values()) / separate
    return (
        f"the networks share next to nothing: of {separate:,} bytes of weights one file would save {saved:.1%}, less "
        f"than {LEAST_SAVED:.0%}"
    )


def share_weights(
    networks: dict[str, Artifact], shelf: Shelf, unshared: str = ""
) -> tuple[dict[str, Artifact], Sharing]:
    """The networks in one file, their manifests changed to say so; as they are where that cannot be or saves nothing.

    unshared: what `nothing_in_common` said of them.
    Raises GateError where a network gives other numbers from the joined file than from its own.
    """
    first = next(iter(networks.values())).manifest
    target = catalog.load_target(first.target.name)
    separate = sum(artifact.size_bytes for artifact in networks.values())
    if reason := _cannot(networks, target) or unshared:
        return networks, Sharing("", 0, separate, reason)
    functions = function_names(networks)
    file = shelf.folder / f"model{target.suffix}"
    parts = tuple(_part(functions[name], artifact) for name, artifact in networks.items())
    join(target.name, JoinRequest(shelf.model, str(file), parts, first.labels), shelf.log)
    shelf.log.unlink()
    files = _digests(file)
    size = sum(record.size_bytes for record in files)
    if size > (1 - LEAST_SAVED) * separate:
        _remove(file)
        return networks, Sharing("", size, separate, _too_little(size, separate))
    made = {name: _in_file(artifact, functions[name], files) for name, artifact in networks.items()}
    refuse_other_numbers(networks, made)
    for name, artifact in networks.items():
        _remove(artifact.model_file)
        write_manifest(made[name].folder, made[name].manifest)
    return made, Sharing(file.name, size, separate)


def _cannot(networks: Mapping[str, Artifact], target: Target) -> str:
    if len(networks) < 2:
        return "there is one network only: its file holds its weights once as it is"
    if target.joining is None:
        return (
            f"the format of {target.name} has no functions that a caller chooses: each network keeps a file of its own"
        )
    return ""


def _too_little(size: int, separate: int) -> str:
    saved = max(0.0, 1 - size / separate)
    return (
        f"the networks share next to nothing: one file of all would take {size:,} bytes, the separate ones "
        f"{separate:,} ({saved:.1%} saved, less than {LEAST_SAVED:.0%}); what is for newer systems because of "
        "--shared-weights stays so: leave it out"
    )


def _part(function: str, artifact: Artifact) -> Part:
    manifest = artifact.manifest
    file = str(artifact.model_file)
    return Part(function, file, manifest.file_inputs, manifest.file_outputs, manifest.preprocess)


def _digests(file: Path) -> tuple[FileDigest, ...]:
    """The joined file by its path from a network's folder."""
    if file.is_file():
        return (FileDigest(f"{BESIDE}/{file.name}", sha256_of(file), file.stat().st_size),)
    return tuple(replace(one, path=f"{BESIDE}/{file.name}/{one.path}") for one in digest_files(file, ""))


def _remove(file: Path) -> None:
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink()


def _in_file(artifact: Artifact, function: str, files: tuple[FileDigest, ...]) -> Artifact:
    manifest = artifact.manifest
    own = artifact.model_file.name
    kept = tuple(record for record in manifest.files if Path(record.path).parts[0] != own)
    notes = (*manifest.target.notes, NOTE.format(function=function))
    told = replace(manifest.target, notes=notes)
    return replace(artifact, manifest=replace(manifest, function=function, files=(*files, *kept), target=told))


def refuse_other_numbers(separate: Mapping[str, Artifact], joined: Mapping[str, Artifact]) -> None:
    """Raise GateError unless every network gives the same bits from both files on its probes.

    Then the proof of its own file is the proof of its function. Where nothing runs there is no proof either.
    """
    if not all(executed_by(artifact)[0] for artifact in separate.values()):
        return
    with load_networks(separate, 1) as own, load_networks(joined, 1) as together:
        for name, artifact in separate.items():
            interface = interface_of(artifact)
            for probe in probes_of(artifact):
                fed = file_inputs(probe, interface)
                pairs = zip(own[name].run(fed), together[name].run(fed), strict=True)
                if not all(np.array_equal(one, other, equal_nan=True) for one, other in pairs):
                    raise GateError(
                        f"{name} gives other numbers from the file of all networks than from its own.\n"
                        "Export without --shared-weights."
                    )
