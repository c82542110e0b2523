"""Proof again, from the artifact alone: digests first, then the saved file against the stored eager outputs."""

from __future__ import annotations

from pathlib import Path

from acmix.toolkit.artifact import REFERENCE, Artifact, check_digests, executed_by
from acmix.toolkit.crosscheck import cross_check
from acmix.toolkit.execute import compare, read_references, snapped
from acmix.toolkit.profile import interface_of
from acmix.toolkit.samples import Probes
from acmix.toolkit.session import SessionRequest, open_session
from acmix.toolkit.verify import Proof, SampleSet, prove, with_conversion


def reprove(artifact: Artifact, log: Path) -> Proof:
    """Check every digest, then run the file on the probes; needs its runtime, not torch nor the model.

    Raises UsageError when a byte has changed, GateError when the runtime fails.
    """
    check_digests(artifact)
    manifest = artifact.manifest
    by, reason = executed_by(artifact)
    if not by:
        return Proof("not executed", "", reason=reason)
    interface = interface_of(artifact)
    quantization = manifest.quantization
    probes = Probes(manifest.inputs, manifest.seed, bounds=quantization.probe_bounds if quantization else ())
    snap = manifest.preprocess if manifest.pixel_grid else None
    samples = ((name, snapped(sample, snap)) for name, sample in zip(probes.identifiers, probes, strict=True))
    references = read_references(artifact.folder / REFERENCE, samples)
    request = SessionRequest(manifest.target.name, str(artifact.model_file), reference=by == "reference")
    with open_session(request, log) as session:
        session.load()
        rows = list(compare(session, references, interface))
    sets = (SampleSet(probes.name, len(references), probes.digest),)
    names = [spec.name for spec in manifest.outputs]
    classifies, runtime = manifest.model.classifies, manifest.target.name
    if quantization is not None:
        # What is stored of a quantized file is its simulation on the probes.
        proof = prove((), (), (), classifies, runtime, sets, (by, reason))
        return with_conversion(proof, names, rows, quantization.conversion, classifies)
    proof = prove(names, rows, manifest.tolerances, classifies, runtime, sets, (by, reason))
    return cross_check(proof, rows, references, interface, request, log)
