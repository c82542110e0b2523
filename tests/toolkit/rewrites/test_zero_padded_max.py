"""Max poolings padded with zeros: bit for bit where nothing is below 0, and left alone where something may be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites.zero_padded_max import REWRITE

PADS = (torch.ops.aten.pad.default,)


class Pooled(nn.Module):
    def __init__(self, activation: nn.Module, **options: object) -> None:
        super().__init__()
        self.activation, self.options = activation, options

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.activation(x - 1), **self.options)  # type: ignore[arg-type]


def applied(module: nn.Module, x: Tensor) -> int:
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    assert torch.equal(program.module()(x), module(x))
    assert sum(node.target in PADS for node in program.graph.nodes) == times
    assert REWRITE.apply(program) == 0
    return times


@settings(max_examples=20, deadline=None)
@given(
    kernel=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    stride=st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3)),
    inplace=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_behind_a_relu_zeros_pad_as_well(
    kernel: tuple[int, int], stride: tuple[int, int] | None, inplace: bool, seed: int
) -> None:
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    padding = (kernel[0] // 2, kernel[1] // 2)
    module = Pooled(nn.ReLU(inplace), kernel_size=kernel, stride=stride, padding=padding)
    assert applied(module, x) == 1


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Sigmoid(), nn.Hardsigmoid()])
def test_other_activations_that_give_nothing_below_zero_do_too(activation: nn.Module) -> None:
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    assert applied(Pooled(activation, kernel_size=3, stride=2, padding=1), x) == 1


@pytest.mark.parametrize(
    ("activation", "options"),
    [
        (nn.Identity(), {"kernel_size": 3, "padding": 1}),
        (nn.LeakyReLU(), {"kernel_size": 3, "padding": 1}),
        (nn.Hardtanh(), {"kernel_size": 3, "padding": 1}),
        (nn.Hardswish(), {"kernel_size": 3, "padding": 1}),
        (nn.ReLU(), {"kernel_size": 3}),
        (nn.ReLU(), {"kernel_size": 3, "padding": 1, "dilation": 2}),
        (nn.ReLU(), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ],
    ids=["nothing before", "leaky", "clipped at -1", "hard-swish", "no padding", "dilated", "ceil mode"],
)
def test_other_poolings_are_left_alone(activation: nn.Module, options: dict[str, object]) -> None:
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64) - 3
    assert applied(Pooled(activation, **options), x) == 0


def test_what_is_written_below_zero_before_the_pooling_is_left_alone() -> None:
    class Lowered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(x)
            y.sub_(5)
            return F.max_pool2d(y, 3, 2, 1)

    assert applied(Lowered(), torch.randn(1, 3, 8, 8, dtype=torch.float64)) == 0
