"""Cyclic shifts: bit for bit, on any axes, and no roll left."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites.roll import REWRITE


class Roll(nn.Module):
    def __init__(self, shifts: tuple[int, ...] | int, dims: tuple[int, ...] | None) -> None:
        super().__init__()
        self.shifts, self.dims = shifts, dims

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x, self.shifts, self.dims)


def rolled(module: nn.Module, x: Tensor) -> int:
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    assert torch.equal(program.module()(x), module(x))
    assert REWRITE.apply(program) == 0
    return times


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    moves=st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 3)), min_size=1, max_size=3),
    from_behind=st.booleans(),
)
def test_a_roll_of_any_axes_is_slices_and_concatenations(
    shape: list[int], moves: list[tuple[int, int]], from_behind: bool
) -> None:
    dims = tuple(axis % len(shape) - (len(shape) if from_behind else 0) for _, axis in moves)
    module = Roll(tuple(shift for shift, _ in moves), dims)
    assert rolled(module, torch.randn(shape, dtype=torch.float64)) == 1


@pytest.mark.parametrize("shift", [0, 5, -7, 60, 61])
def test_a_roll_without_axes_moves_the_flattened_tensor(shift: int) -> None:
    assert rolled(Roll(shift, None), torch.arange(60).reshape(3, 4, 5)) == 1


def test_swin_shifts_its_windows_there_and_back_and_the_file_says_so_too() -> None:
    module = nn.Sequential(Roll((-3, -3), (1, 2)), nn.ReLU(), Roll((3, 3), (1, 2)))
    x = torch.randn(2, 7, 14, 3, dtype=torch.float64)
    program = torch.export.export(module, (x,))
    assert REWRITE.apply(program) == 2
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(x), torch.relu(x))
    assert {str(node.target) for node in program.graph.nodes if node.op == "call_function"} == {
        "aten.slice.Tensor",
        "aten.cat.default",
        "aten.relu.default",
    }


def test_an_empty_tensor_is_left_alone() -> None:
    assert rolled_empty() == 0


def rolled_empty() -> int:
    program = torch.export.export(Roll((1,), (1,)), (torch.zeros(2, 0),))
    return REWRITE.apply(program)
