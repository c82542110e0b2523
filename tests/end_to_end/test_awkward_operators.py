"""A user's own module with the operators that nobody delegates: four files, and one delegate partition of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from acmix.apps.requests import ExportFlags, export_request
from acmix.toolkit import pipeline
from acmix.toolkit.artifact import Artifact

MODEL = f"{Path(__file__).parent / 'awkward_net.py'}:make"
RULES = {
    "executorch": {
        "channel_shuffle",
        "group_norm",
        "reflection_pad",
        "roll",
        "softmax_last_axis",
        "tanh_gelu",
        "unfold",
    },
    "tflite": {"channel_shuffle", "group_norm", "reflection_pad", "roll"},
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    flags = ExportFlags(model=MODEL, inputs=("1x3x32x40",), out=tmp_path_factory.mktemp("awkward"))
    outcomes = pipeline.export(export_request(flags, {}), lambda target, stage, seconds: None)
    assert {o.target: o.error for o in outcomes} == dict.fromkeys(("coreml", "executorch", "onnx", "tflite"), "")
    return {o.target: o.artifact for o in outcomes if o.artifact is not None}


@pytest.mark.parametrize("target", ["executorch", "onnx", "tflite"])
def test_every_output_of_the_saved_file_agrees_with_eager_under_its_own_name(
    artifacts: dict[str, Artifact], target: str
) -> None:
    proof = artifacts[target].manifest.proof
    assert proof.verdict == "passed"
    assert [agreement.output for agreement in proof.agreements] == ["features", "scores"]
    assert all((agreement.snr_db or 0.0) >= 80 for agreement in proof.agreements)


def test_core_ml_accepts_it(artifacts: dict[str, Artifact]) -> None:
    manifest = artifacts["coreml"].manifest
    assert manifest.proof.verdict in ("not executed", "passed")
    assert [(spec.name, spec.shape) for spec in manifest.outputs] == [
        ("features", (1, 16, 16, 20)),
        ("scores", (1, 10)),
    ]
    assert [agreement.output for agreement in manifest.proof.agreements] in ([], ["features", "scores"])


@pytest.mark.parametrize("target", ["executorch", "tflite"])
def test_it_is_one_delegate_partition_with_nothing_outside(artifacts: dict[str, Artifact], target: str) -> None:
    placement = artifacts[target].manifest.placement
    assert [operator.kind for operator in placement.fallbacks] == []
    assert placement.partitions == 1


@pytest.mark.parametrize("target", RULES)
def test_the_manifest_names_the_rules_that_did_it(artifacts: dict[str, Artifact], target: str) -> None:
    applied = {rule.name for rule in artifacts[target].manifest.preparation.rewrites}
    assert applied >= RULES[target]
