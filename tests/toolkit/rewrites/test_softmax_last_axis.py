"""Softmax along the last axis: equal in float64 on any axis of any rank."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites.softmax_last_axis import REWRITE

SOFTMAX = torch.ops.aten.softmax.int


class Softmax(nn.Module):
    def __init__(self, dim: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dim, self.dtype = dim, dtype

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, self.dim, dtype=self.dtype)


def moved(module: nn.Module, x: Tensor) -> int:
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-12, atol=1e-15)
    for node in program.graph.nodes:
        if times and node.target is SOFTMAX:
            value = node.meta["val"]
            assert value.dim() <= 3
            assert node.args[1] == value.dim() - 1
    assert REWRITE.apply(program) == 0
    return times


@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=5), dim=st.integers(0, 4), from_behind=st.booleans())
def test_any_axis_becomes_the_last_of_rank_three_or_less(shape: list[int], dim: int, from_behind: bool) -> None:
    axis = dim % len(shape)
    stays = axis == len(shape) - 1 and len(shape) <= 3
    module = Softmax(axis - len(shape) if from_behind else axis)
    assert moved(module, torch.randn(shape, dtype=torch.float64) * 9) == (0 if stays else 1)


def test_a_softmax_in_another_type_is_left_alone() -> None:
    assert moved(Softmax(1, torch.float64), torch.randn(1, 3, 2, 2)) == 0


def test_it_is_for_the_runtime_that_needs_it() -> None:
    assert REWRITE.targets == ("executorch",)


class AfterConvolution(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.last, self.dim = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1), dim

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(torch.softmax(9 * self.first(x), self.dim))
        return result


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_softmax_of_a_convolution_is_right_after_the_rule(dim: int) -> None:
    torch.manual_seed(0)
    assert moved(AfterConvolution(dim).double(), torch.randn(1, 3, 10, 14, dtype=torch.float64)) == 1
