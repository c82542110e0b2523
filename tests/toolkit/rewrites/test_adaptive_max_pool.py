"""Adaptive max pools as ordinary ones: bit for bit, where the sizes divide."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites.adaptive_max_pool import REWRITE

POOL = torch.ops.aten.adaptive_max_pool2d.default


def applied(size: tuple[int, int], x: Tensor, positions: bool = False) -> int:
    module = nn.AdaptiveMaxPool2d(size, return_indices=positions)
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    found, wanted = program.module()(x), module(x)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    left = sum(node.target is POOL for node in program.graph.nodes)
    assert left == 1 - times
    assert REWRITE.apply(program) == 0
    return times


@settings(max_examples=20, deadline=None)
@given(size=st.tuples(st.integers(1, 3), st.integers(1, 3)), kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_a_size_that_divides_becomes_a_pool(size: tuple[int, int], kernel: tuple[int, int]) -> None:
    shape = (2, 3, size[0] * kernel[0], size[1] * kernel[1])
    assert applied(size, torch.randn(shape, dtype=torch.float64)) == 1


@pytest.mark.parametrize("positions", [True, False])
def test_a_size_that_does_not_divide_or_positions_that_are_read_are_left_alone(positions: bool) -> None:
    size = (1, 1) if positions else (2, 2)
    assert applied(size, torch.randn(1, 2, 5, 4, dtype=torch.float64), positions) == 0
