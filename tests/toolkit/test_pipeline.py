"""The whole flow on tiny networks: several outputs, one target that fails, gates, two exports with equal bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from acmix.apps.requests import ExportFlags, export_request
from acmix.toolkit import pipeline
from acmix.toolkit.artifact import Artifact, open_artifact
from acmix.toolkit.request import Outcome

Exported = Callable[[str], dict[str, Artifact]]
NETS = Path(__file__).parent.parent / "tiny_net.py"


def run(out: Path, **flags: object) -> dict[str, Outcome]:
    defaults = ExportFlags(model=f"{NETS}:make_net", inputs=("1x3x32x32",), out=out)
    request = export_request(replace(defaults, **flags), {})  # type: ignore[arg-type]
    return {o.target: o for o in pipeline.export(request, lambda target, stage, seconds: None)}


def test_a_gate_that_fails_is_exit_code_1_and_keeps_the_artifact(tmp_path: Path) -> None:
    outcome = run(tmp_path, target="onnx", min_snr="250")["onnx"]
    assert outcome.exit_code == 1
    assert "250 dB asked for" in outcome.error
    assert outcome.artifact is not None
    assert open_artifact(outcome.artifact.folder).manifest.proof.verdict == "failed"


@pytest.mark.usefixtures("cold_converters")
def test_one_target_that_fails_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of one target cannot be written: its place is taken by a folder that cannot be removed."""
    request = export_request(
        ExportFlags(model=f"{NETS}:make_middle_cumsum", inputs=("1x3x32x32",), out=tmp_path, target="onnx,tflite"), {}
    )
    broken = {"ACMIX_TEST": "1", "PYTHONPATH": str(tmp_path / "shadow")}
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "onnxsim.py").write_text("raise RuntimeError('no simplifier today')\n", encoding="utf-8")
    for name, value in broken.items():
        monkeypatch.setenv(name, value)
    outcomes = {o.target: o for o in pipeline.export(request, lambda target, stage, seconds: None)}
    assert outcomes["onnx"].exit_code == 1
    assert outcomes["onnx"].artifact is None
    assert "onnx-float32.log" in outcomes["onnx"].error
    assert "no simplifier today" in (tmp_path / "make_middle_cumsum-onnx-float32.log").read_text(encoding="utf-8")
    assert outcomes["tflite"].exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["make_middle_cumsum-tflite-float32", "shadow"]


def test_a_fallback_is_listed_with_its_reason_and_can_be_made_a_failure(tmp_path: Path) -> None:
    outcome = run(tmp_path, model=f"{NETS}:make_middle_cumsum", target="executorch", require_full_delegation=True)[
        "executorch"
    ]
    assert outcome.exit_code == 1
    assert "fall back" in outcome.error
    assert outcome.artifact is not None
    fallbacks = outcome.artifact.manifest.placement.fallbacks
    assert any("cumsum" in op.kind for op in fallbacks)
    assert all(op.reason for op in fallbacks)


def test_exporting_twice_gives_the_same_bytes_or_a_reason_and_leaves_no_temporary_file(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    first, second = exported("float32"), run(tmp_path / "out", preprocess="imagenet")
    # torch keeps caches of fixed names there.
    left = [p.name for p in temporary.iterdir() if not p.name.startswith((".ses", "torchinductor_"))]
    assert left == []
    assert first.keys() == second.keys()
    for target, artifact in first.items():
        again = second[target].artifact
        assert again is not None
        same = [f.sha256 for f in artifact.manifest.files] == [f.sha256 for f in again.manifest.files]
        assert same or artifact.manifest.target.nondeterminism


def test_overwriting_replaces_the_artifact_whole(exported: Exported, tmp_path: Path) -> None:
    first = exported("float32")["onnx"]
    folder = Path(shutil.copytree(first.folder, tmp_path / first.name))
    (folder / "stray").write_text("old", encoding="utf-8")
    second = run(tmp_path, target="onnx", overwrite=True)["onnx"].artifact
    assert second is not None
    assert second.folder == folder
    assert not (second.folder / "stray").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
