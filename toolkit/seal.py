"""Sealing: from a lowered and proven file to an artifact in its place, or to a failed gate."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from acmix.toolkit import catalog, machine
from acmix.toolkit.artifact import REFERENCE, Artifact, digest_files, write_manifest
from acmix.toolkit.execute import write_references
from acmix.toolkit.expect import Expected
from acmix.toolkit.manifest import CalibrationRecord, Manifest, Quantization, TargetRecord
from acmix.toolkit.recipe import Tolerance
from acmix.toolkit.request import ExportRequest, Outcome, TargetRequest
from acmix.toolkit.share import Shared
from acmix.toolkit.target import Lowered, Placement
from acmix.toolkit.verify import Proof, SampleSet


@dataclass(frozen=True)
class Finished:
    """What one target's lowering and proof gave. log: its file name, beside the artifact."""

    lowered: Lowered
    proof: Proof
    placement: Placement
    timings_s: dict[str, float]
    log: str
    tolerances: tuple[Tolerance, ...]
    expected: Expected


def seal(request: ExportRequest, target: TargetRequest, common: Shared, finished: Finished, staging: Path) -> Artifact:
    """Add reference outputs and manifest to the staged model, then move the folder to its place."""
    probes = finished.expected.simulated[: len(common.probes)] or tuple(common.probes)
    write_references(staging / REFERENCE, probes)
    manifest = _manifest(request, target, common, finished, staging)
    write_manifest(staging, manifest)
    return Artifact(move_into_place(staging, request.out / request.folder_name(target)), manifest)


def _manifest(
    request: ExportRequest, target: TargetRequest, common: Shared, finished: Finished, staging: Path
) -> Manifest:
    loaded = catalog.load_target(target.name)
    lowered = finished.lowered
    options = dataclasses.asdict(target.options)
    return Manifest(
        acmix=machine.versions(["acmix"])["acmix"],
        model=common.model,
        recipe=request.recipe,
        target=TargetRecord(
            target.name,
            options,
            lowered.notes,
            lowered.details,
            lowered.nondeterminism,
            lowered.half_arithmetic,
            lowered.needs,
        ),
        inputs=common.inputs,
        outputs=common.outputs,
        file_inputs=lowered.inputs,
        file_outputs=lowered.outputs,
        preprocess=request.source.spec.preprocess,
        labels=request.labels,
        preparation=common.preparations[target.name],
        placement=finished.placement,
        proof=finished.proof,
        tolerances=finished.tolerances,
        files=digest_files(staging, f"model{loaded.suffix}"),
        tools=machine.versions(["torch", "numpy", *loaded.distributions]),
        machine=machine.describe(),
        timings_s={stage: round(seconds, 3) for stage, seconds in finished.timings_s.items()},
        log=finished.log,
        seed=request.seed,
        pixel_grid=request.takes_image,
        quantization=_quantization(request, target, common, finished),
        further_preprocess=request.source.spec.further_preprocess,
    )


def _quantization(
    request: ExportRequest, target: TargetRequest, common: Shared, finished: Finished
) -> Quantization | None:
    share = common.quantized.get(target.name)
    if share is None:
        return None
    made = share.quantized
    ranges = made.calibrated.ranges
    calibration = None
    if ranges is not None and ranges.samples_count:
        calibration = CalibrationRecord(
            ranges.observer, SampleSet(ranges.samples_name, ranges.samples_count, ranges.samples_digest)
        )
    return Quantization(
        len(made.grid.weights),
        len(finished.lowered.quantized) or len(made.grid.tensors),
        calibration,
        made.calibrated.repairs,
        made.kept_float,
        finished.expected.conversion,
        common.bounds,
    )


def move_into_place(staging: Path, final: Path) -> Path:
    """Give a finished folder its name; an old one of that name goes only once the new one is in its place."""
    staging.chmod(0o755)
    old = None
    if final.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{final.name}.old.", dir=final.parent))
        final.rename(old / final.name)
    try:
        staging.rename(final)
    except OSError:
        if old is not None:
            (old / final.name).rename(final)
            old.rmdir()
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    return final


def judge(request: ExportRequest, target: TargetRequest, artifact: Artifact) -> Outcome:
    """The outcome of a sealed artifact: a failed gate is exit 1, and the artifact stays for a look."""
    manifest = artifact.manifest
    if manifest.proof.verdict == "failed":
        return Outcome(target.name, artifact, _what_failed(manifest.proof), 1)
    fallbacks = manifest.placement.fallbacks
    if request.require_full_delegation and any(op.delegated is None for op in manifest.placement.operators):
        return Outcome(target.name, artifact, "full delegation cannot be told here: only the device knows", 1)
    if request.require_full_delegation and fallbacks:
        kinds = ", ".join(sorted({op.kind for op in fallbacks}))
        return Outcome(target.name, artifact, f"{len(fallbacks)} operators fall back: {kinds}", 1)
    return Outcome(target.name, artifact)


def _what_failed(proof: Proof) -> str:
    against = [(a, "eager") for a in proof.agreements] + [(a, "its simulation in torch") for a in proof.conversion]
    worst, other = next((a, other) for a, other in against if not a.passed)
    found = "no signal" if worst.snr_db is None else f"{worst.snr_db:.1f} dB"
    return (
        f"output {worst.output!r} does not agree with {other}: {found} on {worst.worst_sample!r}, "
        f"{worst.asked_db:.0f} dB asked for"
    )
