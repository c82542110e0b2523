from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from acmix.targets.onnx import TARGET, OnnxOptions
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.recipe import Precision, Recipe, Tolerance
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Array, Lowered, LoweringJob

PREPROCESS = Preprocess(36, (32, 32), (120.0, 110.0, 100.0), (60.0, 50.0, 40.0))
LABELS = ("cat", "dog", "žába")
TINY_MACS = 16 * 3 * 9 * 256 + 16 * 64 * 256 + 64 * 9 * 64 + 2 * 64 * 8 + 64 * 24 * 64 + 24 * 10


class Squeeze(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * nn.functional.hardsigmoid(self.up(torch.relu(self.down(pooled))))


class Tiny(nn.Module):
    """32 x 32 pixels to 10 logits and their pooled features, with every kind of layer of our backbones."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
            nn.Conv2d(16, 64, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU6(),
            nn.Conv2d(64, 64, 3, 2, 1, groups=64, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU6(),
            Squeeze(64),
            nn.Conv2d(64, 24, 1),
        )
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).mean((2, 3))
        return self.head(features), features


@dataclass(frozen=True)
class Exported:
    file: Path
    lowered: Lowered
    image: Array
    eager: list[Array]


def recipe(weights: Precision, activations: Precision | None = None) -> Recipe:
    return Recipe(weights, weights, activations or weights, Tolerance(60.0, 1e-5))


def job(precision: Precision, opset: int = 18) -> LoweringJob:
    return LoweringJob(
        model="tiny",
        recipe=recipe(precision),
        inputs=(TensorSpec("image", (1, 3, 32, 32), layout="nchw"),),
        outputs=(TensorSpec("logits", (1, 10)), TensorSpec("features", (1, 24))),
        options=OnnxOptions(opset),
        preprocess=PREPROCESS,
        labels=LABELS,
    )


def snr_db(reference: Array, actual: Array) -> float:
    noise = np.square(reference - actual.astype(np.float64)).sum()
    return float(10 * np.log10(np.square(reference).sum() / max(noise, 1e-30)))


def run(exported: Exported) -> list[Array]:
    with TARGET.runner(exported.file, threads=1) as infer:
        return infer([exported.image])


@dataclass(frozen=True)
class Captured:
    program: torch.export.ExportedProgram
    image: Array
    eager: list[Array]


def capture() -> Captured:
    """The network with lively batch norms, and what eager float64 makes of one image."""
    torch.manual_seed(0)
    net = Tiny().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1, 0.2)
            layer.running_mean = torch.randn(layer.num_features) / 10
            layer.running_var = torch.rand(layer.num_features) + 0.5
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        eager = [output.numpy() for output in copy.deepcopy(net).double()(image.double())]
    return Captured(torch.export.export(net, (image,)), image.numpy(), eager)


@pytest.fixture(scope="module")
def captured() -> Captured:
    return capture()


def exported(captured: Captured, job: LoweringJob, folder: Path) -> Exported:
    file = folder / "model.onnx"
    return Exported(file, TARGET.lower(captured.program, job, file), captured.image, captured.eager)


@pytest.fixture(scope="module")
def float32(captured: Captured, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(captured, job("float32"), tmp_path_factory.mktemp("float32"))


@pytest.fixture(scope="module")
def float16(captured: Captured, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(captured, job("float16"), tmp_path_factory.mktemp("float16"))


def test_float32_agrees_with_eager_float64_on_both_outputs(float32: Exported) -> None:
    logits, features = run(float32)
    assert snr_db(float32.eager[0], logits) > 110
    assert snr_db(float32.eager[1], features) > 110


def test_float16_agrees_with_eager_in_onnx_runtime(float16: Exported) -> None:
    for reference, actual in zip(float16.eager, run(float16), strict=True):
        assert actual.dtype == np.float32
        assert 45 < snr_db(reference, actual) < 100


def test_float16_agrees_with_eager_in_the_reference_evaluator(float16: Exported) -> None:
    actual = ReferenceEvaluator(str(float16.file)).run(None, {"image": float16.image})
    for reference, output in zip(float16.eager, actual, strict=True):
        assert snr_db(reference, output) > 45


def test_float16_halves_every_weight_but_the_precise_ones(float16: Exported, float32: Exported) -> None:
    tensors = onnx.load(float16.file).graph.initializer
    halves = [tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT16]
    filters = [t for t in tensors if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 4 and t.dims[2] > 1]
    assert halves
    assert all(tensor.dims[1] <= 4 for tensor in filters)
    saved = float32.file.stat().st_size - float16.file.stat().st_size
    halved = sum(2 * int(np.prod(tensor.dims)) for tensor in halves)
    assert 0.8 * halved < saved <= halved
    assert any("stay float32" in note for note in float16.lowered.notes)


def test_the_interface_carries_the_names_shapes_and_layout_of_the_job(float32: Exported) -> None:
    assert float32.lowered.inputs == job("float32").inputs
    assert float32.lowered.outputs == job("float32").outputs
    graph = onnx.load(float32.file).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["image", "logits", "features"]
    assert [entry.version for entry in onnx.load(float32.file).opset_import] == [OnnxOptions().opset]


def test_the_file_is_alone_and_complete(float32: Exported, float16: Exported) -> None:
    for made in (float32, float16):
        assert [path.name for path in made.file.parent.iterdir()] == ["model.onnx"]
        onnx.checker.check_model(str(made.file), full_check=True)


def test_metadata_tells_an_app_how_to_prepare_a_photo(float32: Exported) -> None:
    model = onnx.load(float32.file)
    texts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(texts["acmix.preprocess"]) == json.loads(json.dumps(dataclasses.asdict(PREPROCESS)))
    assert tuple(json.loads(texts["acmix.labels"])) == LABELS
    assert set(texts) == {"acmix.model", "acmix.recipe", "acmix.preprocess", "acmix.labels"}
    assert model.producer_name == "acmix"
    assert "tiny" in model.doc_string


def test_no_path_of_this_machine_is_inside(float32: Exported) -> None:
    data = float32.file.read_bytes()
    for text in (__file__, torch.__file__, str(float32.file.parent), "stack_trace", "site-packages"):
        assert text.encode() not in data


def test_another_process_writes_the_same_bytes(float32: Exported, tmp_path: Path) -> None:
    script = "import runpy, sys; runpy.run_path(sys.argv[1])['write'](sys.argv[2])"
    subprocess.run(
        [sys.executable, "-c", script, __file__, str(tmp_path)],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert (tmp_path / "model.onnx").read_bytes() == float32.file.read_bytes()
    assert float32.lowered.nondeterminism == ""


def write(folder: str) -> None:
    """Export the same network in a fresh process (called by the test above)."""
    exported(capture(), job("float32"), Path(folder))


def test_the_program_is_left_as_it_was(captured: Captured, tmp_path: Path) -> None:
    before = captured.program.graph_module.code, str(captured.program.graph_signature)
    lowered = exported(captured, job("float32", opset=20), tmp_path).lowered
    assert (captured.program.graph_module.code, str(captured.program.graph_signature)) == before
    assert lowered.details["opset"] == "20"
    assert [entry.version for entry in onnx.load(tmp_path / "model.onnx").opset_import] == [20]


def test_a_simplifier_that_changes_the_numbers_is_caught(
    captured: Captured, float32: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = onnx.load(float32.file)
    bias = next(tensor for tensor in wrong.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) * 1.01, bias.name))
    monkeypatch.setattr("acmix.targets.onnx._converted", lambda program, job: onnx.load(float32.file))
    monkeypatch.setattr("onnxsim.simplify", lambda model: (wrong, True))
    with pytest.raises(GateError, match="onnxsim changed the model's results"):
        exported(captured, job("float32"), tmp_path)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("opset", [17, 24])
def test_an_opset_that_the_exporter_does_not_write_is_refused(opset: int) -> None:
    reason = TARGET.refuses(recipe("float32"), OnnxOptions(opset))
    assert reason is not None
    assert str(opset) in reason
    assert "18 to 23" in reason


def test_mixed_precision_is_refused_and_both_floats_are_taken() -> None:
    reason = TARGET.refuses(recipe("float16", "float32"), OnnxOptions())
    assert reason is not None
    assert "use the recipe float32 or float16" in reason
    assert TARGET.refuses(recipe("float16"), OnnxOptions()) is None
    assert TARGET.refuses(recipe("float32"), OnnxOptions()) is None


def test_every_node_is_placed_and_the_macs_are_those_of_the_layers(float32: Exported) -> None:
    placement = TARGET.placement(float32.file)
    nodes = onnx.load(float32.file).graph.node
    assert [operator.kind for operator in placement.operators] == [node.op_type for node in nodes]
    assert sum(operator.macs for operator in placement.operators) == TINY_MACS
    assert {operator.runs_on for operator in placement.operators} == {"CPUExecutionProvider"}
    assert placement.fallbacks == ()
    assert placement.partitions == 1
    assert f"{len(nodes)} nodes become" in placement.determined_by


def test_a_transpose_is_named_as_a_change_of_layout(tmp_path: Path) -> None:
    file = tmp_path / "transpose.onnx"
    text = """<ir_version: 8, opset_import: ["": 18]>
        g (float[1, 2, 3] x) => (float[1, 3, 4] y) {
            t = Transpose<perm=[0, 2, 1]>(x)
            w = Constant<value = float[2, 4] {1, 2, 3, 4, 5, 6, 7, 8}>()
            y = MatMul(t, w)
        }"""
    onnx.save(onnx.parser.parse_model(text), file)
    operators = TARGET.placement(file).operators
    assert [(op.kind, op.changes_layout, op.macs) for op in operators] == [
        ("Transpose", True, 0),
        ("MatMul", False, 3 * 2 * 4),
    ]


def test_a_truncated_file_is_refused_by_name(float32: Exported, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(float32.file.read_bytes()[:-2000])
    for load in (lambda: TARGET.runner(broken, 1).__enter__(), lambda: TARGET.placement(broken)):
        with pytest.raises(UsageError, match=r"cannot load 'broken\.onnx'") as caught:
            load()
        assert str(tmp_path) not in str(caught.value)


def test_importing_the_target_imports_no_toolchain() -> None:
    script = "import sys, acmix.targets.onnx; print({'torch', 'onnx', 'onnxruntime', 'onnxsim'} & sys.modules.keys())"
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "set()"


def test_running_imports_the_runtime_and_never_the_converter(float32: Exported) -> None:
    script = (
        "import sys, pathlib, acmix.targets.onnx as t\n"
        "with t.TARGET.runner(pathlib.Path(sys.argv[1]), 1): print({'torch', 'onnx', 'onnxsim'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", script, str(float32.file)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output.strip() == "set()"
