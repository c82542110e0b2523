"""`acmix evaluate` of one and of several artifacts: eager runs once, and the files are compared with one another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from acmix.apps.cli import app
from acmix.calibration.photos import read_photo_folder
from acmix.toolkit import capture
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.errors import UsageError
from acmix.toolkit.evaluate import evaluate
from acmix.toolkit.source import find_model, parse_input

Exported = Callable[[str], dict[str, Artifact]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of noise, the first three labelled as the first class, the others as the second."""
    folder = tmp_path_factory.mktemp("scenes")
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    rows = "".join(f"{i}.png,{i // 3}\n" for i in range(6))
    (folder / "labels.csv").write_text(f"file,label\n{rows}", encoding="utf-8")
    return folder


def best_classes(artifact: Artifact, tiny: str, scenes: Path) -> list[int]:
    """The best class of every picture, by torch alone."""
    network = capture.build(find_model(tiny, (parse_input("1x3x32x32"),)), None)
    return [int(network(x)[0].argmax()) for x in read_photo_folder(scenes, artifact.manifest.preprocess)]


def test_several_files_stand_in_one_table_with_their_agreement(exported: Exported, tiny: str, scenes: Path) -> None:
    artifacts = [exported("float32")["tflite"], exported("float32")["onnx"], exported("w8a8")["onnx"]]
    words = [*(str(a.folder) for a in artifacts), "--data", str(scenes), "--model", tiny, "--json"]
    done = CliRunner().invoke(app, ["evaluate", *words])
    assert done.exit_code == 0, done.exception
    answer = json.loads(done.stdout)
    assert [row["artifact"] for row in answer["evaluations"]] == [a.name for a in artifacts]
    best = best_classes(artifacts[0], tiny, scenes)
    right = sum(found == i // 3 for i, found in enumerate(best)) / 6
    for row in answer["evaluations"][:2]:
        assert (row["photos"], row["eager_top1"], row["agreement"], row["top1"]) == (6, right, 1.0, right)
        assert row["worst_snr_db"] > 80
    whole, *others = answer["between"]
    assert whole == {"a": artifacts[0].name, "b": artifacts[1].name, "share": 1.0}
    # What both agree on with eager is what they agree on with each other.
    assert [pair["share"] for pair in others] == [answer["evaluations"][2]["agreement"]] * 2
    assert f"{artifacts[0].name} and {artifacts[1].name}: same top-1 on 100.0 % (6 of 6)" in done.stderr


def test_one_file_is_evaluated_by_itself(exported: Exported, scenes: Path) -> None:
    words = ["evaluate", str(exported("float32")["onnx"].folder), "--data", str(scenes), "--limit", "2", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)["evaluation"]
    assert (found["photos"], found["agreement"]) == (2, None)
    assert "run that again with --model" in found["eager_missing"] and "No agreement with eager" in done.stderr
    assert "between" not in json.loads(done.stdout)


def test_files_of_different_networks_are_refused_together(exported: Exported, scenes: Path, tmp_path: Path) -> None:
    one, other = exported("float32")["onnx"], exported("float32")["tflite"]
    manifest = other.manifest
    model = replace(manifest.model, weights=replace(manifest.model.weights, digest="0" * 64))
    unlike = Artifact(other.folder, replace(manifest, model=model, preprocess=None))
    samples = read_photo_folder(scenes, one.manifest.preprocess)
    sentence = f"{other.name} has other weights and another preprocessing than {one.name}"
    with pytest.raises(UsageError, match=sentence):
        evaluate([one, unlike], samples, tmp_path / "log", lambda count: None)


def test_an_adaptive_artifact_is_evaluated_by_itself(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "adaptive.json").write_text("{}")
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path), str(tmp_path), "--data", str(scenes)])
    assert isinstance(done.exception, UsageError) and "is evaluated by itself" in str(done.exception)
