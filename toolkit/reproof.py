"""Proof again, from the artifact alone: digests first, then the saved file against the stored eager outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acmix.toolkit.artifact import REFERENCE, Artifact, check_digests, executed_by, probes_of
from acmix.toolkit.crosscheck import cross_check
from acmix.toolkit.execute import Reference, compare, read_references, snapped
from acmix.toolkit.profile import interface_of
from acmix.toolkit.session import open_session
from acmix.toolkit.target import ExecutedBy
from acmix.toolkit.verify import Compared, Proof, SampleSet, prove, with_conversion


def reprove(artifact: Artifact, log: Path) -> Proof:
    """Check every digest, then run the file on the probes; needs its runtime, not torch nor the model.

    Raises UsageError when a byte has changed, GateError when the runtime fails.
    """
    check_digests(artifact)
    manifest = artifact.manifest
    by, reason = executed_by(artifact)
    if not by:
        return Proof("not executed", "", reason=reason)
    interface, references = interface_of(artifact), stored_references(artifact)
    request = artifact.session(by)
    with open_session(request, log) as session:
        session.load()
        rows = list(compare(session, references, interface))
    proof = judged(artifact, rows, (by, reason))
    return proof if manifest.quantization else cross_check(proof, rows, references, interface, request, log)


def stored_references(artifact: Artifact) -> list[Reference]:
    """The probes and what is stored of them in the artifact."""
    manifest, probes = artifact.manifest, probes_of(artifact)
    snap = manifest.preprocess if manifest.pixel_grid else None
    samples = ((name, snapped(sample, snap)) for name, sample in zip(probes.identifiers, probes, strict=True))
    return read_references(artifact.folder / REFERENCE, samples)


def judged(
    artifact: Artifact, rows: Sequence[Sequence[Compared]], executed: tuple[ExecutedBy, str] = ("runtime", "")
) -> Proof:
    """What the comparison with the stored references proves. rows: of each probe, its outputs.

    executed: by what the file was run, and why not by its runtime.
    """
    manifest, probes = artifact.manifest, probes_of(artifact)
    sets = (SampleSet(probes.name, len(rows), probes.digest),)
    names = [spec.name for spec in manifest.outputs]
    classifies, runtime = manifest.model.classifies, manifest.target.name
    if manifest.quantization is not None:
        # What is stored of a quantized file is its simulation on the probes.
        proof = prove((), (), (), classifies, runtime, sets, executed)
        return with_conversion(proof, names, rows, manifest.quantization.conversion, classifies)
    return prove(names, rows, manifest.tolerances, classifies, runtime, sets, executed)
