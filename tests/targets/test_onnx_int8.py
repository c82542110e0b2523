"""Moving pairs in an ONNX file changes no value: against onnx's own reference evaluator, and by the fused kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from typer.testing import CliRunner

from acmix.apps import tables
from acmix.apps.cli import app
from acmix.apps.requests import ExportFlags, export_request
from acmix.targets.formats.onnx_graph import WeightType
from acmix.targets.formats.onnx_quantization import fit_kernels
from acmix.targets.onnx import TARGET
from acmix.toolkit import pipeline
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.target import Array

PADS = (0, 0, 0, 1, 0, 0, 1, 2)


def model_of(pads: tuple[int, ...] = PADS, scale_after: float = 0.05, value: float = 0.0) -> onnx.ModelProto:
    """Integers, a padding between two pairs, and a depthwise convolution."""
    rng = np.random.default_rng(0)
    stored: dict[str, Array] = {
        "scale": np.float32(0.05),
        "zero": np.int8(-7),
        "scale_after": np.float32(scale_after),
        "pads": np.array(pads, np.int64),
        "value": np.float32(value),
        "weight": rng.standard_normal((4, 1, 3, 3)).astype(np.float32),
    }
    after = ["scale_after", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Pad", ["d", "pads", "value"], ["p"]),
        helper.make_node("QuantizeLinear", ["p", *after], ["pq"]),
        helper.make_node("DequantizeLinear", ["pq", *after], ["pd"]),
        helper.make_node("Conv", ["pd", "weight"], ["y"], group=4, pads=[1, 0, 0, 0], strides=[2, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "padded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("nchw"))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def outputs(model: onnx.ModelProto) -> Array:
    x = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32) * 4
    found = ReferenceEvaluator(model).run(None, {"x": x})[0]
    assert isinstance(found, np.ndarray)
    return found


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_a_padding_moves_into_its_convolution_and_changes_no_value() -> None:
    model = model_of()
    before = outputs(model)
    # As torch's exporter does, it says the shape of every value; "pd" has another one afterwards.
    model = onnx.shape_inference.infer_shapes(model)
    assert "pd" in {value.name for value in model.graph.value_info}
    fit_kernels(model)
    onnx.checker.check_model(model, full_check=True)
    assert {value.name for value in model.graph.value_info} <= {
        name for node in model.graph.node for name in node.output
    }
    assert kinds(model)["Pad"] == 0
    assert list(next(a for a in model.graph.node[-1].attribute if a.name == "pads").ints) == [1, 1, 1, 2]
    np.testing.assert_array_equal(outputs(model), before)


def test_activations_become_unsigned_and_weights_do_not() -> None:
    model = model_of()
    fit_kernels(model)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    points = [stored[n.input[2]] for n in model.graph.node if n.op_type.endswith("QuantizeLinear")]
    assert {(point.dtype.name, int(point)) for point in points} == {("uint8", 121)}


@pytest.mark.parametrize(
    "model",
    [model_of(scale_after=0.07), model_of(value=1.0), model_of(pads=(0, 1, 0, 0, 0, 1, 0, 0))],
    ids=["another grid", "not zeros", "channels"],
)
def test_a_padding_that_does_not_commute_stays(model: onnx.ModelProto) -> None:
    if numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "pads"))[1]:
        model.graph.node[-1].CopyFrom(helper.make_node("Identity", ["pd"], ["y"]))
    before = outputs(model)
    fit_kernels(model)
    assert kinds(model)["Pad"] == 1
    np.testing.assert_array_equal(outputs(model), before)


@pytest.fixture(scope="module")
def signed(exported: Callable[[str], dict[str, Artifact]]) -> Artifact:
    return exported("w8a8")["onnx"]


@pytest.fixture(scope="module")
def unsigned(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny network with weights of uint8."""
    flags = ExportFlags(
        model=tiny,
        target="onnx",
        precision="w8a8",
        inputs=("1x3x32x32",),
        preprocess="imagenet",
        calibration="builtin",
        out=tmp_path_factory.mktemp("unsigned"),
    )
    (outcome,) = pipeline.export(export_request(flags, {"weight_type": "uint8"}), lambda target, stage, seconds: None)
    assert outcome.artifact is not None, outcome.error
    return outcome.artifact


@pytest.mark.parametrize("artifact", ["signed", "unsigned"])
def test_onnx_runtime_fuses_every_convolution(artifact: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    file = request.getfixturevalue(artifact).model_file
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    found = kinds(onnx.load(tmp_path / "optimised.onnx"))
    assert found["QLinearConv"] == 4
    assert found["Conv"] == 0


def test_weights_of_uint8_are_the_same_network_and_need_nothing(signed: Artifact, unsigned: Artifact) -> None:
    assert unsigned.manifest.proof.verdict == "passed"
    stored = [t.data_type for t in onnx.load(unsigned.model_file).graph.initializer]
    assert TensorProto.INT8 not in stored and TensorProto.UINT8 in stored
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    expected = by_acmix(signed.model_file, x)
    np.testing.assert_array_equal(by_acmix(unsigned.model_file, x), expected)
    session = onnxruntime.InferenceSession(str(unsigned.model_file))
    np.testing.assert_array_equal(session.run(None, {session.get_inputs()[0].name: x}), expected)
    (need,) = signed.manifest.target.needs
    assert need.startswith("on x86 without VNNI set the session option session.x64quantprecision to 1")
    assert unsigned.manifest.target.needs == ()


def test_what_a_program_has_to_do_is_said_when_it_is_exported_and_inspected(
    signed: Artifact, unsigned: Artifact
) -> None:
    assert not any("session option" in remark for remark in tables.remarks([unsigned.manifest]))
    *_, said = tables.remarks([unsigned.manifest, signed.manifest])
    assert said.startswith("onnx: on x86 without VNNI set the session option") and said.endswith("uint8 need nothing).")
    for artifact, shown in ((signed, True), (unsigned, False)):
        done = CliRunner().invoke(app, ["inspect", str(artifact.folder)])
        assert done.exit_code == 0 and ("session.x64quantprecision" in done.stderr) == shown


def extreme(sharing: str) -> tuple[onnx.ModelProto, Array]:
    """Two convolutions of the largest integers there are, of which some cancel: 16 bits do not hold the parts' sums.

    sharing: what both have in common besides their zero point: nothing, the weight, or its dequantization.
    """
    signs = np.where(np.arange(64) < 32, 1, -1).astype(np.int8)
    weight = np.tile((127 * signs)[None, :, None, None], (64, 1, 1, 1))
    weight[:, 0] = 0
    stored: dict[str, Array] = {
        "scale": np.float32(1),
        "wide": np.float32(256),
        "zero": np.int8(-128),
        "scales": np.full(64, 1 / 128, np.float32),
        "zeros": np.zeros(64, np.int8),
        "weight": weight,
        "other": weight[::-1].copy(),
    }
    second = "weight" if sharing == "weight" else "other"
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["w"], axis=0),
        helper.make_node("Conv", ["d", "w"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "wide", "zero"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "wide", "zero"], ["y"]),
        helper.make_node("Conv", ["d", "w" if sharing == "dequantization" else "v"], ["e"]),
        helper.make_node("QuantizeLinear", ["e", "wide", "zero"], ["eq"]),
        helper.make_node("DequantizeLinear", ["eq", "wide", "zero"], ["z"]),
    ]
    if sharing != "dequantization":
        nodes.insert(3, helper.make_node("DequantizeLinear", [second, "scales", "zeros"], ["v"], axis=0))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "extreme",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 64, 4, 4))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list("nchw")) for name in ("y", "z")],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items() if name in used],
    )
    x = np.where(np.arange(64) % 64 < 32, 255, 3).astype(np.float32)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), np.tile(
        x[None, :, None, None], (1, 1, 4, 4)
    )


def by_acmix(file: Path, x: Array) -> list[Array]:
    with TARGET.runner(file, 1) as run:
        return run([x])


def by_a_program_that_sets_nothing(file: Path, x: Array) -> list[Array]:
    return [np.asarray(a) for a in onnxruntime.InferenceSession(str(file)).run(None, {"x": x})]


@pytest.mark.parametrize("sharing", ["zero point", "weight", "dequantization"])
@pytest.mark.parametrize(
    ("weight_type", "run"),
    [("int8", by_acmix), ("uint8", by_acmix), ("uint8", by_a_program_that_sets_nothing)],
)
def test_no_sum_of_products_saturates_on_any_processor(
    sharing: str, weight_type: WeightType, run: Callable[[Path, Array], list[Array]], tmp_path: Path
) -> None:
    model, x = extreme(sharing)
    fit_kernels(model, weight_type)
    file = tmp_path / "model.onnx"
    onnx.save(model, file)
    expected = ReferenceEvaluator(model).run(None, {"x": x})
    assert [np.asarray(a).max() for a in expected] == [7680.0, 7680.0]
    for one, other in zip(run(file, x), expected, strict=True):
        np.testing.assert_array_equal(one, np.asarray(other))
