"""The programs as a user meets them: every wrong input gets a sentence, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from acmix.apps import cli
from acmix.toolkit import catalog
from acmix.toolkit.artifact import Artifact

Exported = Callable[[str], dict[str, Artifact]]
PROGRAMS = Path(sys.executable).parent
TINY_FOLDER = Path(__file__).parent.parent


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def acmix(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`acmix ARGUMENTS` in this process."""

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["acmix", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capfd.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with the tiny network in it."""
    (tmp_path / "nets.py").write_text((TINY_FOLDER / "tiny_net.py").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} - {"nets.py", "__pycache__"}


TINY = ("--model", "nets.py:make_net", "--input", "1x3x32x32", "--target", "onnx", "--out", "out")


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (("--model", "lsnet_x"), ["no model is called 'lsnet_x'", "lsnet_s", "acmix list models"]),
        (("--target", "tflight"), ["no target is called 'tflight'", "Did you mean tflite?", "acmix list targets"]),
        (("--target", ","), ["--target names nothing", "tflite"]),
        (("--precision", "float61"), ["no precision is called 'float61'", "float16", "acmix list recipes"]),
        (("--target", "coreml", "--layout", "nhwc"), ["--layout belongs to tflite", "asked for was coreml"]),
        (("--target", "tflite", "--layout", "nwhc"), ["--layout 'nwhc' is not known to tflite", "nhwc"]),
        (("--target", "executorch", "--delegate", "nnapi"), ["--delegate 'nnapi'", "xnnpack", "vulkan"]),
        (("--target", "coreml", "--minimum-deployment", "ios9"), ["--minimum-deployment 'ios9'", "ios16"]),
        (("--target", "onnx", "--opset", "3"), ["opset", "3"]),
        (("--target", "onnx", "--weight-type", "int7"), ["--weight-type 'int7'", "uint8"]),
        (("--weight-type", "uint8", *TINY), ["recipes with int8 activations, as w8a8, not for 'float32'"]),
        (("--model", "nets.py:make_net"), ["does not say what goes in", "--input 1x3x224x224"]),
        (("--model", "nets.py:make_nets", "--input", "1x3x8x8"), ["has no 'make_nets'", "Did you mean make_net"]),
        (("--model", "nots.py:make_net", "--input", "1x3x8x8"), ["there is no file nots.py"]),
        (("--model", "no.such:net", "--input", "1x3x8x8"), ["there is no module 'no.such'"]),
        (("--model", "nets.py:NOT_A_MODEL", "--input", "1x3x8x8"), ["is a int", "nn.Module"]),
        (("--model", "nets.py:make_net", "--input", "1x3xHxW"), ["not a fixed shape", "1x3x224x224"]),
        (("--model", "nets.py:make_net", "--input", "1x3x-1x32"), ["not a fixed shape"]),
        (("--model", "nets.py:make_net", "--input", ""), ["has no shape"]),
        (("--model", "nets.py:make_net", "--input", "8x3x32x32"), ["has batch 8", "Write 1x3x32x32"]),
        (("--model", "nets.py:make_net", "--input", "1x3x32x32:float61"), ["has type 'float61'"]),
        (("--model", "gone.pt2"), ["there is no file gone.pt2", "torch.export.save"]),
        (("--min-snr", "high"), ["--min-snr 'high' is no number of dB"]),
        (("--labels", "gone.txt"), ["--labels gone.txt cannot be read"]),
        (("--photos", "gone"), ["gone is not a folder"]),
        (("--image-input", *TINY[:4], "--target", "coreml"), ["bakes the preprocessing in", "--preprocess"]),
        (("--photos", ".", *TINY), ["no preprocessing", "--preprocess imagenet"]),
        (("--calibration-count", "7", *TINY), ["--calibration-count is for", "'float32' has none", "w8a8"]),
        (("--accept-calibration", "--precision", "w8", *TINY), ["--accept-calibration is for", "'w8' has none"]),
        (("--preprocess", "gone.toml", *TINY), ["neither 'imagenet' nor a TOML file"]),
        (("--nope",), ["No such option", "--nope"]),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_said_before_any_work(
    acmix: Callable[..., Answer], workplace: Path, arguments: tuple[str, ...], sentences: list[str]
) -> None:
    answer = acmix("export", *arguments)
    assert answer.code == 2
    assert answer.err.startswith("acmix: ")
    assert "Traceback" not in answer.err
    for sentence in sentences:
        assert sentence in answer.err
    assert written(workplace) == set()


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        ((), ["looks at an artifact, or at a model", "acmix inspect --model lsnet_t --target tflite"]),
        (("--model", "lsnet_t"), ["looks at an artifact, or at a model"]),
        (("somewhere", "--model", "lsnet_t", "--target", "onnx"), ["looks at an artifact, or at a model"]),
        (("--model", "lsnet_t", "--target", "onnx,tflite"), ["takes one target, not 'onnx,tflite'"]),
        (("--model", "lsnet_x", "--target", "onnx"), ["no model is called 'lsnet_x'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_inspect_says_what_it_can_look_at(
    acmix: Callable[..., Answer], arguments: tuple[str, ...], sentences: list[str]
) -> None:
    answer = acmix("inspect", *arguments)
    assert answer.code == 2
    for sentence in sentences:
        assert sentence in answer.err


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (("--model", "nets.py:make_branching"), ["torch.export refuses nets.py:make_branching", "if x.sum() > 0"]),
        (("--model", "nets.py:make_number"), ["gave a int, not an nn.Module"]),
        (("--input", "two=1x5x32x32"), ["fails on an input of 1x3x32x32, 1x5x32x32", "2 positional arguments"]),
        (("--weights", "gone.pth"), ["gone.pth"]),
        (("--weights", "nets.py"), ["nets.py"]),
        (("--labels", "two.txt"), ["--labels names 2 classes", "tells 2000 apart"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_model_that_cannot_be_captured_leaves_nothing_behind(
    acmix: Callable[..., Answer], workplace: Path, arguments: tuple[str, ...], sentences: list[str]
) -> None:
    (workplace / "two.txt").write_text("cat\ndog\n", encoding="utf-8")
    answer = acmix("export", *TINY, *arguments)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    for sentence in sentences:
        assert sentence in answer.err
    assert written(workplace) == {"two.txt"}


def test_a_wrong_checkpoint_names_its_keys(acmix: Callable[..., Answer], workplace: Path) -> None:
    torch.save({"stem.0.weight": torch.zeros(8, 3, 3, 3), "stray": torch.zeros(1)}, workplace / "half.pth")
    answer = acmix("export", *TINY, "--weights", "half.pth")
    assert answer.code == 2
    assert "stray" in answer.err
    assert "stem.1." in answer.err
    assert written(workplace) == {"half.pth"}


def test_an_artifact_is_replaced_only_when_asked(acmix: Callable[..., Answer], workplace: Path) -> None:
    folder = workplace / "out" / "make_net-onnx-float32"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("keep", encoding="utf-8")
    answer = acmix("export", *TINY)
    assert answer.code == 2
    assert "exists already" in answer.err
    assert "--overwrite" in answer.err
    assert (folder / "mine.txt").read_text(encoding="utf-8") == "keep"


def test_an_out_that_is_a_file_is_refused(acmix: Callable[..., Answer], workplace: Path) -> None:
    (workplace / "out").write_text("a file", encoding="utf-8")
    answer = acmix("export", *TINY)
    assert answer.code == 2
    assert "out is a file" in answer.err


@pytest.mark.parametrize("verb", ["verify", "inspect", "profile"])
def test_a_folder_that_is_no_artifact_is_refused(acmix: Callable[..., Answer], workplace: Path, verb: str) -> None:
    answer = acmix(verb, ".")
    assert answer.code == 2
    assert "is not an artifact" in answer.err


def test_errors_are_json_too(acmix: Callable[..., Answer], workplace: Path) -> None:
    answer = acmix("verify", "gone", "--json")
    assert answer.code == 2
    assert json.loads(answer.out)["error"].startswith("gone is not an artifact")


@pytest.mark.parametrize("what", ["models", "targets", "recipes"])
def test_lists_come_as_json_with_a_schema_version(acmix: Callable[..., Answer], what: str) -> None:
    answer = acmix("list", what, "--json")
    listed = json.loads(answer.out)
    assert listed["schema_version"] == 1
    assert len(listed[what]) >= 2


def test_the_list_of_models_shows_every_model(acmix: Callable[..., Answer]) -> None:
    answer = acmix("list", "models")
    assert answer.out == ""
    assert all(card.name in answer.err for card in catalog.model_cards())


def test_inspect_shows_interface_placement_and_verdict(acmix: Callable[..., Answer], exported: Exported) -> None:
    answer = acmix("inspect", str(exported("float32")["tflite"].folder))
    assert answer.code == 0
    for word in ("1x32x32x3", "nhwc", "CONV_2D", "XNNPACK", "fold_batch_norm", "passed"):
        assert word in answer.err


def test_inspect_gives_the_manifest_as_json(acmix: Callable[..., Answer], exported: Exported) -> None:
    answer = acmix("inspect", str(exported("float32")["onnx"].folder), "--json")
    assert json.loads(answer.out)["manifest"]["target"]["name"] == "onnx"


def test_verify_of_a_good_artifact_is_exit_code_0(acmix: Callable[..., Answer], exported: Exported) -> None:
    answer = acmix("verify", str(exported("float32")["onnx"].folder), "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["proof"]["verdict"] == "passed"


def test_profile_interleaves_and_keeps_raw_samples(acmix: Callable[..., Answer], exported: Exported) -> None:
    folders = [str(exported("float32")[name].folder) for name in ("onnx", "tflite")]
    answer = acmix("profile", *folders, "--runs", "60", "--seconds", "0", "--wait", "0", "--warm-up", "0.5", "--json")
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    saved = json.loads(Path(result["saved"]).read_bytes())
    Path(result["saved"]).unlink()
    assert saved == result["measurement"]
    for timing in saved["timings"]:
        assert len(timing["latency_ns"]) == 60
        assert len(timing["warm_up_ns"]) >= 10
        assert min(timing["latency_ns"]) > 0
        assert timing["load_ns"] > 0
        assert timing["peak_memory_mb"] > 1
    assert [s["artifact"] for s in result["summary"]] == [Path(f).name for f in folders]


def test_profile_refuses_more_threads_than_processors(acmix: Callable[..., Answer], exported: Exported) -> None:
    answer = acmix("profile", str(exported("float32")["onnx"].folder), "--threads", "999")
    assert answer.code == 2
    assert "--threads 999" in answer.err


def test_profile_says_what_cannot_run_here(acmix: Callable[..., Answer], exported: Exported) -> None:
    if sys.platform == "darwin":
        pytest.skip("Core ML runs here")
    answer = acmix("profile", str(exported("float32")["coreml"].folder))
    assert answer.code == 2
    assert "macOS" in answer.err


def test_doctor_finds_every_target(acmix: Callable[..., Answer]) -> None:
    answer = acmix("doctor", "--json")
    whats = [check["what"] for check in json.loads(answer.out)["checks"]]
    assert {f"target {name}" for name in catalog.stems("targets")} <= set(whats)


@pytest.mark.parametrize("arguments", [["--help"], ["list", "models"], ["list", "targets"]])
def test_help_and_lists_import_nothing_heavy(arguments: list[str]) -> None:
    """What keeps them under half a second; the seconds themselves are not asserted on a busy machine."""
    program = (
        "import sys\n"
        "from acmix.apps import cli\n"
        f"sys.argv = ['acmix', *{arguments!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch', 'PIL', 'scipy', 'onnx', 'coremltools', 'executorch', 'litert_torch', 'ai_edge_litert')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert answer.stdout.splitlines()[-1] == "[]"


def test_acmix_export_is_export(workplace: Path) -> None:
    answer = subprocess.run([PROGRAMS / "acmix-export", "--target", "nope"], capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stderr.startswith("acmix: no target is called 'nope'")
