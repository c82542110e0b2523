"""An artifact: a folder with the model file, its reference outputs and manifest.json."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from acmix.toolkit import catalog
from acmix.toolkit.errors import UsageError
from acmix.toolkit.joining import Function
from acmix.toolkit.manifest import SCHEMA_VERSION, FileDigest, Manifest
from acmix.toolkit.samples import Probes
from acmix.toolkit.session import Cpus, SessionRequest
from acmix.toolkit.target import ExecutedBy, executor

MANIFEST = "manifest.json"
REFERENCE = "reference.npz"
BESIDE = ".."
"""Where a model file of several networks lies, from the folder of each."""


@dataclass(frozen=True)
class Artifact:
    """An artifact folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def model_file(self) -> Path:
        """The file (or .mlpackage folder) that the runtime loads."""
        parts = Path(self.manifest.files[0].path).parts
        # Resolved: the folder may be given as `.`, or as a link from elsewhere.
        return (self.folder / BESIDE).resolve() / parts[1] if parts[0] == BESIDE else self.folder / parts[0]

    @property
    def function(self) -> Function | None:
        """What of the model file is this artifact; None where it is all of it."""
        if not self.manifest.function:
            return None
        inputs, outputs = self.manifest.file_inputs, self.manifest.file_outputs
        return Function(self.manifest.function, tuple(s.name for s in inputs), tuple(s.name for s in outputs))

    def session(self, by: ExecutedBy = "runtime", threads: int = 1, cpus: Cpus = None) -> SessionRequest:
        """What a child process loads to run this artifact, and where."""
        target, file = self.manifest.target.name, str(self.model_file)
        return SessionRequest(target, file, threads, cpus, by == "reference", function=self.function)

    @property
    def size_bytes(self) -> int:
        """Of the model file alone, with all networks that it holds."""
        return sum(f.size_bytes for f in self.manifest.files if Path(f.path).name != REFERENCE)


def sha256_of(file: Path) -> str:
    """The digest of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_files(folder: Path, first: str) -> tuple[FileDigest, ...]:
    """Every file below the folder but the manifest itself, those of the model (`first`) first."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST)
    records = [FileDigest(f.relative_to(folder).as_posix(), sha256_of(f), f.stat().st_size) for f in files]
    return tuple(sorted(records, key=lambda r: (Path(r.path).parts[0] != first, r.path)))


def executed_by(artifact: Artifact) -> tuple[ExecutedBy, str]:
    """Who executes this artifact's file on this machine ('': nobody), and why it is not its own runtime.

    Raises UsageError with the pip command when its target's packages are missing.
    """
    record = artifact.manifest.target
    target = catalog.load_target(record.name)
    by, reason = executor(target, msgspec.convert(record.options, target.options))
    if by == "runtime":
        catalog.require_packages(record.name)
    return by, reason


def probes_of(artifact: Artifact) -> Probes:
    """The probes that the artifact was proven on, within what the integers of its inputs express."""
    manifest = artifact.manifest
    bounds = manifest.quantization.probe_bounds if manifest.quantization else ()
    return Probes(manifest.inputs, manifest.seed, bounds=bounds)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, indented, keys in the order of the types."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    (folder / MANIFEST).write_bytes(text + b"\n")


def open_artifact(folder: Path) -> Artifact:
    """Read an artifact's manifest; raises UsageError when the folder is no artifact of this version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(
            f"{folder} is not an artifact: it has no {MANIFEST}.\n"
            "Give a folder that acmix-export wrote, like build/lsnet_t-tflite-float32."
        )
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data).get("schema_version")
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"{path} has schema version {version}; this acmix reads {SCHEMA_VERSION}.\n"
                "Export the model again, or use the acmix that wrote it."
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, OSError) as error:
        raise UsageError(f"{path} cannot be read: {error}\nExport the model again.") from error
    if not manifest.files:
        raise UsageError(f"{path} lists no files.\nExport the model again.")
    return Artifact(folder, manifest)


def check_digests(artifact: Artifact) -> None:
    """Raise UsageError when any file differs from what was exported, is missing, or was added."""
    for record in artifact.manifest.files:
        file = artifact.folder / record.path
        # Only a file of several networks lies elsewhere, and nowhere else than beside the folder.
        beside = artifact.function is not None and file.is_relative_to(artifact.folder / BESIDE)
        root = artifact.folder.resolve().parent if beside else artifact.folder.resolve()
        if not file.resolve().is_relative_to(root):
            raise UsageError(f"{artifact.folder / MANIFEST} names {record.path!r}, outside its own folder.")
        if not file.is_file():
            raise UsageError(f"{file} is missing from the artifact.\nExport the model again.")
        if (found := sha256_of(file)) != record.sha256:
            raise UsageError(
                f"{file} has changed since it was exported: its sha256 is {found[:12]}..., "
                f"the manifest says {record.sha256[:12]}...\nExport the model again, or restore the file."
            )
    places = [artifact.folder, *([artifact.folder / BESIDE / artifact.model_file.name] if artifact.function else [])]
    there = {f.relative_to(artifact.folder).as_posix() for p in places for f in p.rglob("*") if f.is_file()}
    if added := there - {MANIFEST, *(record.path for record in artifact.manifest.files)}:
        raise UsageError(f"{artifact.folder} holds {min(added)!r}, which was not exported.\nRemove it.")
