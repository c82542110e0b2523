"""Proof again, from the folder alone: what eager said of seeded images is stored beside the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acmix.toolkit.adaptive.artifact import AdaptiveArtifact, WayProof, not_proven
from acmix.toolkit.adaptive.engine import StageResult, StageTime, Trace
from acmix.toolkit.adaptive.observe import every_stage
from acmix.toolkit.adaptive.photos import SeededPhotos
from acmix.toolkit.adaptive.proof import margins, prove_way
from acmix.toolkit.adaptive.runner import load_adaptive
from acmix.toolkit.artifact import REFERENCE, executed_by
from acmix.toolkit.errors import UsageError
from acmix.toolkit.reproof import reprove
from acmix.toolkit.target import Array
from acmix.toolkit.verify import Proof

SEEDED_PHOTOS = 8


@dataclass(frozen=True)
class AdaptiveProof:
    """What verifying showed: each network against its own reference outputs, then the way through all of them."""

    networks: dict[str, Proof]
    way: WayProof

    @property
    def failed(self) -> bool:
        return "failed" in (self.way.verdict, *(proof.verdict for proof in self.networks.values()))


def write_reference(path: Path, traces: Sequence[Trace]) -> None:
    """Store logits, predicted places and corners of traces through every stage."""
    arrays = {}
    for number, trace in enumerate(traces):
        for stage in trace.stages:
            arrays[f"{number}/{stage.stage}/logits"] = stage.logits
            for value, corner in stage.corners.items():
                arrays[f"{number}/{stage.stage}/corner/{value}"] = np.asarray(corner)
                arrays[f"{number}/{stage.stage}/action/{value}"] = stage.actions[value]
    np.savez(path, allow_pickle=False, **arrays)


def read_reference(path: Path, stages: Sequence[str]) -> list[Trace]:
    """The stored traces; raises UsageError when the file holds something else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        return [Trace(tuple(_result(arrays, f"{i}/{stage}", stage) for stage in stages)) for i in range(SEEDED_PHOTOS)]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path} cannot be read: {error}\nExport the model again.") from error


def _result(arrays: Mapping[str, Array], key: str, stage: str) -> StageResult:
    values = [name.rpartition("/")[2] for name in arrays if name.startswith(f"{key}/corner/")]
    corners = {value: (int(c[0]), int(c[1])) for value in values for c in [arrays[f"{key}/corner/{value}"]]}
    actions = {value: arrays[f"{key}/action/{value}"] for value in values}
    return StageResult(stage, arrays[f"{key}/logits"], float("nan"), corners, actions, StageTime(0, 0, 0))


def reprove_adaptive(artifact: AdaptiveArtifact, log: Path) -> AdaptiveProof:
    """Run every network on its probes, then the whole on seeded images; needs the runtime, not torch.

    The folder was checked when it was opened: digests, policy, stages.
    """
    proofs = {name: reprove(network, log) for name, network in artifact.networks.items()}
    return AdaptiveProof(proofs, _reprove_way(artifact))


def _reprove_way(artifact: AdaptiveArtifact) -> WayProof:
    for network in artifact.networks.values():
        by, reason = executed_by(network)
        if not by:
            return not_proven(reason)
    manifest = artifact.manifest
    wanted = read_reference(artifact.folder / REFERENCE, [stage.name for stage in manifest.stages])
    photos = SeededPhotos(SEEDED_PHOTOS, manifest.seed)
    with load_adaptive(artifact) as loaded:
        found = every_stage(loaded, photos)
    return prove_way(
        photos.identifiers, wanted, found, artifact.policy, margins(manifest.stages, agreement_db(artifact))
    )


def agreement_db(artifact: AdaptiveArtifact) -> float:
    """The least agreement that any of the networks' files was asked for.

    Files that were exported where nothing ran them were asked for their tolerances.
    """
    manifests = [network.manifest for network in artifact.networks.values()]
    return min(
        db
        for one in manifests
        for db in [a.asked_db for a in one.proof.agreements]
        or [t.snr_db for t in one.tolerances]
        or [one.recipe.tolerance.snr_db]
    )
