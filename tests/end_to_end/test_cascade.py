"""A cascade with real weights, from the command line to photos that its calibration has not seen."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from acmix.toolkit.adaptive.artifact import AdaptiveArtifact, open_adaptive

CASCADE = "cascade:efficientnet_lite0@192,efficientnet_lite2@260"
ACMIX = str(Path(sys.executable).with_name("acmix"))


def acmix(*words: str) -> tuple[dict[str, Any], str]:
    """What a command puts on stdout and on stderr."""
    done = subprocess.run([ACMIX, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (json.loads(done.stdout) if done.stdout else {}), done.stderr


def chosen(photos: Path, folder: Path, wanted: range) -> Path:
    """A folder of the labelled photos of some classes, as links."""
    folder.mkdir()
    rows = csv.DictReader((photos / "labels.csv").read_text("utf-8").splitlines())
    kept = [row for row in rows if int(row["label"]) in wanted]
    for row in kept:
        (folder / row["file"]).symlink_to(photos / row["file"])
    lines = ["file,label", *(f"{row['file']},{row['label']}" for row in kept)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def exported(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> AdaptiveArtifact:
    """The cascade on TFLite, calibrated on 50 photos."""
    out = tmp_path_factory.mktemp("cascade")
    calibration = chosen(photos, out / "calibration", range(0, 1000, 20))
    answer, _ = acmix(
        "export", "--model", CASCADE, "--target", "tflite", "--photos", str(calibration), "--out", str(out), "--json"
    )
    (outcome,) = answer["outcomes"]
    return open_adaptive(Path(outcome["artifact"]))


def test_the_cascade_goes_the_way_of_eager_on_every_photo(exported: AdaptiveArtifact) -> None:
    proof = exported.manifest.proof
    assert (proof.verdict, proof.photos) == ("passed", 50)
    assert proof.same_exit + proof.within_margin == 50
    assert proof.confidence_error < 1e-4 < proof.confidence_margin
    assert exported.policy.calibration is not None
    assert exported.policy.calibration.labelled
    assert exported.policy.calibration.unit == "ms"


def test_unseen_photos_fare_as_the_calibration_expected(
    exported: AdaptiveArtifact, photos: Path, tmp_path: Path
) -> None:
    others = chosen(photos, tmp_path / "others", range(10, 1000, 20))
    answer, text = acmix("evaluate", str(exported.folder), "--data", str(others), "--json")
    found = answer["evaluation"]
    assert found["photos"] == 50
    assert found["cost_as_expected"] and found["accuracy_as_expected"]
    # Half a point of 50 photos is none: at most one photo is lost.
    assert found["top1"] >= found["last_top1"] - 0.02
    assert found["mean_macs"] < 0.6 * 860e6
    assert found["way"]["verdict"] == "passed"
    assert "as expected" in text


def test_verify_and_inspect_take_the_folder(exported: AdaptiveArtifact) -> None:
    answer, text = acmix("verify", str(exported.folder), "--json")
    assert {proof["verdict"] for proof in answer["proof"]["networks"].values()} == {"passed"}
    assert answer["proof"]["way"]["verdict"] == "passed"
    assert "the policy fits the stages" in text
    assert "efficientnet_lite0_192" in acmix("inspect", str(exported.folder))[1]


def test_profile_sets_the_cascade_beside_one_of_its_networks(exported: AdaptiveArtifact, photos: Path) -> None:
    calibration = exported.folder.parent / "calibration"
    alone = exported.networks["efficientnet_lite2_260"].folder
    answer, _ = acmix("profile", str(alone), str(exported.folder), "--photos", str(calibration), "--json")
    single, cascade = answer["measurement"]["timings"]
    assert len(single["latency_ns"]) == len(cascade["latency_ns"]) == 50
    assert set(cascade["exits"]) == {0, 1}
    assert cascade["mean_macs"] < 0.7 * single["mean_macs"]


def test_a_cascade_without_photos_is_refused(tmp_path: Path) -> None:
    words = [ACMIX, "export", "--model", CASCADE, "--target", "tflite", "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "thresholds are chosen on photos" in done.stderr
    assert "Traceback" not in done.stderr
