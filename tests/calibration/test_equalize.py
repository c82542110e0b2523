"""Equalization: exact in float64, balanced where it may act, and hands off where a factor does not commute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.calibration.equalize import channel_peaks, equalize
from acmix.toolkit.program import quiet
from acmix.toolkit.target import Array


@dataclass(frozen=True)
class Noise:
    """Samples of normal noise in float64."""

    shape: tuple[int, ...]
    name: str = "noise"
    labels: None = None
    digest: str = ""
    identifiers: tuple[str, ...] = ("0", "1", "2")

    def __len__(self) -> int:
        return len(self.identifiers)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        rng = np.random.default_rng(0)
        return iter([(rng.standard_normal(self.shape),) for _ in self.identifiers])


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights whose channels differ by up to a thousand."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        size = 10 ** (3 * torch.rand(tensor.shape[0], generator=generator) - 1.5)
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.copy_(noise * size.reshape(-1, *[1] * (tensor.dim() - 1)))
    return module.double().eval()


def captured(module: nn.Module, shape: tuple[int, ...]) -> ExportedProgram:
    with torch.no_grad(), quiet():
        return torch.export.export(module, (torch.zeros(shape, dtype=torch.float64),))


def check_exact(module: nn.Module, shape: tuple[int, ...], groups: int, use_peaks: bool = False) -> ExportedProgram:
    """Equalize and compare in float64; the program with its new weights."""
    program = captured(module, shape)
    peaks = channel_peaks(program, Noise(shape)) if use_peaks else None
    before = {name: value.clone() for name, value in program.state_dict.items()}
    made, found = equalize(program, peaks)
    made.validate()
    assert len(found) == groups
    x = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(made.module()(x), module(x), rtol=1e-11, atol=1e-11)
    assert all(torch.equal(program.state_dict[name], value) for name, value in before.items())
    changed = any(not torch.equal(made.state_dict[name], value) for name, value in before.items())
    assert changed == (groups > 0)
    return made


class Residual(nn.Module):
    """Two blocks whose sum is one set of channels: three layers write it, three read it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.expand = nn.ModuleList([nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(4, 8, 1)])
        self.project = nn.ModuleList([nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 1)])
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for expand, project in zip(self.expand, self.project, strict=True):
            x = x + project(torch.relu(expand(x)))
        return self.head(x.mean((2, 3)))


def test_a_pair_is_balanced_as_in_the_paper() -> None:
    module = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[100.0], [1.0]]))
        module[2].weight.copy_(torch.tensor([[0.01, 1.0]]))
    made, found = equalize(captured(module, (1, 1)))
    first, second = (made.state_dict[f"{i}.weight"].detach().flatten() for i in (0, 2))
    # s = sqrt(100 / 0.01) = 100 for the first channel and 1 for the second, up to a factor of both.
    assert float(first[0] / first[1]) == pytest.approx(1.0)
    assert float(second[0] / second[1]) == pytest.approx(1.0)
    assert found[0].largest == pytest.approx(10.0)
    assert (len(found[0].producers), len(found[0].consumers)) == (1, 1)


@settings(max_examples=20, deadline=None)
@given(
    kernel=st.sampled_from([1, 3]),
    depthwise=st.booleans(),
    bias=st.booleans(),
    activation=st.sampled_from([nn.ReLU(), nn.LeakyReLU(0.1), nn.Identity(), nn.Dropout(0.5)]),
    seed=st.integers(0, 1000),
    use_peaks=st.booleans(),
)
def test_three_convolutions_give_the_same_in_float64(
    kernel: int, depthwise: bool, bias: bool, activation: nn.Module, seed: int, use_peaks: bool
) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 6, kernel, bias=bias),
        activation,
        nn.Conv2d(6, 6, 3, padding=1, groups=6 if depthwise else 2, bias=bias),
        activation,
        nn.Conv2d(6, 4, 1, bias=bias),
    )
    check_exact(randomise(module, seed), (1, 3, 8, 8), 2, use_peaks)


@pytest.mark.parametrize("use_peaks", [False, True])
def test_a_residual_stream_is_one_set_of_channels(use_peaks: bool) -> None:
    made = check_exact(randomise(Residual()), (1, 3, 6, 6), 3, use_peaks)
    stream = next(g for g in equalize(made)[1] if len(g.producers) == 3)
    assert len(stream.consumers) == 3


@pytest.mark.parametrize(
    ("between", "size"),
    [
        ([nn.MaxPool2d(2), nn.ZeroPad2d(1), nn.AvgPool2d(2)], 6),
        ([nn.AdaptiveAvgPool2d(1), nn.Flatten()], 6),
        ([nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(2)], 5),
    ],
)
def test_pooling_and_padding_let_the_factors_through(between: list[nn.Module], size: int) -> None:
    last = nn.Linear(4, 2) if any(isinstance(m, nn.Flatten) for m in between) else nn.Conv2d(4, 2, 1)
    check_exact(randomise(nn.Sequential(nn.Conv2d(3, 4, 1), *between, last)), (1, 3, size, size), 1)


def test_linear_layers_of_tokens_are_equalized_on_their_last_axis() -> None:
    module = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    check_exact(randomise(module), (2, 4, 5), 1)


@pytest.mark.parametrize(
    "between", [nn.ReLU6(), nn.Hardswish(), nn.GELU(), nn.Sigmoid(), nn.ConstantPad2d(1, 0.5), nn.Flatten(2)]
)
def test_what_does_not_commute_with_a_factor_is_left_alone(between: nn.Module) -> None:
    last = nn.Linear(16, 2) if isinstance(between, nn.Flatten) else nn.Conv2d(4, 2, 1)
    check_exact(randomise(nn.Sequential(nn.Conv2d(3, 4, 1), between, last)), (1, 3, 4, 4), 0)


class Observed(nn.Module):
    """The tensor in between is an output too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        return x, self.second(x)


class Tied(nn.Module):
    """One layer used twice: its channels cannot be scaled on one side alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


class Transposed(nn.Module):
    """The channels change places with the tokens in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).transpose(1, 2))


class Swapped(nn.Module):
    """A sum of a tensor and one of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.gate = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) + self.gate(x))


@pytest.mark.parametrize(
    ("module", "shape"),
    [(Observed(), (2, 3)), (Tied(), (2, 4)), (Transposed(), (2, 4, 4)), (Swapped(), (1, 4, 3, 3))],
)
def test_channels_that_something_else_sees_are_left_alone(module: nn.Module, shape: tuple[int, ...]) -> None:
    check_exact(randomise(module), shape, 0)


def test_a_channel_that_nobody_reads_stays_finite() -> None:
    module = randomise(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    with torch.no_grad():
        module[2].weight[:, 1] = 0.0
        module[0].weight[2] = 0.0
    made = check_exact(module, (1, 3), 1)
    assert all(bool(value.isfinite().all()) for value in made.state_dict.values())


@pytest.mark.parametrize("use_peaks", [False, True])
def test_a_network_made_to_collapse_comes_back(use_peaks: bool) -> None:
    """One channel a hundred times larger, undone in the next layer: one scale a tensor loses all the others."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)]
    for first, second in pairwise(layers):
        with torch.no_grad():
            for tensor in (first.weight, first.bias):
                tensor[3] *= 100.0
            second.weight[:, 3] /= 100.0
    module = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).double().eval()
    shape = (1, 8, 8, 8)
    program = captured(module, shape)
    made, _ = equalize(program, channel_peaks(program, Noise(shape)) if use_peaks else None)
    x = torch.from_numpy(next(iter(Noise(shape)))[0])

    def error(one: ExportedProgram) -> float:
        with torch.no_grad():
            wanted = one.module()(x)
            rounded = x
            for i in range(3):
                exact = one.state_dict[f"{2 * i}.weight"].detach()
                # One scale for the whole weight: the hardest case.
                step = exact.abs().max() / 127
                weight = torch.round(exact / step) * step
                bias = one.state_dict[f"{2 * i}.bias"]
                rounded = nn.functional.conv2d(rounded, weight.double(), bias, padding=1)
                rounded = rounded.relu() if i < 2 else rounded
                scale = float(rounded.abs().max()) / 127
                rounded = torch.round(rounded / scale) * scale
            return float((rounded - wanted).square().mean() / wanted.square().mean())

    assert error(made) < error(program) / 30
