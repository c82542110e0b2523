"""An adaptive artifact: a folder with one ordinary artifact a network, policy.json and adaptive.json."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from acmix.toolkit.adaptive.spec import Run, Stage, check_stages, first_preprocess
from acmix.toolkit.artifact import MANIFEST, REFERENCE, Artifact, check_digests, open_artifact, sha256_of
from acmix.toolkit.errors import UsageError
from acmix.toolkit.policy import POLICY, Policy, Rule, check_policy, read_policy, write_policy
from acmix.toolkit.spec import Preprocess
from acmix.toolkit.verify import SampleSet, Verdict

SCHEMA_VERSION = 1
ADAPTIVE = "adaptive.json"


@dataclass(frozen=True)
class NetworkRecord:
    """One network of the folder: an ordinary artifact in `folder`, held by the digests of manifest and model.

    name: what the stages call it.  model: what the artifact itself is called.
    function: of the file that holds all networks; '' where the model file is the network's own.
    """

    name: str
    model: str
    folder: str
    manifest_sha256: str
    model_sha256: str
    size_bytes: int
    macs: int
    function: str = ""


@dataclass(frozen=True)
class Sharing:
    """Whether one file holds all networks, their equal weights once.

    file: its name in the folder; '' where each network keeps a file of its own: reason says why.
    size_bytes: of one file; 0 where there cannot be one.  separate_bytes: of the networks' own files.
    """

    file: str
    size_bytes: int
    separate_bytes: int
    reason: str = ""


@dataclass(frozen=True)
class WayProof:
    """Whether the artifact goes the way of eager float32: the same exits, crops and answers, photo by photo.

    within_margin: photos that differ, each with a confidence so near its threshold, or a predicted place so near
    the next pixel, that the files' tolerance explains it.  confidence_error, place_error_pixels: the largest.
    confidence_margin, place_margin_pixels: the largest that was granted.
    """

    verdict: Verdict
    photos: int
    same_exit: int
    same_crops: int
    same_answer: int
    within_margin: int
    confidence_error: float
    confidence_margin: float
    place_error_pixels: float
    place_margin_pixels: float
    worst_photo: str = ""
    reason: str = ""


def not_proven(reason: str) -> WayProof:
    """No proof, and why."""
    return WayProof("not executed", 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, reason=reason)


NOT_PROVEN_AGAIN = not_proven("the thresholds were chosen anew; acmix verify runs them on seeded images")


@dataclass(frozen=True)
class AdaptiveManifest:
    """adaptive.json: what the folder holds, how it runs, and what is known of it. docs/adaptive.md explains it.

    exit_macs: multiply-accumulates up to each exit.  exit_rates: on the calibration photos; empty without any.
    reference_sha256: of reference.npz, what eager says of seeded images: `acmix verify` needs no torch and no photo.
    sharing: None where nobody asked for one file.
    """

    acmix: str
    name: str
    source: str
    target: str
    precision: str
    networks: tuple[NetworkRecord, ...]
    stages: tuple[Stage, ...]
    rule: Rule
    policy_sha256: str
    reference_sha256: str
    thresholds: tuple[float, ...]
    exit_rates: tuple[float, ...]
    exit_macs: tuple[int, ...]
    random_weights: bool
    proof: WayProof
    samples: tuple[SampleSet, ...]
    machine: dict[str, str]
    labels: tuple[str, ...] = ()
    paper: str = ""
    seed: int = 0
    sharing: Sharing | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def first_preprocess(self) -> Preprocess:
        """How the first stage sees a photo."""
        return first_preprocess(self.stages)


@dataclass(frozen=True)
class AdaptiveArtifact:
    """An adaptive artifact, read and checked: its manifest, its policy, an artifact for each network."""

    folder: Path
    manifest: AdaptiveManifest
    policy: Policy
    networks: dict[str, Artifact]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def size_bytes(self) -> int:
        """Of all model files: a network of several stages once, a file of several networks once."""
        return sum({one.model_file: one.size_bytes for one in self.networks.values()}.values())


def is_adaptive(folder: Path) -> bool:
    """Whether a folder is an adaptive artifact."""
    return (folder / ADAPTIVE).is_file()


def exit_macs(stages: Sequence[Stage], macs: dict[str, int]) -> tuple[int, ...]:
    """Multiply-accumulates up to each exit, from those of each network."""
    total, sums = 0, []
    for stage in stages:
        total += sum(macs[step.network] for step in stage.steps if isinstance(step, Run))
        sums.append(total)
    return tuple(sums)


def network_record(folder: Path, name: str, artifact: Artifact) -> NetworkRecord:
    """What adaptive.json says of a network's artifact inside `folder`."""
    inside = artifact.folder.relative_to(folder).as_posix()
    manifest = artifact.manifest
    digest = sha256_of(artifact.folder / MANIFEST)
    model = manifest.model
    sha256 = manifest.files[0].sha256
    size, function = artifact.size_bytes, manifest.function
    return NetworkRecord(name, model.name, inside, digest, sha256, size, model.macs, function)


def write_adaptive(folder: Path, manifest: AdaptiveManifest) -> None:
    """Write adaptive.json, indented."""
    (folder / ADAPTIVE).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")


def replace_policy(artifact: AdaptiveArtifact, policy: Policy) -> AdaptiveArtifact:
    """Give an artifact other thresholds, and record them; raises UsageError when they do not fit its stages.

    The proof of the way held for the old thresholds and goes with them: `acmix verify` proves it again.
    """
    check_policy(policy, [stage.name for stage in artifact.manifest.stages])
    with tempfile.TemporaryDirectory(dir=artifact.folder.parent, prefix=f".{artifact.name}.") as scratch:
        staged = Path(scratch)
        write_policy(staged / POLICY, policy)
        rates = policy.calibration.exit_rates if policy.calibration else ()
        manifest = replace(
            artifact.manifest,
            rule=policy.rule,
            policy_sha256=sha256_of(staged / POLICY),
            thresholds=policy.thresholds,
            exit_rates=rates,
            proof=NOT_PROVEN_AGAIN,
        )
        write_adaptive(staged, manifest)
        # Each file appears whole; between the two, the digest tells that they do not belong together.
        (staged / POLICY).replace(artifact.folder / POLICY)
        (staged / ADAPTIVE).replace(artifact.folder / ADAPTIVE)
    return open_adaptive(artifact.folder)


def read_adaptive(folder: Path) -> AdaptiveManifest:
    """adaptive.json of a folder; raises UsageError when it is missing, malformed or of another version."""
    path = folder / ADAPTIVE
    if not path.is_file():
        raise UsageError(
            f"{folder} is no adaptive artifact: it has no {ADAPTIVE}.\n"
            "Give a folder that acmix-export wrote for a cascade or another adaptive model."
        )
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data).get("schema_version")
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"{path} has schema version {version}; this acmix reads {SCHEMA_VERSION}.\nExport the model again."
            )
        manifest = msgspec.json.decode(data, type=AdaptiveManifest)
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, OSError) as error:
        raise UsageError(f"{path} cannot be read: {error}\nExport the model again.") from error
    check_stages(manifest.stages, {record.name for record in manifest.networks})
    return manifest


def open_adaptive(folder: Path) -> AdaptiveArtifact:
    """Read an adaptive artifact and check that it is whole.

    Raises UsageError for a changed, missing or swapped file, and for a policy that does not fit the stages.
    """
    manifest = read_adaptive(folder)
    networks = {record.name: _open_network(folder, record, manifest) for record in manifest.networks}
    policy = read_policy(folder / POLICY, [stage.name for stage in manifest.stages])
    if (found := sha256_of(folder / POLICY)) != manifest.policy_sha256:
        raise UsageError(
            f"{folder / POLICY} has changed: its sha256 is {found[:12]}..., {ADAPTIVE} says "
            f"{manifest.policy_sha256[:12]}...\nSet thresholds by `acmix exits`, which records them."
        )
    reference = folder / REFERENCE
    if not reference.is_file() or sha256_of(reference) != manifest.reference_sha256:
        raise UsageError(f"{reference} is missing or has changed since it was exported.\nExport the model again.")
    return AdaptiveArtifact(folder, manifest, policy, networks)


def _open_network(folder: Path, record: NetworkRecord, manifest: AdaptiveManifest) -> Artifact:
    place = folder / record.folder
    if not place.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{folder / ADAPTIVE} names {record.folder!r}, outside its own folder.")
    artifact = open_artifact(place)
    found = artifact.manifest
    if (found.model.name, found.target.name, found.function) != (record.model, manifest.target, record.function):
        raise UsageError(
            f"{place} holds {found.model.name} for {found.target.name}; this place is for {record.model} for "
            f"{manifest.target}.\nPut the right files back, or export the model again."
        )
    check_digests(artifact)
    if found.files[0].sha256 != record.model_sha256 or sha256_of(place / MANIFEST) != record.manifest_sha256:
        raise UsageError(
            f"{place} is not the artifact that was exported into {folder.name}: its digest differs from "
            f"{ADAPTIVE}.\nPut the right files back, or export the model again."
        )
    return artifact
