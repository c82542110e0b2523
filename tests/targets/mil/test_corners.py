"""Corners of operators: missing and negative axes, odd paddings, ceil mode, masks, ties."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

RNG = np.random.default_rng(3)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)
I = RNG.integers(-9, 9, (2, 3, 4)).astype(np.int32)  # noqa: E741
RANKS = {rank: RNG.standard_normal((2, 3, 4, 3, 4)[:rank]).astype(np.float32) for rank in (1, 2, 3, 4, 5)}
REDUCED = ("l1_norm", "l2_norm", "log_sum_exp", "max", "mean", "min", "prod", "sum", "sum_square")
SLICES = (
    ([2, 0], [-1, 3], [-1, 1], [0, 0], [1, 0], [0, 0]),
    ([-1, 3], [0, 0], [-2, -1], [0, 1], [1, 1], [0, 0]),
    ([0, 1], [0, 2], [1, 1], [0, 0], [1, 0], [0, 1]),
    ([-3, -2], [9, 9], [2, 1], [1, 0], [0, 0], [0, 0]),
    ([1, -1], [2, 0], [1, -3], [0, 0], [0, 1], [1, 0]),
)
GRID = np.arange(12, dtype=np.float32).reshape(3, 4)
Expected = Any
Case = tuple[Mapping[str, Any], Callable[..., Any], Expected]


def _op(name: str, **fixed: Any) -> Callable[..., Any]:
    return lambda mb, **values: getattr(mb, name)(**values, **fixed)


def _reduced(name: str, x: Any, axes: tuple[int, ...] | None, keep: bool) -> Any:
    """numpy's, in float64."""
    x = x.astype(np.float64)
    found: dict[str, Callable[..., Any]] = {
        "l1_norm": lambda **how: np.abs(x).sum(**how),
        "l2_norm": lambda **how: np.sqrt((x * x).sum(**how)),
        "log_sum_exp": lambda **how: np.log(np.exp(x).sum(**how)),
        "max": x.max,
        "mean": x.mean,
        "min": x.min,
        "prod": x.prod,
        "sum": x.sum,
        "sum_square": lambda **how: (x * x).sum(**how),
    }
    return found[name](axis=axes, keepdims=keep)


def _sliced(x: Any, numbers: Any) -> Any:
    begins, ends, strides, from_start, to_end, squeezed = numbers
    return x[
        tuple(
            begin if squeeze else slice(None if low else begin, None if high else end, stride)
            for begin, end, stride, low, high, squeeze in zip(
                begins, ends, strides, from_start, to_end, squeezed, strict=True
            )
        )
    ]


def _slice_case(numbers: Any) -> Case:
    names = ("begin", "end", "stride", "begin_mask", "end_mask", "squeeze_mask")
    fixed = {
        name: [bool(one) for one in value] if "mask" in name else value
        for name, value in zip(names, numbers, strict=True)
    }
    return {"x": GRID}, _op("slice_by_index", **fixed), _sliced(GRID, numbers)


def _padded_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for (rank, x), (mode, numpys) in itertools.product(
        RANKS.items(), (("constant", "constant"), ("reflect", "reflect"), ("replicate", "edge"))
    ):
        # Both of Apple's mirrored modes pad the last two axes at most.
        count = rank if mode == "constant" else min(rank, 2)
        amounts = [1, 0, 0, 1, 2, 1, 1, 2, 2, 0][-2 * count :] if x.shape[0] > 2 or count < rank else [1, 1] * count
        widths = [(0, 0)] * (rank - count) + list(zip(amounts[::2], amounts[1::2], strict=True))
        cases[f"pad_{mode}_rank_{rank}"] = ({"x": x}, _op("pad", pad=amounts, mode=mode), np.pad(x, widths, numpys))
    return cases


def _pool_case(size: tuple[int, ...], kernel: int, stride: int, pad: int, exclude: bool) -> Case:
    x, axes = RNG.standard_normal((2, 3, *size)).astype(np.float32), len(size)
    build = _op(
        "avg_pool",
        kernel_sizes=[kernel] * axes,
        strides=[stride] * axes,
        pad_type="custom",
        pad=[pad] * 2 * axes,
        ceil_mode=True,
        exclude_padding_from_average=exclude,
    )
    pool: Any = {1: F.avg_pool1d, 2: F.avg_pool2d}[axes]
    expected = pool(torch.from_numpy(x), kernel, stride, pad, ceil_mode=True, count_include_pad=not exclude)
    return {"x": x}, build, expected.numpy()


def _transposed_case(kind: str, size: int, kernel: int, stride: int, out: int) -> Case:
    """As the gradient of the convolution that pads `out` elements to `size` outputs: its definition for `same`."""
    x, weight = torch.randn(2, 4, size), torch.randn(4, 3, kernel)
    total = max(0, (size - 1) * stride + kernel - out)
    before = total - total // 2 if kind == "same_lower" else total // 2
    picture = torch.zeros(2, 3, out, requires_grad=True)
    made = F.conv1d(F.pad(picture, (before, total - before)), weight.reshape(4, 3, kernel), stride=stride)
    made.backward(x)  # type: ignore[no-untyped-call]
    assert picture.grad is not None
    fixed = {"weight": weight.numpy(), "pad_type": kind, "strides": [stride], "output_shape": [2, 3, out]}
    return {"x": x.numpy()}, _op("conv_transpose", **fixed), picture.grad.numpy()


def _einsum_case(equation: str, *shapes: tuple[int, ...]) -> Case:
    x, y = (RNG.standard_normal(shape).astype(np.float32) for shape in shapes)
    return {"x": x, "y": y}, lambda mb, x, y: mb.einsum(values=(x, y), equation=equation), np.einsum(equation, x, y)


def _scattered(mode: str) -> Any:
    """Along the last axis, one update after the other."""
    apply: dict[str, Callable[[Any, Any], Any]] = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
        "max": max,
        "min": min,
        "update": lambda a, b: b,
    }
    result = GRID.copy()
    for row, column in np.ndindex(PLACES.shape):
        place = (row, PLACES[row, column])
        result[place] = apply[mode](result[place], UPDATES[row, column])
    return result


PLACES = np.array([[0, -1, 3], [1, 1, 1], [-4, 2, 0]], np.int32)
UPDATES = np.array([[5, 2, 4], [1, 2, 3], [-1, -2, 8]], np.float32)
TIES = np.array([[1, 3, 3, 0, 3], [2, 2, 2, 2, 2]], np.float32)
HOT = np.array([[0, 2], [1, -1]], np.int32)
HOT_ROWS = (np.arange(3) == HOT[..., None]).astype(np.float32) * 5 - 2

TRANSPOSED: tuple[Any, ...] = (
    ("same", 5, 3, 2, 9),
    ("same", 5, 3, 2, 10),
    ("same", 4, 2, 3, 12),
    ("same", 4, 5, 3, 10),
    ("same_lower", 5, 4, 2, 9),
    ("same_lower", 4, 4, 3, 11),
)
EQUATIONS: tuple[Any, ...] = (
    # The two that an ML program may hold, sizes of 1 broadcast.
    ("chw,whu->chu", (2, 3, 4), (4, 3, 5)),
    ("chw,whu->chu", (2, 1, 4), (4, 3, 5)),
    ("nchw,nwhu->nchu", (1, 2, 3, 4), (2, 4, 1, 5)),
)
# coremltools folds this operator as if its mode were update.
WRONGLY_INFERRED = tuple(f"scatter_along_{mode}" for mode in ("add", "sub", "mul", "div", "max", "min"))
CASES: dict[str, Case] = {
    **{
        f"reduce_{name}_{label}_{keep}": (
            {"x": X},
            _op(f"reduce_{name}", keep_dims=keep, **({} if axes is None else {"axes": list(axes)})),
            _reduced(name, X, axes, keep),
        )
        for name in REDUCED
        for label, axes in (("all", None), ("last", (-1,)), ("outer", (-3, 2)))
        for keep in (True, False)
    },
    **{f"slice_{index}": _slice_case(numbers) for index, numbers in enumerate(SLICES)},
    **_padded_cases(),
    **{
        f"avg_pool_{index}": _pool_case(*geometry)
        for index, geometry in enumerate(
            [
                ((size,), kernel, stride, pad, exclude)
                for size, kernel, stride in itertools.product((5, 8, 9), (2, 3, 4), (2, 3))
                for pad in range(kernel // 2 + 1)
                for exclude in (True, False)
                # Without padding coremltools counts a last window beyond the end, torch does not.
                if pad or -(-(size - kernel) // stride) * stride < size
            ]
            + [((7, 6), 3, 2, 1, True), ((7, 6), 3, 2, 1, False), ((6, 9), 4, 3, 2, True)]
        )
    },
    **{f"conv_transpose_{index}": _transposed_case(*geometry) for index, geometry in enumerate(TRANSPOSED)},
    **{f"einsum_{index}": _einsum_case(equation, *shapes) for index, (equation, *shapes) in enumerate(EQUATIONS)},
    **{
        f"scatter_along_{mode}": (
            {"data": GRID, "indices": PLACES, "updates": UPDATES},
            _op("scatter_along_axis", axis=-1, mode=mode),
            _scattered(mode),
        )
        for mode in ("add", "sub", "mul", "div", "max", "min", "update")
    },
    **{
        f"one_hot_{axis + 3}": (
            {"indices": HOT},
            _op("one_hot", one_hot_vector_size=3, axis=axis, on_value=np.float32(3), off_value=np.float32(-2)),
            np.moveaxis(HOT_ROWS, -1, axis),
        )
        for axis in (-3, -2, -1, 0, 1, 2)
    },
    "mean_of_integers": (
        {"x": I},
        _op("reduce_mean", axes=[-1]),
        np.trunc(I.astype(np.float64).mean(-1)),
    ),
    "gather_last": ({"x": X, "indices": np.array([[3, 0]], np.int32)}, _op("gather", axis=-1), X[..., [[3, 0]]]),
    "gather_middle": ({"x": X, "indices": np.array([2, 0], np.int32)}, _op("gather", axis=-2), X[:, [2, 0]]),
    "gather_one": ({"x": X}, _op("gather", axis=-2, indices=np.int32(1)), X[:, 1]),
    "gather_along_last": (
        {"x": GRID, "indices": PLACES},
        _op("gather_along_axis", axis=-1),
        np.take_along_axis(GRID, PLACES, -1),
    ),
    "topk_ties": ({"x": TIES}, _op("topk", k=3), TIES[[0, 1]][:, [1, 2, 4]]),
    "topk_all": ({"x": TIES}, _op("topk", k=5, ascending=True), np.sort(TIES, -1)),
    "topk_unsorted": ({"x": TIES}, _op("topk", k=2, sort=False), np.array([[3, 3], [2, 2]])),
    "argsort_ties": ({"x": TIES}, _op("argsort"), np.array([[1, 2, 4, 0, 3], [0, 1, 2, 3, 4]])),
}


@pytest.fixture(scope="module")
def results(packages: Any) -> Any:
    return packages.batch({case: (feeds, build) for case, (feeds, build, _) in CASES.items()}, "iOS17")


@pytest.mark.parametrize("case", CASES)
def test_a_corner_gives_what_numpy_or_torch_does(results: Any, case: str) -> None:
    output, expected = results.outputs[case][0], np.asarray(CASES[case][2])
    assert np.shape(output) == expected.shape
    np.testing.assert_allclose(output, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case not in WRONGLY_INFERRED])
def test_a_corner_gives_what_coremltools_infers(results: Any, case: str) -> None:
    for output, inferred in zip(results.outputs[case], results.inferred[case] or (), strict=False):
        np.testing.assert_allclose(output, np.asarray(inferred), rtol=2e-5, atol=2e-5)


def test_the_first_of_equals_comes_first(results: Any) -> None:
    assert results.outputs["topk_ties"][1].tolist() == [[1, 2, 4], [0, 1, 2]]
