"""A user's own MSDNet, trained here: from its training to exits on photos that neither training nor calibration saw."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from acmix.toolkit.adaptive.artifact import AdaptiveArtifact, open_adaptive

ACMIX = str(Path(sys.executable).with_name("acmix"))
TRAINING = Path(__file__).with_name("fashion.py")


def acmix(*words: object) -> tuple[dict[str, Any], str]:
    """What a command puts on stdout and on stderr."""
    done = subprocess.run([ACMIX, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (json.loads(done.stdout) if done.stdout else {}), done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fashion_net.py with its trained weights, and photos that training did not see."""
    made = tmp_path_factory.mktemp("fashion")
    done = subprocess.run([sys.executable, TRAINING, made], stderr=subprocess.PIPE, text=True)
    if "is not here: apt-get install" in done.stderr and not os.environ.get("ACMIX_REQUIRE_DATA"):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def exported(folder: Path) -> AdaptiveArtifact:
    """The network on TFLite, its exits calibrated on 2000 photos."""
    photos = folder / "calibration"
    words = ("--target", "tflite", "--photos", photos, "--out", folder, "--exits", "surely=0.5", "--json")
    answer, _ = acmix("export", "--model", f"{folder / 'fashion_net.py'}:NET", *words)
    return open_adaptive(Path(answer["outcomes"][0]["artifact"]))


def test_the_curve_goes_from_the_first_exit_to_what_the_last_one_reaches(exported: AdaptiveArtifact) -> None:
    calibration = exported.policy.calibration
    assert calibration is not None
    assert (calibration.photos, calibration.labelled, calibration.unit) == (2000, True, "ms")
    curve = calibration.curve
    assert curve[0].exit_rates == (1.0, 0.0, 0.0)
    assert curve[0].accuracy > 0.8
    assert calibration.last_accuracy > max(0.85, curve[0].accuracy + 0.005)
    assert curve[-1].accuracy >= calibration.last_accuracy
    assert len(curve) >= 10
    for before, after in itertools.pairwise(curve):
        assert before.cost < after.cost
        assert before.accuracy < after.accuracy


def test_every_photo_goes_the_way_of_eager(exported: AdaptiveArtifact) -> None:
    proof = exported.manifest.proof
    assert (proof.verdict, proof.photos) == ("passed", 2000)
    assert proof.same_exit + proof.within_margin == 2000
    assert exported.manifest.exit_macs[0] < 0.2 * exported.manifest.exit_macs[-1]


def test_on_unseen_photos_it_keeps_the_accuracy_of_all_stages_at_less_than_seven_tenths_of_their_work(
    exported: AdaptiveArtifact, folder: Path
) -> None:
    answer, text = acmix("evaluate", exported.folder, "--data", folder / "others", "--json")
    found = answer["evaluation"]
    assert found["photos"] == 8000
    # What labels promised at 95 %, on 2000 other photos.
    assert found["top1"] >= found["last_top1"] - 0.005
    assert found["last_top1"] > 0.85
    assert found["mean_macs"] <= 0.7 * exported.manifest.exit_macs[-1]
    assert found["cost_as_expected"]
    assert "only its owner runs: --model file.py:NAME" in text


def test_its_owner_compares_it_with_eager(exported: AdaptiveArtifact, folder: Path) -> None:
    own = ("--model", f"{folder / 'fashion_net.py'}:NET", "--limit", 200)
    answer, _ = acmix("evaluate", exported.folder, "--data", folder / "others", *own, "--json")
    assert answer["evaluation"]["way"]["verdict"] == "passed"
    assert answer["evaluation"]["way"]["photos"] == 200


def test_the_curve_is_drawn(exported: AdaptiveArtifact, folder: Path) -> None:
    picture = folder / "curve.png"
    acmix("exits", exported.folder, "--photos", folder / "calibration", "--picture", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert open_adaptive(exported.folder).policy.calibration is not None
