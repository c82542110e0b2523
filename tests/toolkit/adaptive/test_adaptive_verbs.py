"""Adaptive models at the command line and behind it: flags, failures of runtimes and disks, eager built again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from acmix.apps import adaptive, adaptive_tables, profile, verbs
from acmix.apps.requests import ExportFlags
from acmix.calibration.aims import parse_aim
from acmix.calibration.decoded import DecodedPhotos
from acmix.calibration.photos import read_photo_folder
from acmix.toolkit import capture, catalog
from acmix.toolkit.adaptive import host
from acmix.toolkit.adaptive.artifact import AdaptiveArtifact, open_adaptive
from acmix.toolkit.adaptive.cascade import cascade
from acmix.toolkit.adaptive.export import AdaptiveRequest, export_adaptive
from acmix.toolkit.adaptive.find import find_adaptive
from acmix.toolkit.adaptive.photos import SeededPhotos
from acmix.toolkit.adaptive.rebuild import rebuild_adaptive
from acmix.toolkit.adaptive.reference import agreement_db
from acmix.toolkit.adaptive.runner import load_stages
from acmix.toolkit.artifact import Artifact, open_artifact
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.models.msdnet import MSDNet
from acmix.toolkit.recipe import Tolerance
from acmix.toolkit.request import ExportRequest, TargetRequest
from acmix.toolkit.seal import move_into_place


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"photos": None}, "thresholds are chosen on photos"),
        ({"inputs": ("1x3x32x32",)}, "--input is for single models"),
        ({"preprocess": "mine.toml"}, "--preprocess of an adaptive model"),
        ({"min_snr": "logits=60"}, "give one number for all of them"),
        ({"calibration": "builtin"}, "--calibration has no meaning.*128 of --photos"),
        ({"calibration_count": 5}, "--calibration-count has no meaning"),
        ({"accept_calibration": True}, "--accept-calibration has no meaning.*float32 finds no ranges"),
        ({"max_drop": 0.0}, "--max-drop has no meaning"),
        ({"data": Path("data")}, "--data has no meaning"),
        ({"data_count": 5, "precision": "w8a8"}, "--data-count has no meaning"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    changes: dict[str, object], message: str, tiny: str, some_photos: Path, tmp_path: Path
) -> None:
    flags = ExportFlags(
        model=f"cascade:{tiny}@32,{tiny}@48", target="tflite", preprocess="imagenet", photos=some_photos, out=tmp_path
    )
    with pytest.raises(UsageError, match=message):
        adaptive.adaptive_request(replace(flags, **changes), {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("exits", "weights", "message"),
    [("table=3", None, "Add --weights FILE"), ("luck", None, "is no operating point")],
)
def test_an_operating_point_that_cannot_be_had_is_refused(
    exits: str, weights: str | None, message: str, some_photos: Path, tmp_path: Path
) -> None:
    flags = ExportFlags(model="gfnet_100", target="tflite", weights=weights, photos=some_photos, out=tmp_path)
    with pytest.raises(UsageError, match=message):
        adaptive.adaptive_request(flags, {}, exits)


def test_a_row_of_a_checkpoints_table_becomes_the_thresholds(tmp_path: Path) -> None:
    file = tmp_path / "gfnet.pth.tar"
    torch.save({"fc": {}, "dynamic_threshold": [[0.9, 0.8, -1e8], [0.7, 0.6, -1e8]]}, file)
    aim = adaptive.published_aim("table=2", find_adaptive("gfnet_100"), str(file))
    assert (aim.aim, aim.values) == ("thresholds", (0.7, 0.6))
    with pytest.raises(UsageError, match="rows 1 to 2"):
        adaptive.published_aim("table=3", find_adaptive("gfnet_100"), str(file))


def test_choosing_thresholds_anew_draws_the_curve(copied: Path, some_photos: Path, tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    single = copied / "make_net_48-tflite-float32"
    adaptive.exits(copied, some_photos, "rates=0.2,0.8", picture, (single,), False)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    decoded = DecodedPhotos(read_photo_folder(some_photos, open_adaptive(copied).manifest.first_preprocess))
    (timed,), (counted,) = (adaptive.baselines_of((single,), decoded, by_time) for by_time in (True, False))
    # Where there are no times, multiply-accumulates are on the axis of the curve.
    assert counted.cost == open_artifact(single).manifest.model.macs / 1e6 != timed.cost
    assert counted.accuracy == timed.accuracy
    after = open_adaptive(copied)
    assert after.manifest.exit_rates == (0.2, 0.8)
    assert after.policy.calibration is not None
    assert after.policy.calibration.unit == "ms"
    assert after.policy.calibration.labelled


def test_photos_that_are_unfit_for_ranges_are_refused_before_any_work(tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "noise"
    folder.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    flags = ExportFlags(
        f"cascade:{tiny}@32,{tiny}@48", "tflite", "w8a8", preprocess="imagenet", photos=folder, out=tmp_path / "build"
    )
    with pytest.raises(UsageError, match=r"not fit to find ranges on: . of its 3 images are noise"):
        adaptive.adaptive_request(flags, {})
    request = adaptive.adaptive_request(replace(flags, accept_calibration=True), {})
    assert "of its 3 images are noise" in request.remarks[0]
    assert not (tmp_path / "build").exists()


def test_flags_of_single_models_are_refused_beside_an_adaptive_artifact(tiny_cascade: AdaptiveArtifact) -> None:
    folder, photos = tiny_cascade.folder, Path("photos")
    for flag, value in (("preset", "rapid"), ("runs", 5), ("seconds", 1.0), ("wait", 0.0), ("device", "phone")):
        with pytest.raises(UsageError, match=f"--{flag} has no meaning for an adaptive model"):
            profile.profile([folder], photos=photos, **{flag: value})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--every has no meaning"):
        verbs.inspect(folder, every=True)
    with pytest.raises(UsageError, match="--baseline has no meaning"):
        verbs.exits(folder, photos, baseline=[folder])
    with pytest.raises(UsageError, match="no known suffix"):
        verbs.exits(folder, photos, picture=Path("curve.docx"))


def test_what_programs_have_to_do_stands_below_the_stages_once(tiny_cascade: AdaptiveArtifact) -> None:
    assert "session option" not in str(adaptive_tables.summary(tiny_cascade).caption)
    changed = {}
    for name, one in tiny_cascade.networks.items():
        target = replace(one.manifest.target, needs=("set the session option",))
        changed[name] = replace(one, manifest=replace(one.manifest, target=target))
    shown = str(adaptive_tables.summary(replace(tiny_cascade, networks=changed)).caption)
    assert shown.count("tflite: set the session option.") == 1


def test_what_a_runtime_raises_names_the_file(tiny_cascade: AdaptiveArtifact, copied: Path) -> None:
    stages = tiny_cascade.manifest.stages
    networks = {name: replace(a, folder=copied / a.folder.name) for name, a in tiny_cascade.networks.items()}
    # Not opened, but loaded: nobody looks at digests here.
    small, large = (network.model_file for network in networks.values())
    shutil.copy(large, small)
    with load_stages(stages, networks, 1) as (engine, _), pytest.raises(GateError, match="tflite fails on a photo"):
        engine(next(iter(SeededPhotos(1))), None)
    small.write_bytes(b"no model")
    with (
        pytest.raises(GateError, match=r"make_net_32.*refuses its file(.|\n)*acmix verify"),
        load_stages(stages, networks, 1),
    ):
        pass


def test_files_that_nobody_ran_were_asked_for_their_tolerances(tiny_cascade: AdaptiveArtifact) -> None:
    def unproven(artifact: Artifact, tolerances: tuple[Tolerance, ...]) -> Artifact:
        proof = replace(artifact.manifest.proof, agreements=())
        return replace(artifact, manifest=replace(artifact.manifest, proof=proof, tolerances=tolerances))

    one, two = tiny_cascade.networks.items()
    networks = {one[0]: unproven(one[1], (Tolerance(55.0, 1e-4),)), two[0]: unproven(two[1], ())}
    assert agreement_db(replace(tiny_cascade, networks=networks)) == 55.0
    asked = two[1].manifest.recipe.tolerance.snr_db
    assert agreement_db(replace(tiny_cascade, networks={two[0]: networks[two[0]]})) == asked


def with_weights_of(file: Path, artifact: AdaptiveArtifact) -> AdaptiveArtifact:
    """What exporting msdnet_step4_exits with --weights FILE records, on other files."""
    spec = find_adaptive("msdnet_step4_exits")
    like = next(iter(artifact.networks.values()))
    networks = {}
    for name, source in spec.networks.items():
        model = replace(like.manifest.model, weights=capture.build(source, str(file)).weights)
        networks[name] = replace(like, manifest=replace(like.manifest, model=model))
    manifest = replace(artifact.manifest, source=spec.reference, stages=spec.stages)
    return replace(artifact, manifest=manifest, networks=networks)


def test_evaluating_trained_networks_takes_their_own_weights(tiny_cascade: AdaptiveArtifact, tmp_path: Path) -> None:
    file = tmp_path / "msdnet.pth"
    torch.manual_seed(1)
    whole = MSDNet(4).eval()
    torch.save(whole.state_dict(), file)
    artifact = with_weights_of(file, tiny_cascade)
    eager, missing = rebuild_adaptive(artifact)
    assert eager is not None and not missing
    (photo,) = SeededPhotos(1)
    preprocess = artifact.manifest.first_preprocess
    image = host.normalised(host.fitted(photo, preprocess), preprocess).transpose(0, 3, 1, 2)
    with torch.no_grad():
        wanted = whole(torch.from_numpy(np.ascontiguousarray(image)))[-1][0].numpy()
    np.testing.assert_allclose(eager.every_stage(photo).stages[-1].logits, wanted, rtol=1e-3, atol=1e-4)
    torch.manual_seed(2)
    torch.save(MSDNet(4).state_dict(), file)
    assert rebuild_adaptive(artifact) == (
        None,
        "block_1 of msdnet_step4_exits has other weights now than when it was exported",
    )
    file.unlink()
    assert rebuild_adaptive(artifact)[1].startswith("there is no file")


def test_a_manifest_does_not_choose_what_python_runs(tiny_cascade: AdaptiveArtifact) -> None:
    assert rebuild_adaptive(tiny_cascade) == (
        None,
        f"it was made from {tiny_cascade.manifest.source}, which only its owner runs: --model file.py:NAME",
    )
    for source in ("cascade:theirs.pt2@32", "cascade:os:system@32", "os:system"):
        foreign = replace(tiny_cascade.manifest, source=source)
        assert "only its owner runs" in rebuild_adaptive(replace(tiny_cascade, manifest=foreign))[1]
    # Its owner names it again.
    eager, reason = rebuild_adaptive(tiny_cascade, tiny_cascade.manifest.source)
    assert (eager is not None, reason) == (True, "")


@pytest.mark.usefixtures("cold_converters")
def test_a_failed_export_keeps_its_log_beside_out_and_names_it(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow, out = tmp_path / "shadow", tmp_path / "build"
    shadow.mkdir()
    (shadow / "onnxsim.py").write_text("raise RuntimeError('no simplifier today')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(shadow))
    spec = cascade(f"cascade:{tiny}@32,{tiny}@48", imagenet=True)
    targets = (TargetRequest("onnx", catalog.load_target("onnx").options()),)
    base = ExportRequest(next(iter(spec.networks.values())), catalog.load_recipe("float32"), targets, out)
    choose = adaptive.chooser(parse_aim("rates=0.5,0.5"), spec.rule, 0, spec.stage_names)
    (outcome,) = export_adaptive(AdaptiveRequest(spec, base, SeededPhotos(2), choose), lambda *_: None)
    log = out / "make_net_32-onnx-float32.log"
    assert outcome.exit_code == 1 and str(log) in outcome.error
    assert "no simplifier today" in log.read_text("utf-8")
    assert [file.name for file in out.iterdir()] == [log.name]


def test_a_folder_that_cannot_move_leaves_the_old_one_where_it_is(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    final = staging / "final"
    final.mkdir(parents=True)
    (final / "old").touch()
    # No folder moves into itself.
    with pytest.raises(OSError):
        move_into_place(staging, final)
    assert (final / "old").exists()
    assert [file.name for file in staging.iterdir()] == ["final"]
