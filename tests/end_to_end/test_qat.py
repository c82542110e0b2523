"""A network trained with torchao's PT2E, exported everywhere, against the author's own program in torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acmix.apps.requests import ExportFlags, export_request
from acmix.targets.onnx import EXACT_SUMS
from acmix.toolkit import pipeline
from acmix.toolkit.artifact import Artifact, open_artifact
from acmix.toolkit.errors import UsageError
from acmix.toolkit.pipeline import Stage
from acmix.toolkit.reproof import reprove

SIZE = (1, 3, 32, 32)
STEPS = 6
Arrays = dict[str, np.ndarray[Any, Any]]


class Small(nn.Module):
    """A stem, a depthwise and a pointwise convolution with a residual, a mean and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.point = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.point(self.depthwise(x))
        return self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class Trained:
    """What the author has: the converted module, and the file that torch.export.save wrote."""

    module: nn.Module
    file: Path

    def pairs(self) -> set[tuple[float, int]]:
        """Scale and zero point of every activation, as the author's graph has them."""
        nodes = self.module.graph.nodes  # type: ignore[union-attr]
        return {(float(n.args[1]), int(n.args[2])) for n in nodes if "quantize_per_tensor" in str(n.target)}

    def weights(self) -> list[tuple[Tensor, Tensor]]:
        """Integers and scales of every layer, as the author's graph has them."""
        nodes = [n for n in self.module.graph.nodes if "dequantize_per_channel" in str(n.target)]  # type: ignore[union-attr]
        return [tuple(getattr(self.module, str(a.target)) for a in n.args[:2]) for n in nodes]  # type: ignore[misc]

    def outputs(self, x: Tensor) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            result: Tensor = self.module(x)
        return result.numpy()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The network after a few steps of torchao's quantization-aware training, on seeded noise."""
    quantizer = pytest.importorskip("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

    torch.manual_seed(0)
    images, labels = torch.randn(8, *SIZE[1:]), torch.randint(0, 10, (8,))
    module = torch.export.export(Small().train(), (images,)).module(check_guards=False)
    config = quantizer.get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    module = prepare_qat_pt2e(module, quantizer.XNNPACKQuantizer().set_global(config))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(module(images + 0.1 * torch.randn_like(images)), labels).backward()
        optimizer.step()
    move_exported_model_to_eval(module)
    converted = convert_pt2e(module)
    file = tmp_path_factory.mktemp("trained") / "qat.pt2"
    torch.export.save(torch.export.export(converted, (torch.zeros(SIZE),)), file)
    return Trained(converted, file)


@pytest.fixture(scope="module")
def artifacts(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The trained program on all four targets, as the command line makes them."""

    def unseen(target: str, stage: Stage, seconds: float) -> None:
        """Nobody watches."""

    flags = ExportFlags(str(trained.file), "all", "w8a8", out=tmp_path_factory.mktemp("exported"))
    outcomes = pipeline.export(export_request(flags, {}), unseen)
    assert [o.error for o in outcomes] == [""] * 4
    return {o.target: o.artifact for o in outcomes if o.artifact is not None}


def test_all_four_files_agree_with_the_trained_program(artifacts: dict[str, Artifact]) -> None:
    for target, artifact in artifacts.items():
        proof = artifact.manifest.proof
        assert proof.verdict == "passed"
        assert proof.agreements[0].samples == 7, target
        assert all((a.snr_db or 0.0) > 30.0 for a in (*proof.agreements, *proof.conversion)), (target, proof)


def test_the_onnx_file_has_the_trained_scales_and_zero_points(trained: Trained, artifacts: dict[str, Artifact]) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(artifacts["onnx"].model_file).graph
    stored: Arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    quantizes = [n for n in graph.node if n.op_type == "QuantizeLinear"]
    # The file holds uint8: the same integers plus 128.
    assert {stored[n.input[2]].dtype for n in quantizes} == {np.dtype(np.uint8)}
    found = {(float(stored[n.input[1]]), int(stored[n.input[2]]) - 128) for n in quantizes}
    assert found == trained.pairs()
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
    by_bytes = {stored[n.input[0]].tobytes(): stored[n.input[1]] for n in weights}
    for integer, scales in trained.weights():
        assert np.array_equal(by_bytes[integer.numpy().tobytes()].ravel(), scales.numpy().astype(np.float32).ravel())


def test_onnx_runtime_alone_gives_the_trained_outputs(trained: Trained, artifacts: dict[str, Artifact]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.add_session_config_entry(*EXACT_SUMS)
    session = runtime.InferenceSession(str(artifacts["onnx"].model_file), options, providers=["CPUExecutionProvider"])
    step = max(scale for scale, _ in trained.pairs())
    for seed in range(4):
        x = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        wanted = trained.outputs(x)
        # Sums in another order move a value over an edge of its grid now and then.
        assert np.abs(found - wanted).max() <= step
        assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99


def test_tflite_keeps_the_trained_weights_and_grids(trained: Trained, artifacts: dict[str, Artifact]) -> None:
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    # Weights that do not reach 127: by itself the converter would choose other scales for these.
    assert any(int(integer.abs().flatten(1).amax(1).min()) < 127 for integer, _ in trained.weights())
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(artifacts["tflite"].model_file.read_bytes(), 0))
    activations, weights = set(), []
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.INT8:
            continue
        if data is None:
            activations.add((float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])))
        else:
            weights.append((np.frombuffer(bytes(data), np.int8), np.asarray(tensor.quantization.scale, np.float32)))
    assert activations and activations <= trained.pairs()
    wanted = {
        (np.sort(i.numpy().ravel()).tobytes(), s.numpy().astype(np.float32).tobytes()) for i, s in trained.weights()
    }
    assert {(np.sort(values).tobytes(), scales.tobytes()) for values, scales in weights} == wanted


def test_an_artifact_of_a_trained_program_proves_again(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    assert reprove(open_artifact(artifacts["onnx"].folder), tmp_path / "log").verdict == "passed"


def test_float32_and_a_calibration_are_refused_before_any_work(trained: Trained, tmp_path: Path) -> None:
    flags = ExportFlags(str(trained.file), "onnx", "w8a8", out=tmp_path)
    with pytest.raises(UsageError, match="--precision w8a8"):
        export_request(replace(flags, precision="float32"), {})
    with pytest.raises(UsageError, match="Leave --calibration out"):
        export_request(replace(flags, calibration="builtin"), {})
