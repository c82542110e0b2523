"""Which tensors become integers, on small programs whose grid can be said by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.grid import Grid, choose_grid, integers
from acmix.toolkit.quantize import graph_module
from acmix.toolkit.ranges import Range, Ranges


class Block(nn.Module):
    """Two convolutions with a fused activation, a residual sum, a pool and a head behind a softmax gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.gate, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x).relu()
        b = self.second(a) + a
        gated = torch.nn.functional.max_pool2d(b, 2)
        gated = gated * self.gate(gated).softmax(-1)
        return self.head(gated.mean((2, 3)))


def ranges_of(module: nn.Module, *shape: int) -> tuple[torch.export.ExportedProgram, Ranges]:
    program = torch.export.export(module.eval(), (torch.zeros(shape),))
    named = {n.name: Range(-1.0 - i, 2.0 + i) for i, n in enumerate(graph_module(program).graph.nodes)}
    return program, Ranges(named, {}, (), "minmax", "made up", 1, "")


def grid_of(module: nn.Module, *shape: int, kept: tuple[str, ...] = ()) -> Grid:
    program, ranges = ranges_of(module, *shape)
    return choose_grid(graph_module(program).graph, ranges, kept)


@given(
    low=st.floats(-1e4, 0, allow_subnormal=False),
    high=st.floats(0, 1e4, allow_subnormal=False),
    bits=st.sampled_from([8, 16]),
)
def test_zero_is_exact_and_the_range_is_covered(low: float, high: float, bits: int) -> None:
    made = integers(Range(low, high), "x", bits)
    half = 2 ** (bits - 1)
    assert -half <= made.zero_point < half
    values = made.scale * (np.array([-half, half - 1], np.float64) - made.zero_point)
    # The zero point is rounded, so that an end may lie up to half a step inside.
    assert values[0] <= low + 0.5001 * made.scale + 1e-6 * abs(low)
    assert values[1] >= high - 0.5001 * made.scale - 1e-6 * high


def test_a_fused_activation_is_the_integer_and_the_convolution_before_it_is_not() -> None:
    grid = grid_of(Block(), 1, 3, 8, 8)
    assert "relu" in grid.produced
    assert "conv2d" not in grid.tensors


def test_integers_flow_through_sums_and_pools() -> None:
    grid = grid_of(Block(), 1, 3, 8, 8)
    assert {"conv2d_1", "add", "max_pool2d"} <= grid.produced
    assert grid.tensors["add"].scale == grid.tensors["max_pool2d"].scale
    assert grid.tensors["add"].scale != grid.tensors["conv2d_1"].scale


def test_what_a_float_tensor_feeds_is_rounded_for_that_layer_alone() -> None:
    grid = grid_of(Block(), 1, 3, 8, 8)
    assert ("x", "conv2d") in grid.edges
    assert "x" not in grid.produced
    assert ("mean", "linear") in grid.edges


def test_products_of_two_activations_and_softmax_stay_float() -> None:
    grid = grid_of(Block(), 1, 3, 8, 8)
    assert {"softmax", "mul"} & set(grid.tensors) == set()


def test_a_layer_kept_float_is_neither_read_nor_written_as_integers() -> None:
    grid = grid_of(Block(), 1, 3, 8, 8, kept=("conv2d_1",))
    assert "conv2d_1" not in grid.weights
    assert "conv2d_1" not in grid.tensors
    assert "add" not in grid.produced


def test_parts_of_a_concatenation_share_their_scale_with_the_whole() -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    grid = grid_of(Cat(), 1, 3, 4, 4)
    scales = {grid.tensors[n].scale for n in ("conv2d", "conv2d_1", "cat")}
    assert len(scales) == 1
    _, ranges = ranges_of(Cat(), 1, 3, 4, 4)
    members = [ranges.tensors[n] for n in ("conv2d", "conv2d_1", "cat")]
    widest = Range(min(r.low for r in members), max(r.high for r in members))
    assert scales == {integers(widest, "").scale}


def test_a_computed_weight_stays_float() -> None:
    class Predicted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.taps = nn.Linear(4, 3 * 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, self.taps(x.mean(0)).reshape(3, 4))

    grid = grid_of(Predicted(), 5, 4)
    assert grid.weights == {"linear"}


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_only_a_padding_with_zeros_keeps_integers(mode: str) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.nn.functional.pad(self.a(x), (1, 1, 1, 1), mode=mode))

    assert ("pad" in grid_of(Padded(), 1, 3, 6, 6).produced) == (mode == "constant")


def test_an_average_pool_has_a_scale_of_its_own_and_a_largest_pool_has_not() -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(nn.functional.avg_pool2d(nn.functional.max_pool2d(self.a(x), 2), 2))

    grid = grid_of(Pools(), 1, 3, 8, 8)
    assert {"max_pool2d", "avg_pool2d"} <= grid.produced
    assert grid.tensors["conv2d"].scale == grid.tensors["max_pool2d"].scale
    assert grid.tensors["avg_pool2d"].scale != grid.tensors["max_pool2d"].scale
