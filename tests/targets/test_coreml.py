from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from acmix.targets.coreml import TARGET, CoreMLOptions, with_pixels
from acmix.targets.formats import coreml_package
from acmix.targets.formats.coreml_converter import coremltools
from acmix.toolkit.errors import UsageError
from acmix.toolkit.recipe import Precision, Recipe, Tolerance
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Lowered, LoweringJob

PREPROCESS = Preprocess(36, (32, 32), (120.3, 110.2, 100.1), (60.0, 50.0, 40.0))
LABELS = ("cat", "žába")
TINY_MACS = 16 * 3 * 9 * 256 + 16 * 9 * 64 + 2 * 16 * 8 + 24 * 16 * 64 + 24 * 10
WEIGHTS = 16 * 27 + 16 * 9 + 2 * 16 * 8 + 24 * 16 + 240
not_on_a_mac = pytest.mark.skipif(sys.platform == "darwin", reason="says what a machine without Core ML does")


class Tiny(nn.Module):
    """32 x 32 pixels to 10 logits and their pooled features, with every kind of layer of our backbones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.down, self.up = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.project = nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.depthwise(self.stem(x))
        gate = self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True))))
        features = self.project(x * nn.functional.hardsigmoid(gate)).mean((2, 3))
        return self.head(features), features


@dataclass(frozen=True)
class Captured:
    net: Tiny
    program: torch.export.ExportedProgram


@dataclass(frozen=True)
class Exported:
    package: Path
    lowered: Lowered

    @property
    def specification(self) -> Any:
        return coreml_package.read_specification(self.package)


def recipe(weights: Precision, activations: Precision | None = None) -> Recipe:
    return Recipe(weights, weights, activations or weights, Tolerance(60.0, 1e-5))


def job(precision: Precision, options: CoreMLOptions) -> LoweringJob:
    return LoweringJob(
        model="tiny",
        recipe=recipe(precision),
        inputs=(TensorSpec("image", (1, 3, 32, 32), layout="nchw"),),
        outputs=(TensorSpec("logits", (1, 10)), TensorSpec("features", (1, 24))),
        options=options,
        preprocess=PREPROCESS,
        labels=LABELS,
    )


def capture() -> Captured:
    torch.manual_seed(0)
    net = Tiny().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1, 0.2)
            layer.running_mean = torch.randn(layer.num_features) / 10
            layer.running_var = torch.rand(layer.num_features) + 0.5
    return Captured(net, torch.export.export(net, (torch.randn(1, 3, 32, 32),)))


def exported(program: torch.export.ExportedProgram, job: LoweringJob, folder: Path) -> Exported:
    package = folder / "model.mlpackage"
    return Exported(package, TARGET.lower(program, job, package))


def write(folder: str) -> None:
    """Export the same network in a fresh process (called by a test below)."""
    exported(capture().program, job("float32", CoreMLOptions()), Path(folder))


@pytest.fixture(scope="module")
def captured() -> Captured:
    return capture()


@pytest.fixture(scope="module")
def float32(captured: Captured, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(captured.program, job("float32", CoreMLOptions()), tmp_path_factory.mktemp("float32"))


@pytest.fixture(scope="module")
def float16(captured: Captured, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(captured.program, job("float16", CoreMLOptions("ios17")), tmp_path_factory.mktemp("float16"))


@pytest.fixture(scope="module")
def image(captured: Captured, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    options = CoreMLOptions("ios15", image_input=True)
    return exported(captured.program, job("float32", options), tmp_path_factory.mktemp("image"))


def files_of(package: Path) -> dict[str, bytes]:
    return {str(path.relative_to(package)): path.read_bytes() for path in sorted(package.rglob("*")) if path.is_file()}


def constant(made: Exported, operation: Any, argument: str) -> np.ndarray[Any, np.dtype[Any]]:
    name = operation.inputs[argument].arguments[0].name
    value: np.ndarray[Any, np.dtype[Any]] = coreml_package.value_of(made.package, made.specification, name)
    return value


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_description_declares_float32_tensors_with_the_names_of_the_job(
    precision: str, request: pytest.FixtureRequest
) -> None:
    made: Exported = request.getfixturevalue(precision)
    described = made.specification.description
    float32_type = described.input[0].type.multiArrayType.FLOAT32
    declared = [
        (feature.name, tuple(feature.type.multiArrayType.shape), feature.type.multiArrayType.dataType)
        for feature in (*described.input, *described.output)
    ]
    assert declared == [
        ("image", (1, 3, 32, 32), float32_type),
        ("logits", (1, 10), float32_type),
        ("features", (1, 24), float32_type),
    ]
    assert made.lowered.inputs == job("float32", None).inputs  # type: ignore[arg-type]
    assert made.lowered.outputs == job("float32", None).outputs  # type: ignore[arg-type]


def test_the_deployment_target_decides_the_specification_version(
    float32: Exported, float16: Exported, image: Exported
) -> None:
    versions = [made.specification.specificationVersion for made in (image, float32, float16)]
    opsets = [coreml_package.main_function(made.specification).opset for made in (image, float32, float16)]
    assert versions == [6, 7, 8]
    assert opsets == ["CoreML5", "CoreML6", "CoreML7"]
    assert float32.lowered.details == {"minimum_deployment": "ios16", "specification_version": "7"}


def test_the_first_convolution_holds_the_network_s_weights_with_the_batch_norm_folded(
    captured: Captured, float32: Exported, float16: Exported
) -> None:
    convolution, norm = captured.net.stem[0], captured.net.stem[1]
    scale = (norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)).detach()
    weight = (convolution.weight.double() * scale.reshape(-1, 1, 1, 1)).detach().numpy()
    bias = (norm.bias.double() - norm.running_mean.double() * scale).detach().numpy()
    for made, relative in ((float32, 1e-6), (float16, 2**-10)):
        first = next(op for op in coreml_package.operations(made.specification) if op.type == "conv")
        np.testing.assert_allclose(constant(made, first, "weight"), weight, rtol=relative, atol=1e-6)
        np.testing.assert_allclose(constant(made, first, "bias"), bias, rtol=relative, atol=1e-6)


def test_float16_weights_take_half_the_bytes(float32: Exported, float16: Exported) -> None:
    full, half = (len(files_of(made.package)[str(coreml_package.WEIGHTS)]) for made in (float32, float16))
    assert full - half > 0.9 * WEIGHTS * 2 * 0.7
    convolutions = [op for op in coreml_package.operations(float16.specification) if op.type == "conv"]
    assert {constant(float16, op, "weight").dtype for op in convolutions} == {np.dtype(np.float16)}
    assert any("stay float32" in note for note in float16.lowered.notes)


def test_an_image_input_is_rgb_pixels_and_the_preprocessing_is_inside(image: Exported) -> None:
    feature = image.specification.description.input[0]
    assert feature.type.WhichOneof("Type") == "imageType"
    picture = feature.type.imageType
    assert (picture.width, picture.height, picture.colorSpace) == (32, 32, picture.RGB)
    assert image.lowered.inputs == (TensorSpec("image", (1, 32, 32, 3), "uint8", "image"),)
    subtract, multiply, convolution = list(coreml_package.operations(image.specification))[:3]
    assert [subtract.type, multiply.type, convolution.type] == ["sub", "mul", "conv"]
    assert subtract.inputs["x"].arguments[0].name == "image"
    assert multiply.inputs["x"].arguments[0].name == subtract.outputs[0].name
    assert convolution.inputs["x"].arguments[0].name == multiply.outputs[0].name
    mean, scale = constant(image, subtract, "y"), constant(image, multiply, "y")
    assert mean.shape == scale.shape == (1, 3, 1, 1)
    assert mean.ravel().tolist() == [float(np.float32(value)) for value in PREPROCESS.mean]
    assert scale.ravel().tolist() == [float(np.float32(1 / value)) for value in PREPROCESS.std]


def test_the_program_on_pixels_equals_the_program_on_normalised_pixels(captured: Captured) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (1, 3, 32, 32), generator=generator).double()
    mean, std = (torch.tensor(v).double().reshape(1, 3, 1, 1) for v in (PREPROCESS.mean, PREPROCESS.std))
    with torch.no_grad():
        expected = captured.program.module()(((pixels - mean) / std).float())
        actual = with_pixels(captured.program, PREPROCESS).module()(pixels.float())
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"preprocess": None}, "'tiny' has none"),
        ({"inputs": (TensorSpec("image", (1, 4, 32, 32)),)}, r"one input of \[1, 3, H, W\]"),
        ({"preprocess": dataclasses.replace(PREPROCESS, crop=(48, 48))}, r"crops \(48, 48\)"),
    ],
)
def test_an_image_input_without_matching_preprocessing_is_refused(
    captured: Captured, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    wanted = dataclasses.replace(job("float32", CoreMLOptions(image_input=True)), **change)
    with pytest.raises(UsageError, match=complaint):
        exported(captured.program, wanted, tmp_path)
    assert not (tmp_path / "model.mlpackage").exists()


def test_metadata_tells_an_app_how_to_prepare_a_photo(float32: Exported) -> None:
    texts = float32.specification.description.metadata
    assert json.loads(texts.userDefined["acmix.preprocess"])["mean"] == list(PREPROCESS.mean)
    assert tuple(json.loads(texts.userDefined["acmix.labels"])) == LABELS
    assert texts.userDefined["acmix.model"] == "tiny"
    assert "tiny, float32" in texts.shortDescription
    assert texts.versionString


def test_no_path_of_this_machine_is_inside(float32: Exported, float16: Exported, image: Exported) -> None:
    for made in (float32, float16, image):
        for data in files_of(made.package).values():
            for text in (__file__, str(Path(torch.__file__).parent), str(made.package.parent), "/site-packages"):
                assert text.encode() not in data


def test_two_processes_write_the_same_bytes(float32: Exported, tmp_path: Path) -> None:
    """Fresh ones, as those of exports: what other tests converted in this one has once shown in a file."""
    script = "import runpy, sys; runpy.run_path(sys.argv[1])['write'](sys.argv[2])"
    folders = [tmp_path / seed for seed in ("7", "8")]
    children = []
    for folder in folders:
        folder.mkdir()
        command = [sys.executable, "-c", script, __file__, str(folder)]
        children.append(subprocess.Popen(command, env=os.environ | {"PYTHONHASHSEED": folder.name}))
    assert [child.wait() for child in children] == [0, 0]
    one, two = (Exported(folder / "model.mlpackage", float32.lowered) for folder in folders)
    assert list(difflib.unified_diff(*(str(made.specification).splitlines() for made in (one, two)), n=0)) == []
    assert files_of(one.package) == files_of(two.package)
    assert float32.lowered.nondeterminism == ""


def test_to_open_a_package_with_coremltools_changes_no_byte_of_it(float32: Exported, tmp_path: Path) -> None:
    package = Path(shutil.copytree(float32.package, tmp_path / "model.mlpackage"))
    coremltools().models.MLModel(str(package), skip_model_load=True)
    assert files_of(package) == files_of(float32.package)


def test_the_package_holds_three_readable_files_that_its_manifest_names(float32: Exported) -> None:
    assert set(files_of(float32.package)) == {
        "Manifest.json",
        str(coreml_package.SPECIFICATION),
        str(coreml_package.WEIGHTS),
    }
    manifest = json.loads((float32.package / "Manifest.json").read_text())
    items = manifest["itemInfoEntries"]
    assert items[manifest["rootModelIdentifier"]]["path"] == "com.apple.CoreML/model.mlmodel"
    for item in items.values():
        assert (float32.package / "Data" / item["path"]).exists()
    for path in float32.package.rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044


def test_coremltools_takes_the_rewritten_package_for_a_valid_one(float32: Exported) -> None:
    from acmix.targets.formats.coreml_converter import coremltools

    ct = coremltools()
    from coremltools.libmodelpackage import ModelPackage

    assert ModelPackage.isValid(str(float32.package))
    specification = ct.utils.load_spec(str(float32.package))
    assert (
        specification.SerializeToString(deterministic=True)
        == (float32.package / coreml_package.SPECIFICATION).read_bytes()
    )


def test_the_program_is_left_as_it_was(captured: Captured, float32: Exported, image: Exported) -> None:
    fresh = capture().program
    assert captured.program.graph_module.code == fresh.graph_module.code
    assert str(captured.program.graph_signature) == str(fresh.graph_signature)


@not_on_a_mac
def test_every_operator_is_listed_with_a_prediction_and_the_macs_are_those_of_the_layers(float32: Exported) -> None:
    placement = TARGET.placement(float32.package)
    kinds = [operator.kind for operator in placement.operators]
    assert kinds.count("conv") == 5
    assert kinds.count("linear") == 1
    assert "const" not in kinds
    assert sum(operator.macs for operator in placement.operators) == TINY_MACS
    assert {(op.runs_on, op.delegated) for op in placement.operators} == {("GPU or CPU (prediction)", None)}
    assert all("float32" in operator.reason for operator in placement.operators)
    assert "prediction" in placement.determined_by
    assert placement.fallbacks == ()
    assert placement.partitions is None


@pytest.mark.parametrize(
    ("file", "keep"),
    [(coreml_package.SPECIFICATION, 0.5), (coreml_package.WEIGHTS, 0.9), (coreml_package.WEIGHTS, 0.0)],
)
def test_a_truncated_package_is_refused_by_name(float32: Exported, tmp_path: Path, file: Path, keep: float) -> None:
    broken = tmp_path / "broken.mlpackage"
    shutil.copytree(float32.package, broken)
    data = (broken / file).read_bytes()
    (broken / file).write_bytes(data[: math.floor(keep * len(data))])
    with pytest.raises(UsageError, match=r"'broken\.mlpackage' is not a complete Core ML package"):
        TARGET.placement(broken)


def test_a_package_without_weights_or_that_is_missing_is_refused(float32: Exported, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mlpackage"
    shutil.copytree(float32.package, broken)
    (broken / coreml_package.WEIGHTS).unlink()
    for package in (broken, tmp_path / "missing.mlpackage"):
        with pytest.raises(UsageError, match="not a complete Core ML package"):
            TARGET.placement(package)


@not_on_a_mac
def test_running_it_here_is_refused_with_the_reason(float32: Exported) -> None:
    reason = TARGET.cannot_run_here(CoreMLOptions())
    assert reason == "Core ML's runtime exists on macOS and iOS only"
    with pytest.raises(UsageError, match="exists on macOS and iOS only"), TARGET.runner(float32.package, 1):
        pass


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs on macOS only")
def test_on_a_mac_the_package_agrees_with_eager(captured: Captured, float32: Exported) -> None:
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = captured.net(pixels)
    with TARGET.runner(float32.package, threads=1) as infer:
        for one, other in zip(expected, infer([pixels.numpy()]), strict=True):
            np.testing.assert_allclose(other, one.numpy(), rtol=1e-3, atol=1e-4)


def test_mixed_precision_is_refused_and_both_floats_are_taken() -> None:
    reason = TARGET.refuses(recipe("float16", "float32"), CoreMLOptions())
    assert reason is not None
    assert "use the recipe float32 or float16" in reason
    assert TARGET.refuses(recipe("float16"), CoreMLOptions()) is None
    assert TARGET.refuses(recipe("float32"), CoreMLOptions()) is None


def test_neither_the_target_nor_reading_a_package_imports_the_converter(float32: Exported) -> None:
    script = (
        "import sys, pathlib, acmix.targets.coreml as t\n"
        "if sys.platform != 'darwin': t.TARGET.placement(pathlib.Path(sys.argv[1]))\n"
        "print({'torch', 'coremltools'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", script, str(float32.package)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output.strip() == "set()"


def test_importing_the_converter_spares_the_frameworks_it_only_probes(tmp_path: Path) -> None:
    script = (
        "import sys; from acmix.targets.coreml import TARGET; TARGET.preload()\n"
        "import coremltools; print({'sklearn', 'transformers', 'executorch', 'torchao'} & sys.modules.keys())\n"
        "import torchao; print('torchao' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert output.split("\n")[:2] == ["set()", "True"]


def test_the_converter_can_be_imported_beside_one_that_it_probes() -> None:
    script = "import executorch; from acmix.targets.coreml import TARGET; TARGET.preload(); print('there')"
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "there"
