"""GRUs unrolled: equal in float64 for cells and short sequences, layers and directions."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites.gru_cell import MOST_STEPS, REWRITE

GRUS = (torch.ops.aten.gru_cell.default, torch.ops.aten.gru.input)


def applied(module: nn.Module, *inputs: Tensor) -> int:
    module = module.double().eval()
    program = torch.export.export(module, inputs)
    times = REWRITE.apply(program)
    program.validate()
    found, wanted = program.module()(*inputs), module(*inputs)
    for one, other in zip(*((t,) if isinstance(t, Tensor) else t for t in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    left = sum(node.target in GRUS for node in program.graph.nodes)
    assert times == 0 or left == 0
    assert REWRITE.apply(program) == 0
    return times


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    features=st.integers(1, 5),
    hidden=st.integers(1, 5),
    bias=st.booleans(),
    known=st.booleans(),
)
def test_a_cell_is_its_formula(batch: int, features: int, hidden: int, bias: bool, known: bool) -> None:
    state = (normal(batch, hidden),) if known else ()
    assert applied(nn.GRUCell(features, hidden, bias), normal(batch, features), *state) == 1


@settings(max_examples=20, deadline=None)
@given(
    steps=st.integers(1, 4),
    batch=st.integers(1, 2),
    layers=st.integers(1, 2),
    both_ways=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    known=st.booleans(),
)
def test_a_short_sequence_is_its_steps(
    steps: int, batch: int, layers: int, both_ways: bool, batch_first: bool, bias: bool, known: bool
) -> None:
    module = nn.GRU(3, 4, layers, bias, batch_first, 0.0, both_ways)
    x = normal(batch, steps, 3) if batch_first else normal(steps, batch, 3)
    state = (normal(layers * (2 if both_ways else 1), batch, 4),) if known else ()
    assert applied(module, x, *state) == 1


@pytest.mark.parametrize("steps", [MOST_STEPS, MOST_STEPS + 1])
def test_a_long_sequence_is_left_alone(steps: int) -> None:
    assert applied(nn.GRU(2, 3), normal(steps, 1, 2)) == (1 if steps == MOST_STEPS else 0)


def test_onnx_keeps_its_own_operator() -> None:
    assert "onnx" not in REWRITE.targets


def test_the_program_can_be_saved() -> None:
    module, x = nn.GRUCell(3, 4).double(), normal(1, 3)
    program = torch.export.export(module, (x,))
    REWRITE.apply(program)
    stream = io.BytesIO()
    torch.export.save(program, stream)
    stream.seek(0)
    torch.testing.assert_close(torch.export.load(stream).module()(x), module(x), rtol=1e-12, atol=1e-14)
