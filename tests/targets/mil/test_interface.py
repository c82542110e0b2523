"""What an app gives and gets: images, flexible shapes, functions, states, classes, control flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acmix.targets.formats.coreml_converter import coremltools, quiet
from acmix.targets.mil import load_package
from acmix.toolkit.errors import UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, (1, 4, 6, 3), np.uint8)
PLANES = PIXELS.transpose(0, 3, 1, 2).astype(np.float32)
PLANE_FEED = {"x": np.zeros((1, 3, 4, 6), np.float32)}


def image_package(packages: Any, layout: str, **options: Any) -> Path:
    ct = coremltools()
    kind = ct.ImageType(name="x", shape=(1, 3, 4, 6), color_layout=getattr(ct.colorlayout, layout), **options)
    program = packages.program(lambda mb, x: mb.mul(x=x, y=np.float32(2), name="y"), PLANE_FEED, "iOS16")
    path: Path = packages.save(program, "iOS16", inputs=[kind], pass_pipeline=ct.PassPipeline.DEFAULT)
    return path


@pytest.mark.parametrize("picture", [PIXELS, PIXELS[0], Image.fromarray(PIXELS[0])], ids=["batch", "array", "pil"])
def test_an_image_is_scaled_and_biased_as_the_package_declares(packages: Any, picture: Any) -> None:
    model = load_package(image_package(packages, "RGB", scale=0.5, bias=[-1.0, 0.0, 3.0]))
    bias = np.array([-1, 0, 3], np.float32).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(model({"x": picture})["y"], 2 * (PLANES * 0.5 + bias), rtol=1e-6)


def test_a_package_that_wants_bgr_gets_it_from_rgb_pixels(packages: Any) -> None:
    output = load_package(image_package(packages, "BGR"))({"x": PIXELS})["y"]
    np.testing.assert_array_equal(output, 2 * PLANES[:, ::-1])


def test_images_of_another_size_are_refused(packages: Any) -> None:
    model = load_package(image_package(packages, "RGB"))
    with pytest.raises(UsageError, match=r"images of \[4, 6\] \(height, width\), not \[6, 4\]"):
        model({"x": PIXELS.transpose(0, 2, 1, 3)})


def flexible(packages: Any, shape: Any) -> Any:
    ct = coremltools()
    from coremltools.converters.mil.mil import Builder, types
    from coremltools.converters.mil.mil.program import get_new_symbol

    with quiet():

        @Builder.program(input_specs=[Builder.TensorSpec((1, get_new_symbol()), types.fp32)])
        def program(x: Any) -> Any:
            return Builder.reduce_sum(x=x, axes=[1], name="y")

    kind = ct.TensorType(name="x", shape=shape(ct), dtype=np.float32)
    return load_package(packages.save(program, "iOS16", inputs=[kind], pass_pipeline=ct.PassPipeline.DEFAULT))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (lambda ct: ct.Shape((1, ct.RangeDim(2, 4, default=3))), r"\[1 to 1, 2 to 4\], not \[1, 5\]"),
        (lambda ct: ct.EnumeratedShapes([(1, 2), (1, 4)], default=(1, 2)), r"\[1, 2\] or \[1, 4\], not \[1, 5\]"),
    ],
    ids=["range", "list"],
)
def test_flexible_shapes_are_taken_within_their_bounds(packages: Any, shape: Any, said: str) -> None:
    model = flexible(packages, shape)
    for size in (2, 4):
        np.testing.assert_array_equal(model({"x": np.ones((1, size), np.float32)})["y"], [size])
    with pytest.raises(UsageError, match=said):
        model({"x": np.ones((1, 5), np.float32)})


def test_a_wrong_name_is_answered_with_the_right_one(packages: Any) -> None:
    model = load_package(packages.build(lambda mb, photo: mb.relu(x=photo), {"photo": np.zeros(3, np.float32)}))
    with pytest.raises(UsageError, match=r"no input 'phot'\. Did you mean photo\?"):
        model({"phot": np.zeros(3, np.float32)})
    with pytest.raises(UsageError, match=r"takes \[3\], not \[4\]"):
        model({"photo": np.zeros(4, np.float32)})


def test_each_function_of_a_package_can_be_called(packages: Any, tmp_path: Path) -> None:
    ct = coremltools()
    weight = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    paths = []
    for kind in ("relu", "softmax"):

        def build(mb: Any, x: Any, kind: str = kind) -> Any:
            return getattr(mb, kind)(x=mb.linear(x=x, weight=weight), name="y")

        paths.append(packages.build(build, {"x": np.zeros((2, 4), np.float32)}, "iOS18"))
    both = ct.utils.MultiFunctionDescriptor()
    both.add_function(str(paths[0]), "main", "relu")
    both.add_function(str(paths[1]), "main", "softmax")
    both.default_function_name = "relu"
    with quiet():
        ct.utils.save_multifunction(both, str(tmp_path / "both.mlpackage"))
    model, x = load_package(tmp_path / "both.mlpackage"), np.ones((2, 4), np.float32)
    np.testing.assert_allclose(model({"x": x})["y"], np.maximum(x @ weight.T, 0), rtol=1e-5)
    np.testing.assert_allclose(model({"x": x}, function="softmax")["y"].sum(1), 1, rtol=1e-5)
    with pytest.raises(UsageError, match=r"no function 'sofmax'\. Did you mean softmax\?"):
        model({"x": x}, function="sofmax")


def test_a_state_remembers_between_calls(packages: Any) -> None:
    from coremltools.converters.mil.mil import Builder, types

    ct = coremltools()
    with quiet():
        specs = [Builder.TensorSpec((3,), types.fp16), Builder.StateTensorSpec((3,), types.fp16)]

        @Builder.program(input_specs=specs, opset_version=ct.target.iOS18)
        def program(x: Any, total: Any) -> Any:
            added = Builder.add(x=x, y=Builder.read_state(input=total))
            return Builder.identity(x=Builder.coreml_update_state(state=total, value=added), name="y")

    model = load_package(packages.save(program, "iOS18"))
    x, state = np.array([1, 2, 3], np.float16), model.make_state()
    assert [model({"x": x}, state=state)["y"].tolist() for _ in range(2)] == [[1, 2, 3], [2, 4, 6]]
    with pytest.raises(UsageError, match="make_state"):
        model({"x": x})


def test_a_classifier_gives_its_label_and_every_probability(packages: Any) -> None:
    ct = coremltools()
    program = packages.program(lambda mb, x: mb.softmax(x=x), {"x": np.zeros((1, 3), np.float32)}, "iOS16")
    config = ct.ClassifierConfig(["cat", "dog", "žába"])
    path = packages.save(program, "iOS16", classifier_config=config, pass_pipeline=ct.PassPipeline.DEFAULT)
    outputs = load_package(path)({"x": np.array([[0.0, 1.0, 2.0]], np.float32)})
    assert outputs["classLabel"] == "žába"
    probabilities = next(value for value in outputs.values() if isinstance(value, dict))
    assert list(probabilities) == ["cat", "dog", "žába"]
    assert sum(probabilities.values()) == pytest.approx(1)


def test_branches_and_loops_run_their_blocks(packages: Any) -> None:
    def build(mb: Any, x: Any) -> list[Any]:
        total = mb.reduce_sum(x=x)
        branch = mb.cond(
            pred=mb.greater(x=total, y=np.float32(0)), _true_fn=lambda: mb.add(x=x, y=x), _false_fn=lambda: mb.exp(x=x)
        )
        rounds, doubled = mb.while_loop(
            _cond=lambda i, y: mb.less(x=i, y=np.float32(5)),
            _body=lambda i, y: (mb.add(x=i, y=np.float32(1)), mb.add(x=y, y=y)),
            loop_vars=(total, x),
        )
        return [branch, rounds, doubled]

    x = np.array([1, 2], np.float32)
    model = load_package(packages.build(build, {"x": x}))
    assert [value.tolist() for value in model({"x": x}).values()] == [[2, 4], 5, [4, 8]]
    branch, rounds, doubled = model({"x": -x}).values()
    np.testing.assert_allclose(branch, np.exp(-x), rtol=1e-6)
    assert (rounds.tolist(), doubled.tolist()) == (5, [-256, -512])


def test_a_loop_without_end_is_stopped(packages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from acmix.targets.mil.operators import control

    monkeypatch.setattr(control, "MAX_ITERATIONS", 50)

    def build(mb: Any, x: Any) -> Any:
        return mb.while_loop(
            _cond=lambda y: mb.less(x=mb.reduce_sum(x=y), y=np.float32(5)),
            _body=lambda y: mb.mul(x=y, y=np.float32(1)),
            loop_vars=(x,),
        )

    with pytest.raises(UsageError, match="did not end within 50 rounds"):
        packages.run(build, {"x": np.ones(2, np.float32)})


def test_lists_are_written_grown_and_read(packages: Any) -> None:
    def build(mb: Any, x: Any) -> list[Any]:
        values = mb.make_list(init_length=2, elem_shape=(3,), dtype="fp32")
        values = mb.list_write(ls=values, index=0, value=mb.squeeze(x=mb.split(x=x, axis=0, num_splits=2)[0], axes=[0]))
        values = mb.list_scatter(ls=values, indices=[3, 1], value=x)
        return [
            mb.list_gather(ls=values, indices=[3, 0, 1]),
            mb.list_read(ls=values, index=2),
            mb.expand_dims(x=mb.list_length(ls=values), axes=[0]),
        ]

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    gathered, empty, length = packages.run(build, {"x": x}, "iOS15")
    np.testing.assert_array_equal(gathered, x[[0, 0, 1]])
    assert (empty.tolist(), length.tolist()) == ([0, 0, 0], [4])
