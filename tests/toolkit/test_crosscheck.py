"""Where a target has its runtime and a reference evaluator, both run and their difference is reported.

Core ML has both on a Mac only. Here ONNX stands in: ONNX Runtime, and onnx's own reference evaluator.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from acmix.apps import tables
from acmix.apps.requests import ExportFlags, export_request
from acmix.targets import onnx as onnx_target
from acmix.toolkit import catalog, pipeline
from acmix.toolkit.artifact import Artifact, open_artifact
from acmix.toolkit.reproof import reprove
from acmix.toolkit.verify import Compared, Proof, differ

# Given to every child through its path: acmix's ONNX target with a reference, off by a part of its outputs.
SECOND = """
import contextlib, dataclasses
from acmix.targets import onnx as target

error = {error}

@contextlib.contextmanager
def reference(file):
    from onnx.reference import ReferenceEvaluator
    if error is None:
        raise ValueError("out of order")
    model = ReferenceEvaluator(str(file))
    yield lambda arrays: [output * (1 + error) for output in model.run(None, dict(zip(model.input_names, arrays)))]

target.TARGET = dataclasses.replace(target.TARGET, reference=reference)
"""


@pytest.fixture
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that makes ONNX a target with two executors, in this process and in the children."""
    file = tmp_path / "children" / "sitecustomize.py"
    file.parent.mkdir()
    write(file, 0.0)
    monkeypatch.setenv("PYTHONPATH", str(file.parent))
    monkeypatch.setattr(onnx_target, "TARGET", onnx_target.TARGET)
    exec(compile(file.read_text("utf-8"), file, "exec"), {})
    catalog.load_target.cache_clear()
    yield file
    catalog.load_target.cache_clear()


def write(file: Path, error: float | None) -> None:
    file.write_text(SECOND.format(error=error), encoding="utf-8")


def proven(artifact: Artifact) -> Proof:
    return reprove(artifact, artifact.folder.parent / "verify.log")


def test_the_proof_is_the_runtime_s_and_tells_how_far_the_reference_is(second: Path, tiny: str, tmp_path: Path) -> None:
    flags = ExportFlags(model=tiny, target="onnx", inputs=("1x3x32x32",), out=tmp_path / "out")
    (outcome,) = pipeline.export(export_request(flags, {}), lambda *_: None)
    assert outcome.error == ""
    assert outcome.artifact is not None
    artifact = open_artifact(outcome.artifact.folder)
    proof = artifact.manifest.proof
    assert (proof.verdict, proof.executed_by, proof.reference_error) == ("passed", "runtime", "")
    assert [one.output for one in proof.differences] == [one.output for one in proof.agreements]
    assert all(one.snr_db is not None and one.snr_db > 100 for one in proof.differences)

    write(second, 0.01)
    again = proven(artifact)
    assert again.verdict == "passed"
    assert [one.snr_db for one in again.differences] == [pytest.approx(40, abs=0.1)] * len(proof.differences)
    assert "Reference evaluator against the runtime" in str(tables.agreements(again).caption)

    write(second, None)
    without = proven(artifact)
    assert (without.verdict, without.differences) == ("passed", ())
    assert "out of order" in without.reference_error
    assert "out of order" in str(tables.agreements(without).caption)


def test_a_target_without_a_reference_has_nothing_to_report(exported: object) -> None:
    assert callable(exported)
    proof = exported("float32")["onnx"].manifest.proof
    assert (proof.differences, proof.reference_error) == ((), "")
    assert not tables.agreements(proof).caption


def test_the_worst_sample_of_each_output_decides_and_another_shape_is_no_agreement() -> None:
    signal = np.ones((1, 4), np.float32)
    eager = signal * 7

    def row(sample: str, first: float, second: np.ndarray) -> list[Compared]:  # type: ignore[type-arg]
        return [Compared(sample, eager, signal * first), Compared(sample, eager, second)]

    runtime = [row("one", 1.0, signal), row("two", 1.0, signal)]
    reference = [row("one", 1.001, signal), row("two", 1.1, signal[:, :2])]
    first, second = differ(["logits", "features"], runtime, reference)
    assert (first.worst_sample, second.worst_sample) == ("two", "two")
    assert first.snr_db == pytest.approx(20, abs=0.01)
    assert first.max_abs == pytest.approx(0.1, abs=1e-6)
    assert second.snr_db == -300
    assert json.dumps(second.max_abs)
