"""In which numbers a program is evaluated, and how close a network's package comes to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from acmix.targets.mil import load_package
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.errors import UsageError
from acmix.toolkit.samples import Probes
from acmix.toolkit.spec import TensorSpec

HALF = {"x": np.array([1.0, 2048.0, 1e-3, 70.0], np.float16)}


def test_results_are_rounded_to_float16_where_the_file_says_so(packages: Any) -> None:
    def build(mb: Any, x: Any) -> list[Any]:
        return [mb.add(x=x, y=np.float16(1)), mb.mul(x=mb.mul(x=x, y=x), y=np.float16(0.5))]

    path = packages.build(build, HALF, "iOS17")
    summed, squared = load_package(path)(HALF).values()
    assert summed.dtype == np.float16
    assert summed[1] == 2048  # 2049 lies between two numbers
    assert squared[1] == np.inf  # the square itself has overflowed
    wide, exact = load_package(path, precision="float32")(HALF).values()
    assert wide.dtype == np.float32
    assert wide[1] == 2049
    assert exact[1] == 2048**2 / 2
    assert next(iter(load_package(path, precision="float64")(HALF).values())).dtype == np.float64


def test_sums_can_be_kept_in_float16(packages: Any) -> None:
    """Adding 1 to 2048 changes nothing in float16, however often."""
    x = np.concatenate([[2048], np.ones(100)]).astype(np.float16).reshape(1, 101)
    ones = np.ones((1, 101), np.float16)

    def build(mb: Any, x: Any) -> list[Any]:
        picture = mb.reshape(x=x, shape=[1, 101, 1, 1])
        return [
            mb.reduce_sum(x=x, axes=[1]),
            mb.linear(x=x, weight=ones, bias=np.zeros(1, np.float16)),
            mb.matmul(x=x, y=ones, transpose_y=True),
            mb.conv(x=picture, weight=ones.reshape(1, 101, 1, 1)),
        ]

    path = packages.build(build, {"x": x}, "iOS17")
    assert [float(one.item()) for one in load_package(path)({"x": x}).values()] == [2148] * 4
    halves = load_package(path, accumulate="float16")({"x": x})
    assert [float(one.item()) for one in halves.values()] == [2048] * 4


def test_a_convolution_summed_in_float16_stays_near_the_exact_one(packages: Any) -> None:
    rng = np.random.default_rng(0)
    weight, turned = (rng.standard_normal(shape).astype(np.float16) for shape in ((6, 2, 3, 3), (4, 3, 3, 2)))

    def build(mb: Any, x: Any) -> list[Any]:
        return [
            mb.conv(x=x, weight=weight, groups=2, strides=[2, 1], pad_type="same", dilations=[1, 2]),
            mb.conv_transpose(x=x, weight=turned, groups=2, strides=[2, 1], dilations=[1, 2]),
        ]

    x = rng.standard_normal((1, 4, 7, 6)).astype(np.float16)
    path = packages.build(build, {"x": x}, "iOS17")
    exact = load_package(path, precision="float64")({"x": x}).values()
    halves = load_package(path, accumulate="float16")({"x": x}).values()
    for one, half in zip(exact, halves, strict=True):
        np.testing.assert_allclose(half, one, rtol=0.02, atol=0.02)
        assert not np.array_equal(half, one)


def test_modes_that_do_not_exist_are_refused(packages: Any) -> None:
    path = packages.build(lambda mb, x: mb.relu(x=x), HALF, "iOS17")
    with pytest.raises(UsageError, match="no precision is called 'int8'"):
        load_package(path, precision="int8")
    with pytest.raises(UsageError, match="no accumulation is called 'float8'"):
        load_package(path, accumulate="float8")


def snr_db(output: Any, reference: Any) -> float:
    error = np.asarray(output, np.float64) - reference
    return float(10 * np.log10((np.asarray(reference) ** 2).sum() / (error**2).sum()))


@pytest.mark.parametrize(("precision", "floor_db"), [("float32", 70.0), ("float16", 40.0)])
def test_a_saved_network_agrees_with_eager(
    exported: Callable[[str], dict[str, Artifact]], precision: str, floor_db: float
) -> None:
    artifact = exported(precision)["coreml"]
    reference, model = np.load(artifact.folder / "reference.npz"), load_package(artifact.model_file)
    probes = Probes((TensorSpec("x", (1, 3, 32, 32)),))
    for kind, (x,) in zip(probes.identifiers, probes, strict=True):
        (output,) = model({model.interface().inputs[0].name: x}).values()
        assert snr_db(output, reference[f"{kind}.0"]) >= floor_db
