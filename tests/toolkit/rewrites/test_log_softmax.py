"""Log-softmaxes by their formula: equal in float64 on any axis, far into the tails."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites.log_softmax import REWRITE

LOG_SOFTMAX = torch.ops.aten.log_softmax.int


class LogSoftmax(nn.Module):
    def __init__(self, dim: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dim, self.dtype = dim, dtype

    def forward(self, x: Tensor) -> Tensor:
        return torch.log_softmax(x, self.dim, dtype=self.dtype)


def applied(module: nn.Module, x: Tensor) -> int:
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-12, atol=1e-12)
    assert sum(node.target is LOG_SOFTMAX for node in program.graph.nodes) == 1 - times
    assert all(node.meta["val"].dim() <= 5 for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor))
    assert REWRITE.apply(program) == 0
    return times


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    dim=st.integers(0, 3),
    from_behind=st.booleans(),
    reach=st.floats(0.1, 500),
)
def test_any_axis_of_any_rank(shape: list[int], dim: int, from_behind: bool, reach: float) -> None:
    axis = dim % len(shape)
    module = LogSoftmax(axis - len(shape) if from_behind else axis)
    assert applied(module, torch.randn(shape, dtype=torch.float64) * reach) == 1


def test_a_probability_that_is_zero_in_float32_keeps_its_logarithm() -> None:
    x = torch.tensor([[0.0, -400.0, -1000.0]])
    program = torch.export.export(LogSoftmax(1), (x,))
    assert REWRITE.apply(program) == 1
    torch.testing.assert_close(program.module()(x), x)


def test_an_empty_axis_is_left_alone() -> None:
    program = torch.export.export(LogSoftmax(1), (torch.randn(2, 0),))
    assert REWRITE.apply(program) == 0


def test_another_type_is_left_alone() -> None:
    program = torch.export.export(LogSoftmax(1, torch.float64), (torch.randn(1, 3),))
    assert REWRITE.apply(program) == 0
