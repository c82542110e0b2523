"""Folding batch norms: float64 on random shapes, and the cases where it must keep its hands off."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites.fold_batch_norm import REWRITE


def randomise(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "running_var" in name else -0.5))
    return module.double().eval()


def fold(module: nn.Module, x: Tensor) -> tuple[int, Tensor, Tensor]:
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    with torch.no_grad():
        return times, program.module()(x), module(x)


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 5),
    multiplier=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    depthwise=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_convolution_and_its_norm_equal_one_convolution(
    channels: int, multiplier: int, kernel: int, stride: int, bias: bool, depthwise: bool, seed: int
) -> None:
    conv = nn.Conv2d(
        channels, channels * multiplier, kernel, stride, kernel // 2, groups=channels if depthwise else 1, bias=bias
    )
    module = randomise(nn.Sequential(conv, nn.BatchNorm2d(channels * multiplier), nn.ReLU()), seed)
    times, found, wanted = fold(module, torch.randn(1, channels, 7, 5, dtype=torch.float64))
    assert times == 1
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_takes_its_norm_too(bias: bool) -> None:
    module = randomise(nn.Sequential(nn.Linear(6, 4, bias=bias), nn.BatchNorm1d(4)), 0)
    times, found, wanted = fold(module, torch.randn(3, 6, dtype=torch.float64))
    assert times == 1
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_the_users_module_keeps_its_weights() -> None:
    module = randomise(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), 0)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fold(module, torch.randn(1, 2, 4, 4, dtype=torch.float64))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("outputs", [4, 16])
def test_a_norm_over_the_tokens_of_a_linear_layer_is_left_alone(outputs: int) -> None:
    module = randomise(nn.Sequential(nn.Linear(8, outputs), nn.BatchNorm1d(4)), 0)
    times, found, wanted = fold(module, torch.randn(1, 4, 8, dtype=torch.float64))
    assert times == 0
    torch.testing.assert_close(found, wanted)


class SharedConvolution(nn.Module):
    """One convolution read twice, each time before another norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.first, self.second = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.conv(x)) + self.second(self.conv(x))


class ReadTwice(nn.Module):
    """The convolution's own output is needed as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


@pytest.mark.parametrize(
    "module",
    [
        SharedConvolution(),
        ReadTwice(),
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, affine=False)),
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)),
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2)),
    ],
    ids=["shared weights", "output read twice", "not affine", "no running statistics", "no layer before it"],
)
def test_what_does_not_fit_the_rule_is_left_alone(module: nn.Module) -> None:
    times, found, wanted = fold(randomise(module, 0), torch.randn(2, 2, 4, 4, dtype=torch.float64))
    assert times == 0
    torch.testing.assert_close(found, wanted)
