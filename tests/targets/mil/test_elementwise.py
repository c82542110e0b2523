"""Element by element operators, activations and reductions, against torch and coremltools' own constant folding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

X = np.array([[-2.5, -1.5, -0.5, 0.0], [0.5, 1.5, 2.5, 7.25]], np.float32)
Y = np.array([[1.0, -2.0, 3.0, 4.0]], np.float32)
UNIT = np.array([-0.9, -0.3, 0.0, 0.7], np.float32)
POSITIVE = np.array([0.1, 1.0, 4.0, 100.0], np.float32)
I = np.array([[7, -7, 5], [-5, 0, 3]], np.int32)  # noqa: E741
J = np.array([2, 3, -2], np.int32)
B, C = np.array([True, True, False, False]), np.array([True, False, True, False])
T3 = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
T4 = np.random.default_rng(1).standard_normal((2, 3, 2, 2)).astype(np.float32)
ALPHAS, BETAS = np.array([0.1, 0.5, 2.0], np.float32), np.array([1.0, -0.5, 3.0], np.float32)

UNARY = {
    "abs": X, "acos": UNIT, "asin": UNIT, "atan": X, "atanh": UNIT, "ceil": X, "cos": X, "cosh": X, "erf": X,
    "exp": X, "exp2": X, "floor": X, "round": X, "sign": X, "sin": X, "sinh": X, "sqrt": POSITIVE, "square": X,
    "tan": X, "tanh": X, "relu": X, "sigmoid": X, "silu": X, "softplus": X, "softsign": X, "relu6": X,
    "rsqrt": POSITIVE, "log": POSITIVE, "inverse": POSITIVE,
}  # fmt: skip
BINARY = (
    "add", "sub", "mul", "real_div", "maximum", "minimum", "mod", "floor_div", "equal", "not_equal", "greater",
    "greater_equal", "less", "less_equal",
)  # fmt: skip
REDUCED = ("l1_norm", "l2_norm", "log_sum_exp", "max", "mean", "min", "prod", "sum", "sum_square")


def _op(name: str, **fixed: Any) -> Callable[..., Any]:
    return lambda mb, **values: getattr(mb, name)(**values, **fixed)


CASES: dict[str, tuple[Mapping[str, Any], Callable[..., Any]]] = {
    **{name: ({"x": x}, _op(name)) for name, x in UNARY.items()},
    **{f"{name}_floats": ({"x": X, "y": Y}, _op(name)) for name in BINARY},
    **{f"{name}_integers": ({"x": I, "y": J}, _op(name)) for name in BINARY if name != "real_div"},
    **{name: ({"x": B, "y": C}, _op(name)) for name in ("logical_and", "logical_or", "logical_xor")},
    **{f"reduce_{name}": ({"x": T3}, _op(f"reduce_{name}", axes=[0, -1])) for name in REDUCED},
    **{f"reduce_{name}_all_kept": ({"x": T3}, _op(f"reduce_{name}", keep_dims=True)) for name in REDUCED},
    **{f"reduce_{name}_of_integers": ({"x": I}, _op(f"reduce_{name}", axes=[1])) for name in ("sum", "mean", "max")},
    "abs_of_integers": ({"x": I}, _op("abs")),
    "square_of_integers": ({"x": I}, _op("square")),
    "logical_not": ({"x": B}, _op("logical_not")),
    "pow": ({"x": POSITIVE, "y": UNIT}, _op("pow")),
    "pow_of_integers": ({"x": I, "y": np.array([2, 3, 1], np.int32)}, _op("pow")),
    "select": ({"cond": B, "a": UNIT, "b": POSITIVE}, _op("select")),
    "clip": ({"x": X}, _op("clip", alpha=np.float32(-1), beta=np.float32(2))),
    "threshold": ({"x": X}, _op("threshold", alpha=np.float32(0.25))),
    "log_epsilon": ({"x": POSITIVE}, _op("log", epsilon=np.float32(0.5))),
    "rsqrt_epsilon": ({"x": POSITIVE}, _op("rsqrt", epsilon=np.float32(0.5))),
    "cast_truncates": ({"x": X}, _op("cast", dtype="int32")),
    "cast_to_bool": ({"x": X}, _op("cast", dtype="bool")),
    "cast_of_bool": ({"x": B}, _op("cast", dtype="fp32")),
    "cast_to_int8": ({"x": X}, _op("cast", dtype="int8")),
    "clamped_relu": ({"x": X}, _op("clamped_relu", alpha=np.float32(0.2), beta=np.float32(2))),
    "elu": ({"x": X}, _op("elu", alpha=np.float32(0.7))),
    "gelu": ({"x": X}, _op("gelu")),
    "gelu_tanh": ({"x": X}, _op("gelu", mode="TANH_APPROXIMATION")),
    "gelu_sigmoid": ({"x": X}, _op("gelu", mode="SIGMOID_APPROXIMATION")),
    "leaky_relu": ({"x": X}, _op("leaky_relu", alpha=np.float32(0.1))),
    "linear_activation": ({"x": X}, _op("linear_activation", alpha=np.float32(2), beta=np.float32(-1))),
    "prelu": ({"x": T4}, _op("prelu", alpha=ALPHAS)),
    "scaled_tanh": ({"x": X}, _op("scaled_tanh", alpha=np.float32(1.7), beta=np.float32(0.6))),
    "sigmoid_hard": ({"x": X}, _op("sigmoid_hard", alpha=np.float32(0.2), beta=np.float32(0.5))),
    "softplus_parametric": ({"x": T4}, _op("softplus_parametric", alpha=ALPHAS, beta=BETAS)),
    "thresholded_relu": ({"x": X.copy()}, _op("thresholded_relu", alpha=np.float32(0.5))),
    "softmax": ({"x": T3}, _op("softmax")),
    "softmax_axis_1": ({"x": T3}, _op("softmax", axis=1)),
    "reduce_log_sum": ({"x": np.abs(T3)}, _op("reduce_log_sum", axes=[1])),
    "reduce_argmax": ({"x": T3}, _op("reduce_argmax")),
    "reduce_argmin_kept": ({"x": T3}, _op("reduce_argmin", axis=1, keep_dims=True)),
    "reduce_argmax_uint16": ({"x": T3}, _op("reduce_argmax", axis=0, output_dtype="uint16")),
    "cumsum": ({"x": T3}, _op("cumsum", axis=1)),
    "cumsum_reverse": ({"x": T3}, _op("cumsum", axis=2, reverse=True)),
    "cumsum_exclusive": ({"x": T3}, _op("cumsum", axis=2, exclusive=True)),
    "cumsum_exclusive_reverse": ({"x": T3}, _op("cumsum", axis=2, exclusive=True, reverse=True)),
}
x, t3, t4 = map(torch.from_numpy, (X, T3, T4))
TORCH: dict[str, torch.Tensor] = {
    "silu": F.silu(x),
    "gelu": F.gelu(x),
    "gelu_tanh": F.gelu(x, approximate="tanh"),
    "prelu": F.prelu(t4, torch.from_numpy(ALPHAS)),
    "elu": F.elu(x, 0.7),
    "softmax_axis_1": t3.softmax(1),
    "cast_to_int8": torch.tensor([[-2, -1, 0, 0], [0, 1, 2, 7]]),
    "mod_integers": torch.tensor([[1, 2, -1], [1, 0, -1]]),
    "floor_div_integers": torch.tensor([[3, -3, -3], [-3, 0, -2]]),
    "thresholded_relu": torch.tensor([[0, 0, 0, 0], [0.5, 1.5, 2.5, 7.25]]),
    "softplus_parametric": torch.stack(
        [a * F.softplus(b * t4[:, i]) for i, (a, b) in enumerate(zip(ALPHAS, BETAS, strict=True))], 1
    ),
    "cumsum_exclusive": t3.cumsum(2) - t3,
    "cumsum_exclusive_reverse": t3.flip(2).cumsum(2).flip(2) - t3,
}


@pytest.fixture(scope="module", params=["iOS17", "iOS18"])
def results(packages: Any, request: pytest.FixtureRequest) -> Any:
    return packages.batch(CASES, request.param)


@pytest.mark.parametrize("case", TORCH)
def test_an_operator_computes_what_torch_does(results: Any, case: str) -> None:
    np.testing.assert_allclose(results.outputs[case][0], TORCH[case].numpy(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_an_operator_computes_what_coremltools_infers(results: Any, case: str) -> None:
    if results.inferred[case] is None:
        assert case in TORCH
        return
    for output, inferred in zip(results.outputs[case], results.inferred[case], strict=True):
        np.testing.assert_allclose(output, np.asarray(inferred), rtol=3e-6, atol=2e-6)
        assert output.shape == np.shape(inferred)


def test_integers_wrap_and_floats_saturate_when_cast(packages: Any) -> None:
    feeds = {"x": np.array([300, -1, 70000], np.int32), "y": np.array([300.7, -4.0, np.nan], np.float32)}

    def build(mb: Any, x: Any, y: Any) -> list[Any]:
        casts = [mb.cast(x=x, dtype="uint8"), mb.cast(x=x, dtype="uint16"), mb.cast(x=y, dtype="uint8")]
        return [mb.cast(x=one, dtype="int32") for one in casts]

    wrapped, wide, saturated = packages.run(build, feeds)
    assert wrapped.tolist() == [44, 255, 112]
    assert wide.tolist() == [300, 65535, 4464]
    assert saturated.tolist() == [255, 0, 0]
