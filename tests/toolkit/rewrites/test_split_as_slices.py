"""Splits as slices: bit for bit, every way to split, and none left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites.split_as_slices import REWRITE

Split = Callable[[Tensor], Sequence[Tensor]]


class Parts(nn.Module):
    def __init__(self, split: Split) -> None:
        super().__init__()
        self.split = split

    def forward(self, x: Tensor) -> list[Tensor]:
        return [part * (i + 1) for i, part in enumerate(self.split(x))]


def sliced(split: Split, x: Tensor) -> set[str]:
    """The operators left after the rule, which has to apply once."""
    module = Parts(split)
    program = torch.export.export(module, (x,))
    assert REWRITE.apply(program) == 1
    program.validate()
    for found, wanted in zip(program.module()(x), module(x), strict=True):
        assert torch.equal(found, wanted)
    assert REWRITE.apply(program) == 0
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5), dim=st.integers(-3, 2))
def test_parts_of_any_sizes_on_any_axis_are_slices(sizes: list[int], dim: int) -> None:
    shape = [3, 3, 3]
    shape[dim] = sum(sizes)
    left = sliced(lambda x: torch.split(x, sizes, dim), torch.randn(shape, dtype=torch.float64))
    assert left == {"aten.slice.Tensor", "aten.mul.Tensor"}


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_equal_parts_and_a_shorter_last_one_are_slices(size: int) -> None:
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    assert sliced(lambda x: torch.split(x, size, 1), x) == {"aten.slice.Tensor", "aten.mul.Tensor"}
    assert sliced(lambda x: torch.chunk(x, size, 1), x) == {"aten.slice.Tensor", "aten.mul.Tensor"}


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_unbinding_is_slices_of_one(dim: int) -> None:
    left = sliced(lambda x: torch.unbind(x, dim), torch.randn(2, 3, 4, dtype=torch.float64))
    assert left == {"aten.slice.Tensor", "aten.reshape.default", "aten.mul.Tensor"}


def test_a_selected_index_is_a_slice_of_one() -> None:
    left = sliced(lambda x: [x.select(1, -2)], torch.randn(2, 3, 4, dtype=torch.float64))
    assert left == {"aten.slice.Tensor", "aten.reshape.default", "aten.mul.Tensor"}


def test_a_part_that_nobody_reads_is_not_sliced() -> None:
    x = torch.randn(1, 6, 2, dtype=torch.float64)
    module = Parts(lambda x: torch.chunk(x, 3, 1)[:1])
    program = torch.export.export(module, (x,))
    assert REWRITE.apply(program) == 1
    assert sum(node.target is torch.ops.aten.slice.Tensor for node in program.graph.nodes) == 1


def test_a_part_that_is_an_output_keeps_its_place() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first, second = torch.chunk(x, 2, 1)
            return second, first

    x = torch.randn(1, 4, 2, dtype=torch.float64)
    program = torch.export.export(Halves(), (x,))
    assert REWRITE.apply(program) == 1
    program.validate()
    second, first = program.module()(x)
    assert torch.equal(torch.cat([first, second], 1), x)


def test_a_slice_stays_a_slice() -> None:
    class Rest(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 1:]

    program = torch.export.export(Rest(), (torch.randn(1, 4, 2),))
    assert REWRITE.apply(program) == 0
