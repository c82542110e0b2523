"""`acmix profile --layers` as a user types it: one convolution has the time, and every runtime says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from acmix.apps.cli import app
from acmix.apps.requests import ExportFlags, export_request
from acmix.toolkit import pipeline
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.errors import UsageError

LOPSIDED = f"{Path(__file__).with_name('lopsided_net.py')}:make_net"
TARGETS = ("tflite", "onnx", "executorch")
Exported = Callable[[str], dict[str, Artifact]]


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The folders of the network on each runtime."""
    flags = ExportFlags(
        model=LOPSIDED, target=",".join(TARGETS), inputs=("1x3x32x32",), out=tmp_path_factory.mktemp("lopsided")
    )
    outcomes = pipeline.export(export_request(flags, {}), lambda target, stage, seconds: None)
    assert [o.error for o in outcomes] == ["", "", ""]
    folders = {o.target: str(o.artifact.folder) for o in outcomes if o.artifact is not None}
    return [folders[target] for target in TARGETS]


def test_the_heaviest_module_comes_first_on_every_runtime(lopsided: list[str], tmp_path: Path) -> None:
    picture = tmp_path / "layers.png"
    words = [*lopsided, "--layers", "--runs", "12", "--model", LOPSIDED, "--plot", str(picture), "--json"]
    done = CliRunner().invoke(app, ["profile", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert [one["target"] for one in told["layers"]["layers"]] == list(TARGETS)
    rows = {row["module"]: row for row in told["rows"]}
    assert told["rows"][0]["module"] == "heavy" and "lopsided_net.py" in rows["heavy"]["source"]
    for i, summary in enumerate(told["summary"]):
        named = [row["ms"][i] for module, row in rows.items() if module in ("light", "heavy", "head") and row["ms"][i]]
        assert len(named) == 3
        # It has 99 % of the arithmetic; a shared machine may stop anything for a while.
        assert rows["heavy"]["ms"][i] > 0.5 * summary["operators_ms"]
        assert 0 < summary["operators_ms"] <= 1.05 * summary["profiled_ms"]
        assert summary["outside_share"] == 0.0
        assert summary["times_floor"] > 0.3
    saved = json.loads(Path(told["saved"]).read_text())
    assert all(len(o["times_ns"]) >= 12 for one in saved["layers"] for o in one["operators"])
    assert Image.open(picture).size[0] > 400


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "--device", "nowhere"], "no device is called 'nowhere'"),
        (["--layers", "--device", "host,host"], "must name each device once"),
        (["--layers", "--device", "host", "--plot", "layers.docx"], "a picture ends in .png"),
        (["--layers", "--device", "host", "--model", LOPSIDED], "is not what make_net-onnx-float32 was made from"),
        (["--layers", "--seconds", "3"], "--layers counts runs"),
        (["--layers", "--wait", "3"], "--layers has no verdict"),
        (["--layers", "--warm-up", "3"], "--layers warms up for 3 s at most"),
        (["--layers", "--photos", "photos"], "--layers repeats one input of noise"),
        (["--plot", "layers.png"], "--plot and --model belong to --layers"),
        (["--layers", "--plot", "layers.docx"], "a picture ends in .png"),
        (["--layers", "--plot", "nowhere/layers.png"], "there is no folder nowhere"),
        (["--layers", "--threads", "999"], "--threads 999: this host has"),
        (["--layers", "--model", LOPSIDED], "is not what make_net-onnx-float32 was made from"),
        (["--layers", "--model", "nowhere.py:make"], "there is no file nowhere.py"),
    ],
)
def test_flags_that_do_not_go_with_it_are_refused(exported: Exported, words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["profile", str(exported("float32")["onnx"].folder), *words])
    assert isinstance(done.exception, UsageError) and message in str(done.exception)


@pytest.mark.parametrize("where", [[], ["--device", "host"]])
def test_files_that_cannot_stand_side_by_side_are_refused(
    exported: Exported, lopsided: list[str], where: list[str]
) -> None:
    words = [str(exported("float32")["onnx"].folder), lopsided[0], "--layers", *where]
    done = CliRunner().invoke(app, ["profile", *words])
    assert isinstance(done.exception, UsageError) and "are of different networks or weights" in str(done.exception)


def test_a_file_without_a_runtime_here_is_refused(exported: Exported) -> None:
    done = CliRunner().invoke(app, ["profile", str(exported("float32")["coreml"].folder), "--layers"])
    if done.exit_code == 0:
        pytest.skip("Core ML runs here")
    assert isinstance(done.exception, UsageError) and "cannot be profiled on this host" in str(done.exception)
