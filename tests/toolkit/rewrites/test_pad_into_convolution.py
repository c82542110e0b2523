"""Paddings that a convolution or a maximum takes over: float64, and every case that must stay."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.toolkit.rewrites.pad_into_convolution import REWRITE

INFINITE = float("-inf")


class Padded(nn.Module):
    """A layer behind a padding, which the sum of both reads too if asked."""

    def __init__(self, layer: nn.Module, widths: tuple[int, ...], value: float = 0.0, mode: str = "constant") -> None:
        super().__init__()
        self.layer = layer
        self.pad: Callable[[Tensor], Tensor] = lambda x: F.pad(x, widths, mode, value if mode == "constant" else None)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(self.pad(x))
        return y


def folded(module: nn.Module, x: Tensor) -> tuple[int, ExportedProgram]:
    module = module.double().eval()
    program = torch.export.export(module, (x.double(),))
    times = REWRITE.apply(program)
    program.validate()
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x.double()), module(x.double()), rtol=1e-12, atol=1e-12)
    assert REWRITE.apply(program) == 0
    return times, program


def paddings_left(program: ExportedProgram) -> int:
    return sum(node.target is torch.ops.aten.pad.default for node in program.graph.nodes)


@settings(max_examples=25, deadline=None)
@given(
    widths=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    own=st.sampled_from([0, 1, (2, 1), "valid"]),
    kernel=st.sampled_from([1, 3, (2, 3)]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
)
def test_a_convolution_takes_over_the_zeros_before_it(
    widths: tuple[int, int],
    own: int | tuple[int, int] | str,
    kernel: int | tuple[int, int],
    stride: int,
    dilation: int,
    groups: int,
    bias: bool,
) -> None:
    layer = nn.Conv2d(2, 4, kernel, stride, own, dilation, groups, bias)
    columns, rows = widths
    times, program = folded(Padded(layer, (columns, columns, rows, rows)), torch.randn(2, 2, 8, 9))
    assert times == 1
    assert paddings_left(program) == 0


@pytest.mark.parametrize(
    ("layer", "widths", "shape"),
    [
        (nn.Conv1d(2, 3, 3), (2, 2), (1, 2, 7)),
        (nn.Conv2d(2, 3, 3, padding=(1, 2)), (1, 1), (1, 2, 6, 7)),
        (nn.Conv2d(2, 3, 3), (1, 1, 2, 2), (2, 6, 7)),
    ],
    ids=["on a line", "along one axis only", "without a batch"],
)
def test_convolutions_of_other_shapes_do_so_too(
    layer: nn.Module, widths: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    assert folded(Padded(layer, widths), torch.randn(shape))[0] == 1


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("own", [0, 1])
def test_a_maximum_takes_over_minus_infinity(own: int, dilation: int) -> None:
    layer = nn.MaxPool2d(4, 2, own, dilation)
    times, program = folded(Padded(layer, (1, 1, 1, 1), INFINITE), torch.randn(2, 3, 9, 8) - 5)
    assert times == 1
    assert paddings_left(program) == 0


class TwoReaders(nn.Module):
    """Two convolutions share a padding, and one more operator reads it."""

    def __init__(self, also: bool) -> None:
        super().__init__()
        self.first, self.second, self.also = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3), also

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1))
        y: Tensor = self.first(padded) * self.second(padded)
        return y + padded.mean() if self.also else y


@pytest.mark.parametrize("also", [True, False])
def test_every_convolution_that_reads_a_padding_takes_it_over(also: bool) -> None:
    times, program = folded(TwoReaders(also), torch.randn(1, 2, 5, 6))
    assert times == 2
    assert paddings_left(program) == also


class Overwritten(nn.Module):
    """What was padded changes before the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        padded = F.pad(x, (1, 1, 1, 1))
        x.mul_(2)
        y: Tensor = self.conv(padded) + x.mean()
        return y


ZEROS = (1, 1, 1, 1)
LEFT: dict[str, nn.Module] = {
    "wider behind": Padded(nn.Conv2d(2, 3, 3, 2), (0, 1, 0, 1)),
    "a negative width": Padded(nn.Conv2d(2, 3, 3), (-1, -1, 0, 0)),
    "channels padded too": Padded(nn.Conv2d(4, 3, 3), (1, 1, 1, 1, 1, 1)),
    "another constant": Padded(nn.Conv2d(2, 3, 3), ZEROS, 1.0),
    "a reflection": Padded(nn.Conv2d(2, 3, 3), ZEROS, mode="reflect"),
    "a convolution that pads to its own size": Padded(nn.Conv2d(2, 3, 3, padding="same"), ZEROS),
    "a transposed convolution": Padded(nn.ConvTranspose2d(2, 3, 3), ZEROS),
    "an average": Padded(nn.AvgPool2d(3, 2), ZEROS),
    "zeros before a maximum": Padded(nn.Sequential(nn.MaxPool2d(3, 2)), ZEROS),
    "more than half a kernel": Padded(nn.MaxPool2d(3, 2, 1), ZEROS, INFINITE),
    "a maximum that rounds up": Padded(nn.MaxPool2d(2, 2, ceil_mode=True), ZEROS, INFINITE),
    "an input that changes": Overwritten(),
}


@pytest.mark.parametrize("module", LEFT.values(), ids=LEFT)
def test_what_does_not_fit_the_rule_is_left_alone(module: nn.Module) -> None:
    assert folded(module, torch.randn(1, 2, 7, 7))[0] == 0


def test_a_folded_program_survives_a_file() -> None:
    module = Padded(nn.Conv2d(2, 3, 3, 2), ZEROS)
    x = torch.randn(1, 2, 8, 8)
    program = folded(module, x)[1]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    with torch.no_grad():
        found = torch.export.load(file).module()(x.double())
        torch.testing.assert_close(found, module(x.double()), rtol=1e-12, atol=1e-12)
