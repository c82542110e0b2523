"""Adaptive artifacts: what the folder says, the proof of the way, the verbs, and every bad folder refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from acmix.calibration.decoded import DecodedPhotos
from acmix.calibration.photos import read_photo_folder
from acmix.toolkit.adaptive.artifact import AdaptiveArtifact, open_adaptive, replace_policy
from acmix.toolkit.adaptive.engine import StageResult, StageTime, Trace
from acmix.toolkit.adaptive.evaluate import evaluate_adaptive
from acmix.toolkit.adaptive.measure import Contender, measure, photo_summaries
from acmix.toolkit.adaptive.photos import SeededPhotos
from acmix.toolkit.adaptive.proof import Margins, exit_of, prove_way
from acmix.toolkit.adaptive.reference import reprove_adaptive
from acmix.toolkit.adaptive.runner import load_adaptive, load_single
from acmix.toolkit.errors import UsageError
from acmix.toolkit.policy import policy_of


def test_a_cascade_is_one_folder_with_a_proven_artifact_for_each_stage(tiny_cascade: AdaptiveArtifact) -> None:
    manifest = tiny_cascade.manifest
    assert [stage.name for stage in manifest.stages] == ["make_net_32", "make_net_48"]
    assert {a.manifest.proof.verdict for a in tiny_cascade.networks.values()} == {"passed"}
    # Seven probes and every photo, in eager's own inputs.
    assert [[s.count for s in a.manifest.proof.samples] for a in tiny_cascade.networks.values()] == [[7, 12]] * 2
    assert manifest.proof.verdict == "passed"
    assert manifest.proof.same_exit == manifest.proof.photos == 12
    assert manifest.exit_rates == (0.5, 0.5)
    assert manifest.exit_macs[0] < manifest.exit_macs[1]
    assert not list(tiny_cascade.folder.parent.glob(".*"))


def test_the_runner_gives_label_exit_and_the_time_of_every_stage(tiny_cascade: AdaptiveArtifact) -> None:
    with load_adaptive(tiny_cascade) as run:
        traces = [run(photo) for photo in SeededPhotos(12, 3)]
        whole = [run.every_stage(photo) for photo in SeededPhotos(12, 3)]
    assert sorted({trace.exit for trace in traces}) == [0, 1]
    assert sum(trace.exit == 0 for trace in traces) == 6
    for trace, every in zip(traces, whole, strict=True):
        assert trace.exit == exit_of(every, tiny_cascade.policy)
        assert trace.label == int(every.stages[trace.exit].logits.argmax())
        times = [stage.time for stage in trace.stages]
        assert all(min(one.network_ns, one.host_ns, one.exit_ns) > 0 for one in times)


def test_a_pipeline_takes_the_exits_and_crops_of_eager(tiny_pipeline: AdaptiveArtifact) -> None:
    assert tiny_pipeline.networks["focus"].manifest.file_inputs[0].layout == "nhwc"
    proof = tiny_pipeline.manifest.proof
    assert proof.verdict == "passed"
    assert proof.same_exit + proof.within_margin >= proof.photos == 12
    assert proof.same_crops + proof.within_margin >= proof.photos
    assert 0 < proof.place_error_pixels <= proof.place_margin_pixels


def test_the_crops_of_a_file_differ_from_photo_to_photo(tiny_pipeline: AdaptiveArtifact) -> None:
    with load_adaptive(tiny_pipeline) as run:
        corners = {run.every_stage(photo).stages[1].corners["patch"] for photo in SeededPhotos(12, 3)}
    assert len(corners) > 3


def test_verify_needs_no_photo(tiny_pipeline: AdaptiveArtifact, tmp_path: Path) -> None:
    proof = reprove_adaptive(tiny_pipeline, tmp_path / "log")
    assert not proof.failed
    assert set(proof.networks) == {"glance", "policy", "focus", "head"}
    assert proof.way.photos == 8


def fake_trace(first: float, second: float, action: float = 0.3) -> Trace:
    """Two stages of two classes whose confidences are given; the second crops at a place."""
    time = StageTime(0, 0, 0)
    logits = [np.log(np.array([p, 1 - p])) for p in (first, second)]
    corner = (int(action * 16), 0)
    return Trace(
        (
            StageResult("a", logits[0], first, {}, {}, time),
            StageResult("b", logits[1], second, {"patch": corner}, {"patch": np.array([[action, 0.0]])}, time),
        )
    )


def test_a_file_that_goes_another_way_fails_unless_its_tolerance_explains_it() -> None:
    policy = policy_of("max_softmax", ["a", "b"], (0.8,), None)
    granted = Margins(40.0, {"patch": (16, 16)})

    def judged(wanted: Trace, found: Trace) -> str:
        proof = prove_way(["photo"], [wanted], [found], policy, granted)
        return f"{proof.verdict} {proof.same_exit} {proof.same_crops} {proof.within_margin}"

    assert judged(fake_trace(0.9, 0.9), fake_trace(0.9, 0.9)) == "passed 1 1 0"
    assert judged(fake_trace(0.801, 0.9), fake_trace(0.799, 0.9)) == "passed 0 1 1"
    assert judged(fake_trace(0.85, 0.9), fake_trace(0.75, 0.9)) == "failed 0 1 0"
    # 5 / 16 is where the corner moves on by a pixel.
    assert judged(fake_trace(0.6, 0.9, 0.3126), fake_trace(0.6, 0.9, 0.3124)) == "passed 1 0 1"
    assert judged(fake_trace(0.6, 0.9, 0.34), fake_trace(0.6, 0.9, 0.30)) == "failed 1 0 0"
    # Where both end before the crop, nobody looks at it.
    assert judged(fake_trace(0.9, 0.9, 0.34), fake_trace(0.9, 0.9, 0.30)) == "passed 1 1 0"


def test_evaluating_compares_with_what_calibration_expected(tiny_cascade: AdaptiveArtifact, some_photos: Path) -> None:
    photos = DecodedPhotos(read_photo_folder(some_photos, tiny_cascade.manifest.first_preprocess))
    result = evaluate_adaptive(tiny_cascade, photos, None)
    assert sum(result.exit_rates) == pytest.approx(1)
    with load_adaptive(tiny_cascade) as run:
        wanted = [run(photo) for photo in photos]
    assert result.exit_rates[0] == sum(trace.exit == 0 for trace in wanted) / 10
    assert result.top1 == sum(t.label == label for t, label in zip(wanted, photos.labels or (), strict=True)) / 10
    assert result.mean_macs == np.mean([tiny_cascade.manifest.exit_macs[trace.exit] for trace in wanted])
    assert result.cost_as_expected is not None
    # The calibration had no labels: it promised agreement, not accuracy.
    assert result.accuracy_as_expected is None


def test_profiling_interleaves_adaptive_and_single_models_over_photos(tiny_cascade: AdaptiveArtifact) -> None:
    single = tiny_cascade.networks["make_net_48"]
    with load_adaptive(tiny_cascade) as cascade, load_single(single) as alone:
        contenders = [
            Contender(alone, (single.manifest.model.macs,)),
            Contender(cascade, tiny_cascade.manifest.exit_macs),
        ]
        found = measure(contenders, SeededPhotos(12, 3), rounds=2)
    first, second = found.timings
    assert len(first.latency_ns) == len(second.latency_ns) == 24
    assert set(first.exits) == {0} and second.exit_rates == (0.5, 0.5)
    rows = photo_summaries(found)
    assert rows[0]["ratio"] == 1
    assert rows[1]["p50_ms"] == np.percentile(second.latency_ns, 50) / 1e6
    assert rows[1]["mean_mmac"] == pytest.approx(np.mean(tiny_cascade.manifest.exit_macs) / 1e6)


def test_new_thresholds_are_recorded_and_the_old_proof_goes(copied: Path) -> None:
    before = open_adaptive(copied)
    policy = policy_of("max_softmax", ["make_net_32", "make_net_48"], (0.0,), None)
    after = replace_policy(before, policy)
    assert after.manifest.thresholds == (0.0,)
    assert (before.manifest.proof.verdict, after.manifest.proof.verdict) == ("passed", "not executed")
    with load_adaptive(after) as run:
        assert {run(photo).exit for photo in SeededPhotos(4)} == {0}
    assert not list(copied.parent.glob(".*"))


def test_a_stage_file_of_another_model_is_refused(copied: Path) -> None:
    one, other = copied / "make_net_32-tflite-float32", copied / "make_net_48-tflite-float32"
    shutil.copy(other / "model.tflite", one / "model.tflite")
    with pytest.raises(UsageError, match="has changed since it was exported"):
        open_adaptive(copied)
    shutil.rmtree(one)
    shutil.copytree(other, one)
    with pytest.raises(UsageError, match=r"holds make_net_48 for tflite; this place is for make_net_32"):
        open_adaptive(copied)


def test_a_stage_that_was_exported_again_with_other_weights_is_refused(copied: Path) -> None:
    manifest = copied / "make_net_32-tflite-float32" / "manifest.json"
    content = json.loads(manifest.read_text("utf-8"))
    content["seed"] = 7
    manifest.write_text(json.dumps(content), "utf-8")
    with pytest.raises(UsageError, match="is not the artifact that was exported into"):
        open_adaptive(copied)


def test_thresholds_changed_by_hand_are_refused(copied: Path) -> None:
    policy = copied / "policy.json"
    text = policy.read_text("utf-8")
    threshold = json.loads(text)["exits"][0]["threshold"]
    policy.write_text(text.replace(str(threshold), "0.5", 1), "utf-8")
    with pytest.raises(UsageError, match=r"policy.json has changed.*\n.*acmix exits"):
        open_adaptive(copied)


@pytest.mark.parametrize("missing", ["policy.json", "reference.npz", "adaptive.json", "make_net_48-tflite-float32"])
def test_a_folder_that_lacks_a_part_is_refused(copied: Path, missing: str) -> None:
    part = copied / missing
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    with pytest.raises(UsageError, match=r"missing|is not an artifact|no adaptive artifact"):
        open_adaptive(copied)


@pytest.mark.parametrize("bad", ["", "[]", "{}", '{"schema_version": 99}', "\xff"])
def test_a_damaged_manifest_is_refused(copied: Path, bad: str) -> None:
    (copied / "adaptive.json").write_bytes(bad.encode("latin-1"))
    with pytest.raises(UsageError, match=r"cannot be read|schema version"):
        open_adaptive(copied)


def test_stages_that_reach_outside_the_folder_are_refused(copied: Path) -> None:
    manifest = copied / "adaptive.json"
    content = json.loads(manifest.read_text("utf-8"))
    content["networks"][0]["folder"] = "../elsewhere"
    manifest.write_text(json.dumps(content), "utf-8")
    with pytest.raises(UsageError, match="outside its own folder"):
        open_adaptive(copied)
