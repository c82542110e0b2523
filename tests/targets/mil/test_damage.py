"""Damaged, foreign and hostile packages are refused with a sentence: no crash, no hang, no huge allocation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acmix.targets.mil import load_package
from acmix.toolkit.errors import UsageError

FEEDS = {"x": np.linspace(-1, 1, 3 * 36, dtype=np.float32).reshape(1, 3, 6, 6)}
INNER = Path("Data", "com.apple.CoreML")
Edit = Callable[[Any], None]


def network(mb: Any, x: Any) -> Any:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    y = mb.relu(x=mb.conv(x=x, weight=weight, pad_type="same"))
    y = mb.reshape(x=mb.reduce_mean(x=y, axes=[2, 3]), shape=[2, 2])
    return mb.softmax(x=mb.slice_by_index(x=y, begin=[0, 0], end=[2, 2], stride=[1, 1]), name="y")


@pytest.fixture(scope="module")
def sound(packages: Any) -> Path:
    path: Path = packages.build(network, FEEDS)
    load_package(path)(FEEDS)
    return path


@pytest.fixture
def package(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "copy.mlpackage"))


def edited(package: Path, edit: Edit) -> Path:
    """The package with its specification changed through coremltools' own protobuf classes."""
    from coremltools.proto import Model_pb2

    file = package / INNER / "model.mlmodel"
    model = Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    edit(model)
    file.write_bytes(model.SerializeToString())
    return package


def operations(model: Any) -> Any:
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def operation(model: Any, kind: str) -> Any:
    return next(one for one in operations(model) if one.type == kind)


def weights(package: Path) -> Path:
    return package / INNER / "weights" / "weight.bin"


@pytest.mark.parametrize("name", ["Manifest.json", str(INNER / "model.mlmodel"), str(INNER / "weights" / "weight.bin")])
def test_a_missing_file_is_named(package: Path, name: str) -> None:
    (package / name).unlink()
    with pytest.raises(UsageError, match=r"Manifest\.json is missing|model\.mlmodel is missing|weights/weight\.bin"):
        load_package(package)


def test_a_manifest_cannot_lead_out_of_the_package(package: Path) -> None:
    manifest = json.loads((package / "Manifest.json").read_text("utf-8"))
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../other.mlmodel"
    (package / "Manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(UsageError, match="is missing"):
        load_package(package)


@pytest.mark.parametrize("length", [0, 10, 100, 180])
def test_truncated_weights_are_refused(package: Path, length: int) -> None:
    weights(package).write_bytes(weights(package).read_bytes()[:length])
    with pytest.raises(UsageError, match="weights"):
        load_package(package)


@pytest.mark.parametrize("byte", [4, 64, 68, 72, 80, 87])
def test_a_flipped_byte_in_a_record_of_the_weights_is_refused(package: Path, byte: int) -> None:
    data = bytearray(weights(package).read_bytes())
    data[byte] ^= 0x10
    weights(package).write_bytes(data)
    with pytest.raises(UsageError, match="weights"):
        load_package(package)


def test_a_truncated_specification_is_refused(package: Path) -> None:
    file = package / INNER / "model.mlmodel"
    data = file.read_bytes()
    for length in range(0, len(data) - 1, 97):
        file.write_bytes(data[:length])
        with pytest.raises(UsageError):
            load_package(package)


def _set_type(model: Any) -> None:
    operation(model, "relu").type = "wishful_thinking"


def _cycle(model: Any) -> None:
    operation(model, "conv").inputs["x"].arguments[0].name = operation(model, "relu").outputs[0].name


def _nowhere(model: Any) -> None:
    operation(model, "relu").inputs["x"].arguments[0].name = "nothing"


def _twice(model: Any) -> None:
    operations(model).append(operation(model, "relu"))


def _integer(model: Any) -> None:
    operation(model, "relu").outputs[0].type.tensorType.dataType = 23


def _other_shape(model: Any) -> None:
    operation(model, "relu").outputs[0].type.tensorType.dimensions[1].constant.size = 5


def _absurd_shape(model: Any) -> None:
    for axis in operation(model, "relu").outputs[0].type.tensorType.dimensions:
        axis.constant.size = 1 << 40


def _outside(model: Any) -> None:
    for one in operations(model):
        if one.type == "const" and one.attributes["val"].WhichOneof("value") == "blobFileValue":
            one.attributes["val"].blobFileValue.fileName = "@model_path/../../../../etc/passwd"


def _no_output(model: Any) -> None:
    function = model.mlProgram.functions["main"]
    function.block_specializations[function.opset].outputs[0] = "lost"


def _future(model: Any) -> None:
    model.mlProgram.functions["main"].opset = "CoreML99"


def _missing_operand(model: Any) -> None:
    del operation(model, "conv").inputs["weight"]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_set_type, r"does not know 1 of the program's operators: 'wishful_thinking' \(1 times\)"),
        (_cycle, "cyclic or out of order"),
        (_nowhere, "reads 'nothing' which is nowhere"),
        (_twice, "twice"),
        (_integer, "declares int32"),
        (_other_shape, r"declares \(1, 5, 6, 6\)"),
        (_absurd_shape, "more than"),
        (_outside, "outside its package"),
        (_no_output, "never computes|does not compute"),
        (_future, "CoreML99"),
        (_missing_operand, "'weight' is missing"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_program_that_is_none_is_refused_with_the_reason(package: Path, edit: Edit, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_package(edited(package, edit))(FEEDS)


def _text(model: Any) -> None:
    operation(model, "shape").outputs[0].type.tensorType.dataType = 2


def _contradicted_input(model: Any) -> None:
    model.mlProgram.functions["main"].inputs[0].type.tensorType.dimensions[1].constant.size = 4


def _input_of_text(model: Any) -> None:
    model.mlProgram.functions["main"].inputs[0].type.tensorType.dataType = 2


def _image_of_two_axes(model: Any) -> None:
    image = model.description.output[0].type.imageType
    image.width, image.height, image.colorSpace = 2, 2, 20


def _state_out_of_nothing(model: Any) -> None:
    model.description.state.add(name="x").type.stateType.arrayType.dataType = 65552


def _odd_weights(model: Any) -> None:
    for one in operations(model):
        if one.type == "const" and one.attributes["val"].WhichOneof("value") == "blobFileValue":
            one.attributes["val"].blobFileValue.fileName = "@model_path/weights\0/" + "w" * 5000


def shaped(mb: Any, x: Any) -> list[Any]:
    """The network, and a result of integers."""
    return [network(mb, x), mb.shape(x=x)]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_text, "declares string for"),
        (_contradicted_input, "contradicts its program"),
        (_input_of_text, "cannot be fed"),
        (_image_of_two_axes, "is no image"),
        (_state_out_of_nothing, "the states of function 'main' are not those"),
        (_odd_weights, "outside its package"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_program_at_odds_with_its_description_is_refused(
    packages: Any, tmp_path: Path, edit: Edit, said: str
) -> None:
    package = Path(shutil.copytree(packages.build(shaped, FEEDS), tmp_path / "copy.mlpackage"))
    with pytest.raises(UsageError, match=said):
        load_package(edited(package, edit))(FEEDS)


@pytest.mark.parametrize(
    "manifest",
    ["[" * 100_000, json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "\0"}}})],
    ids=["nested", "nameless"],
)
def test_an_odd_manifest_is_refused(package: Path, manifest: str) -> None:
    (package / "Manifest.json").write_text(manifest, "utf-8")
    with pytest.raises(UsageError, match=r"Manifest\.json"):
        load_package(package)


def _unknown_shapes(model: Any) -> None:
    for one in operations(model):
        if one.type == "concat":
            for axis in one.outputs[0].type.tensorType.dimensions:
                axis.unknown.variadic = False


def test_joins_that_nothing_could_hold_are_refused_before_they_are_made(packages: Any) -> None:
    def build(mb: Any, x: Any) -> Any:
        y = mb.concat(values=[x] * 64, axis=0)
        return mb.reduce_max(x=mb.concat(values=[y] * 512, axis=0), name="y")

    x = {"x": np.ones(1 << 14, np.float32)}
    with pytest.raises(UsageError, match="would have the shape"):
        load_package(edited(packages.build(build, x), _unknown_shapes))(x)


def test_an_older_model_is_refused_by_its_kind(tmp_path: Path) -> None:
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model(specificationVersion=4)
    model.neuralNetwork.layers.add(name="one")
    (tmp_path / "old.mlmodel").write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match=r"'old\.mlmodel' holds no ML program but an older kind.*neuralnetwork"):
        load_package(tmp_path / "old.mlmodel")


def test_huge_results_are_refused_before_they_are_made(packages: Any) -> None:
    def build(mb: Any, x: Any) -> Any:
        return mb.reduce_sum(x=mb.fill(shape=mb.cast(x=x, dtype="int32"), value=np.float32(1)), name="y")

    model = load_package(packages.build(build, {"x": np.ones(3, np.float32)}))
    assert model({"x": np.array([2, 3, 4], np.float32)})["y"] == 24
    for shape in ([30000, 30000, 30000], [-1, 2, 2]):
        with pytest.raises(UsageError, match="would have the shape"):
            model({"x": np.array(shape, np.float32)})


@pytest.mark.parametrize("file", ["model.mlmodel", "weights/weight.bin"])
def test_flipped_bits_give_a_sentence_or_a_result(sound: Path, tmp_path: Path, file: str) -> None:
    """A flipped weight is a number like any other: only a digest beside the package can tell."""
    package = Path(shutil.copytree(sound, tmp_path / "fuzzed.mlpackage"))
    target, rng = package / INNER / file, np.random.default_rng(0)
    data = target.read_bytes()
    refused = 0
    for _ in range(150):
        changed = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            changed[place] ^= 1 << int(rng.integers(8))
        target.write_bytes(changed)
        try:
            load_package(package)(FEEDS)
        except UsageError as error:
            refused += 1
            assert str(error).strip()
    assert refused > 0
