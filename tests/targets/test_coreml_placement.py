"""The prediction of where a Core ML package's operators run, on packages that coremltools writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acmix.targets.coreml import TARGET
from acmix.targets.formats import coreml_package, coreml_placement
from acmix.targets.formats.coreml_converter import coremltools, quiet
from acmix.targets.formats.coreml_placement import ANYWHERE, CPU, NOT_NEURAL, NOWHERE, Prediction

Predictions = dict[str, Prediction]
Predict = Callable[..., Predictions]
WEIGHT = np.ones((4, 3, 3, 3), np.float32)


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> Predict:
    """Predictions by the names that the program gives its values; build(mb, **inputs) makes the program."""
    ct = coremltools()
    from coremltools.converters.mil.mil import Builder, types

    folder = tmp_path_factory.mktemp("placement")

    def predict(build: Callable[..., Any], precision: str = "FLOAT16", **inputs: Any) -> Predictions:
        kinds = {"state": "StateTensorSpec"}
        specs = [
            getattr(Builder, kinds.get(name, "TensorSpec"))(shape, types.numpy_type_to_builtin_type(dtype))
            for name, (shape, dtype) in inputs.items()
        ]
        named = eval(f"lambda {', '.join(inputs)}: build(mb, {', '.join(inputs)})", {"build": build, "mb": Builder})
        path = folder / f"{len(list(folder.iterdir()))}.mlpackage"
        with quiet():
            program = Builder.program(input_specs=specs, opset_version=ct.target.iOS18)(named)
            model = ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS18,
                compute_precision=getattr(ct.precision, precision),
                skip_model_load=True,
            )
            model.save(str(path))
        return by_name(path)

    return predict


def by_name(package: Path) -> Predictions:
    """Without the suffix that the conversion to float16 gives its values, nor the casts of results that follow."""
    specification = coreml_package.read_specification(package)
    found: Predictions = {}
    for operation, predicted in coreml_placement.predict(specification):
        name = operation.outputs[0].name if operation.outputs else operation.type
        found.setdefault(name.partition("_cast_fp16")[0], predicted)
    return found


def image_network(mb: Any, x: Any) -> Any:
    y = mb.relu(x=mb.conv(x=x, weight=WEIGHT, name="convolved"), name="positive")
    return mb.softmax(x=mb.reduce_mean(x=y, axes=[2, 3], name="pooled"), axis=-1, name="y")


def test_float16_may_run_anywhere_and_float32_not_on_the_neural_engine(predictions: Predict) -> None:
    image = {"x": ((1, 3, 8, 8), np.float32)}
    half = predictions(image_network, **image)
    assert {half[name].runs_on for name in ("convolved", "positive", "pooled")} == {ANYWHERE}
    # The casts of the float32 interface included.
    assert {one.runs_on for one in half.values()} == {ANYWHERE}
    single = predictions(image_network, precision="FLOAT32", **image)
    assert {one.runs_on for one in single.values()} == {NOT_NEURAL}
    assert {one.reason for one in single.values()} == {"float32: the Neural Engine computes in float16"}


def test_operators_that_only_the_cpu_has_are_named_with_the_reason(predictions: Predict) -> None:
    def build(mb: Any, x: Any, grid: Any, w: Any) -> Any:
        sampled = mb.resample(
            x=x,
            coordinates=grid,
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=np.float32(0),
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
            name="sampled",
        )
        involved = mb.conv(x=sampled, weight=w, name="involved")
        return mb.cond(
            pred=mb.greater(
                x=mb.reduce_max(x=involved, axes=[0, 1, 2, 3], name="largest"), y=np.float32(1), name="big"
            ),
            _true_fn=lambda: mb.relu(x=involved, name="inside"),
            _false_fn=lambda: mb.sin(x=involved),
            name="chosen",
        )

    found = predictions(
        build,
        x=((1, 3, 8, 8), np.float32),
        grid=((1, 8, 8, 2), np.float32),
        w=((4, 3, 3, 3), np.float32),
    )
    assert found["sampled"] == Prediction(CPU, "grid sampling: users see it on the CPU")
    assert found["involved"] == Prediction(CPU, "its weights are computed at run time: users see it on the CPU")
    assert found["chosen"] == Prediction(CPU, "control flow: users see it on the CPU")
    assert found["inside"].runs_on == found["largest"].runs_on == ANYWHERE
    assert found["big"] == Prediction(NOT_NEURAL, "integers or truth values: the Neural Engine computes in float16")


def test_integers_gathers_scatters_products_and_recurrent_layers_are_off_the_neural_engine(
    predictions: Predict,
) -> None:
    def build(mb: Any, x: Any, places: Any) -> Any:
        gathered = mb.gather(x=x, indices=[0, 2], axis=1, name="gathered")
        scattered = mb.scatter(data=x, indices=[0], updates=np.ones((1, 4), np.float32), axis=0, name="scattered")
        shifted = mb.add(x=places, y=np.int32(1), name="shifted")
        sequence = mb.expand_dims(x=x, axes=[1], name="sequence")
        hidden, _ = mb.gru(
            x=sequence,
            initial_h=np.zeros((2, 3), np.float32),
            weight_ih=np.ones((9, 4), np.float32),
            weight_hh=np.ones((9, 3), np.float32),
            name="recurrent",
        )
        return gathered, scattered, shifted, hidden, mb.reduce_prod(x=x, axes=[1], name="product")

    found = predictions(build, x=((2, 4), np.float32), places=((2,), np.int32))
    recurrent = next(one for name, one in found.items() if name.startswith("recurrent"))
    assert found["gathered"].reason == "a gather: not on the Neural Engine"
    assert found["scattered"].reason == "a scatter: not on the Neural Engine"
    assert found["product"].reason == "a product over axes: not on the Neural Engine"
    assert recurrent.reason == "a recurrent layer: not on the Neural Engine"
    assert found["shifted"].reason.startswith("integers")
    assert {found[name].runs_on for name in ("gathered", "scattered", "product", "shifted")} == {NOT_NEURAL}
    # Only what computes counts: the axes of expand_dims are integers too, and known beforehand.
    assert found["sequence"].runs_on == ANYWHERE


def test_a_state_runs_on_the_neural_engine_when_its_last_axis_is_a_multiple_of_32(predictions: Predict) -> None:
    def build(mb: Any, x: Any, state: Any) -> Any:
        read = mb.read_state(input=state, name="read")
        return mb.coreml_update_state(state=state, value=mb.add(x=read, y=x), name="updated")

    for width, wanted in ((64, ANYWHERE), (27, NOT_NEURAL)):
        found = predictions(build, x=((1, width), np.float16), state=((1, width), np.float16))
        assert found["read"].runs_on == found["updated"].runs_on == wanted


@pytest.mark.parametrize("kind", ["range", "enumerated"])
def test_flexible_inputs_keep_the_neural_engine_for_the_shapes_that_it_is_told(kind: str, tmp_path: Path) -> None:
    import torch

    ct = coremltools()
    shapes = {
        "range": ct.Shape((1, 3, ct.RangeDim(8, 32, default=16), 16)),
        "enumerated": ct.EnumeratedShapes([(1, 3, 16, 16), (1, 3, 24, 16)]),
    }
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    traced = torch.jit.trace(net.eval(), torch.zeros(1, 3, 16, 16))
    with quiet():
        model = ct.convert(traced, inputs=[ct.TensorType("x", shapes[kind])], skip_model_load=True)
        model.save(str(tmp_path / "model.mlpackage"))
    specification = coreml_package.read_specification(tmp_path / "model.mlpackage")
    found = {op.type: predicted for op, predicted in coreml_placement.predict(specification)}
    assert found["conv"].runs_on == ANYWHERE
    assert ("at the default shape only" in found["conv"].reason) == (kind == "range")
    # The average has one shape whatever comes in, but reads one that varies.
    assert found["reduce_mean"].reason == found["conv"].reason


def test_a_shape_that_the_values_decide_and_a_sixth_axis_are_told(predictions: Predict) -> None:
    found = predictions(lambda mb, x: mb.non_zero(x=x, name="places"), x=((4, 4), np.float32))
    assert found["places"].runs_on == NOT_NEURAL
    specification = tampered_rank()
    assert coreml_placement.predict(specification)[0][1] == Prediction(NOWHERE, "more than 5 axes: Core ML refuses it")


def tampered_rank() -> Any:
    """A program with a tensor of six axes, which coremltools does not write."""
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    function = model.mlProgram.functions["main"]
    function.opset = "CoreML6"
    operation = function.block_specializations["CoreML6"].operations.add(type="relu")
    kind = operation.outputs.add(name="y").type.tensorType
    kind.dataType = coreml_placement.FLOAT16
    for _ in range(6):
        kind.dimensions.add().constant.size = 2
    return model


def test_the_placement_of_a_package_says_that_it_is_a_prediction(exported: Any) -> None:
    placement = TARGET.placement(exported("float16")["coreml"].model_file)
    assert placement.determined_by.startswith("prediction")
    assert {operator.delegated for operator in placement.operators} == {None}
    assert {operator.runs_on for operator in placement.operators} == {ANYWHERE}
    assert all(operator.reason for operator in placement.operators)
