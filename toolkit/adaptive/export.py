"""The flow for adaptive models: an export a network, then for each target a policy, a proof of the way, a folder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from acmix.toolkit import machine, pipeline
from acmix.toolkit.adaptive.artifact import (
    AdaptiveArtifact,
    AdaptiveManifest,
    WayProof,
    exit_macs,
    network_record,
    not_proven,
    open_adaptive,
    write_adaptive,
)
from acmix.toolkit.adaptive.engine import Trace
from acmix.toolkit.adaptive.observe import Recorded, every_stage, record_inputs
from acmix.toolkit.adaptive.photos import Photos, SeededPhotos
from acmix.toolkit.adaptive.proof import margins, prove_way
from acmix.toolkit.adaptive.reference import SEEDED_PHOTOS, write_reference
from acmix.toolkit.adaptive.runner import Loaded, eager_model, load_stages
from acmix.toolkit.adaptive.sharing import Shelf, nothing_in_common, share_weights, targets_to_share
from acmix.toolkit.adaptive.spec import AdaptiveSpec, check_spec
from acmix.toolkit.adaptive.unrolled import refuse_one_file
from acmix.toolkit.artifact import REFERENCE, Artifact, sha256_of
from acmix.toolkit.errors import AcmixError, UsageError
from acmix.toolkit.policy import POLICY, Policy, policy_of, write_policy
from acmix.toolkit.request import ExportRequest, Outcome, TargetRequest, refuse_early
from acmix.toolkit.seal import move_into_place
from acmix.toolkit.verify import SampleSet
from acmix.toolkit.warm import kept_warm

if TYPE_CHECKING:
    from acmix.toolkit.capture import Network
    from acmix.toolkit.quantized import Calibrator

PROOF_PHOTOS = 32
"""How many photos' inputs each network's file is proven on, beside the probes."""
RANGE_PHOTOS = 128
"""How many photos' inputs find the ranges of integer activations."""

Calibrate = Callable[[list[Trace], Photos, tuple[int, ...], bool], Policy]
"""Chooses thresholds from a file's traces: given the photos, the MACs up to each exit, and whether times count."""


@dataclass(frozen=True)
class AdaptiveRequest:
    """What an adaptive export is asked for.

    base: recipe, targets, folder and flags, as for an ordinary export; its source stands for the first network.
    photos: to calibrate and to prove on.  calibrate: chooses the thresholds of each target.
    calibrator: for integer activations, finds the ranges of one network over what it gets on the photos.
    remarks: what the checks found to say of the photos.
    shared_weights: one file a target with all networks, equal weights once, where the format can.
    """

    spec: AdaptiveSpec
    base: ExportRequest
    photos: Photos
    calibrate: Calibrate
    calibrator: Callable[[Recorded], Calibrator] | None = None
    remarks: tuple[str, ...] = ()
    shared_weights: bool = False

    def folder(self, target: TargetRequest) -> Path:
        """The finished artifact's place."""
        return self.base.out / f"{self.spec.name}-{target.name}-{self.base.recipe.name}"


@dataclass(frozen=True)
class AdaptiveOutcome:
    """What became of one target: an adaptive artifact, or an error."""

    target: str
    artifact: AdaptiveArtifact | None = None
    error: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class _Eager:
    """The published networks: their traces on the photos and on seeded images, and inputs for each network.

    unshared: why no file of all networks is made of them, where one was asked for.
    """

    traces: list[Trace]
    seeded: list[Trace]
    samples: dict[str, Recorded]
    random_weights: bool
    unshared: str


def export_adaptive(request: AdaptiveRequest, progress: pipeline.Progress) -> list[AdaptiveOutcome]:
    """Export every network to every target, then choose thresholds, prove the way and seal a folder a target.

    Raises UsageError before any work for what cannot be done at all, and for networks that cannot be captured.
    """
    joined = targets_to_share(request.spec.networks, request.base.targets) if request.shared_weights else ()
    _refuse(request)
    progress("", "capture", 0.0)
    eager = _eager(request)
    if joined and not eager.unshared:
        request = replace(request, base=replace(request.base, targets=joined))
    out = request.base.out
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _export_all(request, eager, progress)
    except BaseException:
        if made:
            # A folder that holds something stays.
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


def _export_all(request: AdaptiveRequest, eager: _Eager, progress: pipeline.Progress) -> list[AdaptiveOutcome]:
    with tempfile.TemporaryDirectory(prefix=f".{request.spec.name}.", dir=request.base.out) as scratch:
        made: dict[str, list[Outcome]] = {}
        with kept_warm():
            for name in request.spec.networks:
                asked = _network_request(request, name, Path(scratch) / name, eager)
                made[name] = pipeline.export(asked, _prefixed(name, progress))
        return [
            _finish(request, target, {name: outcomes[i] for name, outcomes in made.items()}, eager, Path(scratch))
            for i, target in enumerate(request.base.targets)
        ]


def _refuse(request: AdaptiveRequest) -> None:
    spec, base = request.spec, request.base
    check_spec(spec)
    if base.takes_image:
        raise UsageError("--image-input is for single networks: stages pass normalised images on.\nLeave it out.")
    refuse_one_file(spec, base.weights)
    if base.recipe.needs_ranges and request.calibrator is None:
        raise UsageError(f"--precision {base.recipe.name} needs the ranges of activations, and nobody to find them.")
    if not len(request.photos):
        raise UsageError("an adaptive export needs photos to choose its thresholds on.\nAdd --photos FOLDER.")
    for folder in map(request.folder, base.targets):
        if folder.exists() and not base.overwrite:
            raise UsageError(f"{folder} exists already.\nAdd --overwrite to replace it, or choose another --out.")
    refuse_early(replace(base, overwrite=True))


def _prefixed(name: str, progress: pipeline.Progress) -> pipeline.Progress:
    return lambda target, stage, seconds: progress(f"{name} {target}".strip(), stage, seconds)


def _network_request(request: AdaptiveRequest, name: str, out: Path, eager: _Eager) -> ExportRequest:
    samples = eager.samples[name]
    step = -(-len(samples) // PROOF_PHOTOS)
    finds = request.calibrator if request.base.recipe.needs_ranges else None
    return replace(
        request.base,
        source=request.spec.networks[name],
        out=out,
        photos=samples.pick(range(0, len(samples), step)),
        labels=(),
        calibrator=None if finds is None else finds(samples),
    )


@contextlib.contextmanager
def loaded_eager(spec: AdaptiveSpec, weights: str | None, seed: int) -> Iterator[tuple[Loaded, dict[str, Network]]]:
    """The published networks, bound to the stages, and each by itself.

    Raises UsageError where the stages do not tell the same classes apart.
    """
    from acmix.toolkit import capture

    networks = {name: capture.build(source, weights, seed) for name, source in spec.networks.items()}
    yield eager_model(spec, networks), networks


def _eager(request: AdaptiveRequest) -> _Eager:
    with loaded_eager(request.spec, request.base.weights, request.base.seed) as (loaded, networks):
        seeded = every_stage(loaded, SeededPhotos(SEEDED_PHOTOS, request.base.seed))
        classes = {stage.stage: stage.logits.size for stage in seeded[0].stages}
        if len(set(classes.values())) > 1:
            told = ", ".join(f"{stage} {count}" for stage, count in classes.items())
            raise UsageError(
                f"the stages tell different numbers of classes apart: {told}.\nTake models of one data set."
            )
        if request.base.labels and len(request.base.labels) not in classes.values():
            raise UsageError(
                f"--labels names {len(request.base.labels)} classes; the stages tell {min(classes.values())} apart.\n"
                "Give one name a line, in the order of the scores."
            )
        most = RANGE_PHOTOS if request.base.recipe.needs_ranges else PROOF_PHOTOS
        samples = record_inputs(loaded, request.photos, most)
        is_random = any(network.weights.is_random for network in networks.values())
        unshared = nothing_in_common([n.module for n in networks.values()]) if request.shared_weights else ""
        return _Eager(every_stage(loaded, request.photos), seeded, samples, is_random, unshared)


def _finish(
    request: AdaptiveRequest, target: TargetRequest, outcomes: Mapping[str, Outcome], eager: _Eager, scratch: Path
) -> AdaptiveOutcome:
    for name, outcome in outcomes.items():
        if outcome.artifact is None:
            stem = replace(request.base, source=request.spec.networks[name]).folder_name(target)
            error = _with_kept_log(outcome.error, scratch / name / f"{stem}.log", request.base.out)
            return AdaptiveOutcome(target.name, error=f"{name}: {error}", exit_code=outcome.exit_code)
    try:
        made = {name: outcome.artifact for name, outcome in outcomes.items() if outcome.artifact}
        artifact = _assemble(request, target, made, eager, scratch)
    except AcmixError as error:
        return AdaptiveOutcome(target.name, error=str(error), exit_code=error.exit_code)
    failed = [f"{name}: {outcome.error}" for name, outcome in outcomes.items() if outcome.exit_code]
    if artifact.manifest.proof.verdict == "failed":
        proof = artifact.manifest.proof
        failed.append(f"the files go another way than eager on {proof.worst_photo!r}, beyond their tolerance")
    return AdaptiveOutcome(target.name, artifact, "\n".join(failed), 1 if failed else 0)


def _with_kept_log(error: str, log: Path, out: Path) -> str:
    """The error, with the log that it names moved out of the temporary folder and named where it stays."""
    if not log.is_file():
        return error
    return error.replace(str(log), str(log.replace(out / log.name)))


def _assemble(
    request: AdaptiveRequest, target: TargetRequest, made: dict[str, Artifact], eager: _Eager, scratch: Path
) -> AdaptiveArtifact:
    """The finished folder of one target: networks moved together, thresholds chosen, the way proven."""
    spec = request.spec
    staging = scratch / request.folder(target).name
    staging.mkdir()
    networks = {name: _moved(artifact, staging) for name, artifact in made.items()}
    shelf = Shelf(staging, spec.name, request.base.out / f"{staging.name}-join.log")
    networks, sharing = share_weights(networks, shelf, eager.unshared) if request.shared_weights else (networks, None)
    macs = exit_macs(spec.stages, {name: artifact.manifest.model.macs for name, artifact in networks.items()})
    policy, proof = _decide(request, networks, macs, eager)
    write_policy(staging / POLICY, policy)
    write_reference(staging / REFERENCE, eager.seeded)
    manifest = AdaptiveManifest(
        acmix=machine.versions(["acmix"])["acmix"],
        name=spec.name,
        source=spec.reference,
        target=target.name,
        precision=request.base.recipe.name,
        networks=tuple(network_record(staging, name, artifact) for name, artifact in networks.items()),
        stages=spec.stages,
        rule=policy.rule,
        policy_sha256=sha256_of(staging / POLICY),
        reference_sha256=sha256_of(staging / REFERENCE),
        thresholds=policy.thresholds,
        exit_rates=policy.calibration.exit_rates if policy.calibration else (),
        exit_macs=macs,
        random_weights=eager.random_weights,
        proof=proof,
        samples=(SampleSet(request.photos.name, len(request.photos), request.photos.digest),),
        machine=machine.describe(),
        seed=request.base.seed,
        labels=request.base.labels,
        paper=spec.paper,
        sharing=sharing,
    )
    write_adaptive(staging, manifest)
    return open_adaptive(move_into_place(staging, request.folder(target)))


def _moved(artifact: Artifact, folder: Path) -> Artifact:
    """The artifact and its log, in another folder."""
    log = artifact.folder.parent / artifact.manifest.log
    if log.is_file():
        log.rename(folder / log.name)
    return replace(artifact, folder=artifact.folder.rename(folder / artifact.folder.name))


def _decide(
    request: AdaptiveRequest, networks: dict[str, Artifact], macs: tuple[int, ...], eager: _Eager
) -> tuple[Policy, WayProof]:
    spec = request.spec
    names = [stage.name for stage in spec.stages]
    asked = [a.asked_db for artifact in networks.values() for a in artifact.manifest.proof.agreements]
    nobody = policy_of(spec.rule, names, [1.0] * (len(names) - 1), None)
    if not asked:
        # Nothing of this target runs here: eager float32 chooses the thresholds, and nobody proves the way.
        reason = next(iter(networks.values())).manifest.proof.reason
        policy = request.calibrate(eager.traces, request.photos, macs, False)
        return policy, not_proven(reason)
    with load_stages(spec.stages, networks, 1) as (engine, by_reference):
        loaded = Loaded(spec.name, engine, nobody, by_reference)
        # The first runs pay for the caches: not counted.
        every_stage(loaded, SeededPhotos(2, request.base.seed))
        found = every_stage(loaded, request.photos)
    policy = request.calibrate(found, request.photos, macs, not by_reference)
    granted = margins(spec.stages, min(asked))
    return policy, prove_way(request.photos.identifiers, eager.traces, found, policy, granted)
