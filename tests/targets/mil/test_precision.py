"""In which numbers a program is evaluated, and how close a network's package comes to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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


def test_special_values_are_cast_by_rule(packages: Any) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 3e9, -3e9, -0.9, 70000, 65519, 65520, 1e-8], np.float32)
    i = np.array([2049, -2051, 70000, 2**31 - 1], np.int32)

    def build(mb: Any, x: Any, i: Any) -> list[Any]:
        return [
            mb.cast(x=x, dtype="int32"),
            mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32"),
            mb.cast(x=mb.cast(x=x, dtype="bool"), dtype="int32"),
            mb.cast(x=mb.cast(x=i, dtype="fp16"), dtype="fp32"),
            mb.cast(x=i, dtype="fp32"),
        ]

    integers, halves, truth, rounded, wide = packages.run(build, {"x": x, "i": i})
    top, low = 2**31 - 1, -(2**31)
    assert integers.tolist() == [0, top, low, top, low, 0, 70000, 65519, 65520, 0]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(halves, x.astype(np.float16).astype(np.float32))
        np.testing.assert_array_equal(rounded, i.astype(np.float16).astype(np.float32))
    assert truth.tolist() == [1] * 10
    np.testing.assert_array_equal(wide, i.astype(np.float32))


HALF_OPERATORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "square": torch.square,
    "sin": torch.sin,
    "erf": torch.erf,
    "silu": F.silu,
    "gelu": F.gelu,
    "softsign": F.softsign,
    "reduce_mean": torch.mean,
    "reduce_sum_square": lambda x: (x * x).sum(),
    "reduce_log_sum_exp": lambda x: x.logsumexp((0, 1)),
    "softmax": lambda x: x.softmax(-1),
    "cumsum": lambda x: x.cumsum(0),
    "l2_norm": lambda x: x / ((x * x).sum() + np.float32(np.float16(1e-6))).sqrt(),
}


def test_every_float16_result_is_rounded_once(packages: Any) -> None:
    """To the float16 nearest to the exact result: a float64 result, rounded; a half-way case may go either way."""
    x = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float16)

    def build(mb: Any, x: Any) -> list[Any]:
        picture = {"l2_norm": mb.reshape(x=x, shape=[1, 16, 16])}
        return [getattr(mb, name)(x=picture.get(name, x)) for name in HALF_OPERATORS]

    exact = torch.from_numpy(x).double()
    for (name, apply), output in zip(HALF_OPERATORS.items(), packages.run(build, {"x": x}), strict=True):
        assert output.dtype == np.float16, name
        expected = apply(exact).numpy().reshape(output.shape)
        wrong = output != expected.astype(np.float16)
        assert wrong.mean() <= (1 if wrong.size == 1 else 0.01), name
        np.testing.assert_allclose(output, expected, rtol=2**-10.9, atol=2**-24, err_msg=name)


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
