"""Artifacts on disk: the manifest round trip, its published schema, and folders that are no artifact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from acmix.toolkit.artifact import Artifact, check_digests, open_artifact, write_manifest
from acmix.toolkit.errors import UsageError

Exported = Callable[[str], dict[str, Artifact]]


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Path:
    original = exported("float32")["onnx"].folder
    return Path(shutil.copytree(original, tmp_path / original.name))


def edit(folder: Path, **fields: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}), encoding="utf-8")


def test_a_manifest_reads_back_as_it_was_written(copied: Path) -> None:
    artifact = open_artifact(copied)
    before = (copied / "manifest.json").read_bytes()
    write_manifest(copied, artifact.manifest)
    assert (copied / "manifest.json").read_bytes() == before


def test_the_model_file_and_its_size_are_found(copied: Path) -> None:
    artifact = open_artifact(copied)
    assert artifact.model_file == copied / "model.onnx"
    assert artifact.size_bytes == (copied / "model.onnx").stat().st_size


def test_a_manifest_of_another_version_is_refused(copied: Path) -> None:
    edit(copied, schema_version=999)
    with pytest.raises(UsageError, match="schema version 999"):
        open_artifact(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 1}'])
def test_a_broken_manifest_is_refused(copied: Path, text: str) -> None:
    (copied / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"manifest\.json"):
        open_artifact(copied)


def test_a_missing_file_and_an_added_one_are_refused(copied: Path) -> None:
    (copied / "extra").write_text("?", encoding="utf-8")
    with pytest.raises(UsageError, match="'extra', which was not exported"):
        check_digests(open_artifact(copied))
    (copied / "extra").unlink()
    (copied / "reference.npz").unlink()
    with pytest.raises(UsageError, match="is missing"):
        check_digests(open_artifact(copied))


def test_a_manifest_cannot_point_outside_its_folder(copied: Path) -> None:
    records = json.loads((copied / "manifest.json").read_bytes())["files"]
    edit(copied, files=[*records, {"path": "../outside", "sha256": "0" * 64, "size_bytes": 1}])
    with pytest.raises(UsageError, match="outside its own folder"):
        check_digests(open_artifact(copied))
