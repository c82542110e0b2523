"""Two layers as one: equal in float64, and never more products than before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from acmix.toolkit.rewrites.linear_pair import REWRITE


def applied(module: nn.Module, x: Tensor) -> int:
    module = module.double().eval()
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    counts: list[int] = []
    outputs: list[Tensor] = []
    for network in (program.module(), module):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            outputs.append(network(x))
        counts.append(counter.get_total_flops())
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    assert counts[0] <= counts[1]
    assert REWRITE.apply(program) == 0
    return times


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    point_first=st.booleans(),
    biases=st.tuples(st.booleans(), st.booleans()),
)
def test_convolutions_join_when_that_is_no_more_work(
    sizes: tuple[int, int, int], kernel: int, stride: int, point_first: bool, biases: tuple[bool, bool]
) -> None:
    inputs, middle, outputs = sizes
    shapes = [(1, 1), (kernel, stride)] if point_first else [(kernel, stride), (1, 1)]
    first = nn.Conv2d(inputs, middle, *shapes[0], bias=biases[0])
    second = nn.Conv2d(middle, outputs, *shapes[1], bias=biases[1])
    times = applied(nn.Sequential(first, second), torch.randn(2, inputs, 7, 6, dtype=torch.float64))
    if middle >= max(inputs, outputs) and kernel == 1:
        assert times == 1


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
def test_linear_layers_join(biases: tuple[bool, bool]) -> None:
    module = nn.Sequential(nn.Linear(4, 6, biases[0]), nn.Linear(6, 3, biases[1]))
    assert applied(module, torch.randn(2, 5, 4, dtype=torch.float64)) == 1


def test_a_selection_matrix_goes_into_the_layer_before_it() -> None:
    class Selected(nn.Module):
        selection: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 6)
            self.register_buffer("selection", torch.eye(6)[:, [5, 0, 0, 2]])

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.linear(x) @ self.selection
            return result

    assert applied(Selected(), torch.randn(2, 4, dtype=torch.float64)) == 1


def test_a_bias_before_a_padded_convolution_keeps_both() -> None:
    padded = nn.Conv2d(8, 2, 3, padding=1)
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    assert applied(nn.Sequential(nn.Conv2d(2, 8, 1), padded), x) == 0
    assert applied(nn.Sequential(nn.Conv2d(2, 8, 1, bias=False), padded), x) == 1


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)),
        nn.Sequential(nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1)),
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)),
        nn.Sequential(nn.Conv2d(8, 8, (5, 3)), nn.Conv2d(8, 8, (1, 3))),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.Flatten(2), nn.Linear(36, 4)),
    ],
    ids=["low rank", "groups", "two kernels", "two kernels of other sizes", "something between", "another axis"],
)
def test_what_does_not_fit_stays_two_layers(module: nn.Module) -> None:
    assert applied(module, torch.randn(1, 8, 6, 6, dtype=torch.float64)) == 0
