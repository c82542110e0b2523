"""Maxima over any axes: bit for bit, in the one form that the delegate takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites.keep_max_dims import REWRITE

MAX = torch.ops.aten.max.dim


class Amax(nn.Module):
    def __init__(self, axes: tuple[int, ...], keepdim: bool) -> None:
        super().__init__()
        self.axes, self.keepdim = axes, keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(self.axes, self.keepdim)


class Max(nn.Module):
    def __init__(self, axis: int, keepdim: bool) -> None:
        super().__init__()
        self.axis, self.keepdim = axis, keepdim

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = x.max(self.axis, self.keepdim)[0]
        return values, values * 2


class Argmax(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, positions = x.max(1)
        return values, positions


def applied(module: nn.Module, x: Tensor) -> int:
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    found, wanted = program.module()(x), module(x)
    for one, other in zip(*((t,) if isinstance(t, Tensor) else t for t in (found, wanted)), strict=True):
        assert torch.equal(one, other)
    for node in program.graph.nodes:
        if times and node.target is MAX:
            assert len(node.args[0].meta["val"].shape) == 4
            assert node.args[1] in (2, 3)
            assert node.args[2] is True
    assert REWRITE.apply(program) == 0
    return times


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    axis=st.integers(0, 4),
    keepdim=st.booleans(),
    from_behind=st.booleans(),
)
def test_a_maximum_along_any_axis(shape: list[int], axis: int, keepdim: bool, from_behind: bool) -> None:
    along = axis % len(shape)
    stays = len(shape) == 4 and along in (2, 3) and keepdim
    module = Max(along - len(shape) if from_behind else along, keepdim)
    assert applied(module, torch.randn(shape, dtype=torch.float64)) == (0 if stays else 1)


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("axes", [(2, 3), (-1, -2), (1,), (1, 2), (0, 1), (1, 2, 3), ()])
def test_a_maximum_over_neighbouring_axes(axes: tuple[int, ...], keepdim: bool) -> None:
    assert applied(Amax(axes, keepdim), torch.randn(2, 3, 4, 5, dtype=torch.float64)) == 1


def test_axes_apart_are_left_alone() -> None:
    assert applied(Amax((1, 3), True), torch.randn(2, 3, 4, 5, dtype=torch.float64)) == 0


def test_a_maximum_whose_position_is_read_is_left_alone() -> None:
    assert applied(Argmax(), torch.randn(2, 3, 4, dtype=torch.float64)) == 0


def test_integers_are_left_alone() -> None:
    assert applied(Amax((2, 3), True), torch.randint(0, 9, (1, 2, 3, 4))) == 0
