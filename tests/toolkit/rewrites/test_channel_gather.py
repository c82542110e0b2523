"""Gathers of channels taken into weights or made slices: equal in float64, and no gather left."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites.channel_gather import MOST_SLICES, REWRITE

ATEN = torch.ops.aten
GATHERS = (ATEN.index_select.default, ATEN.index.Tensor)
Kind = Literal["select", "buffer", "list", "convolution"]


class Gather(nn.Module):
    index: Tensor
    selection: Tensor

    def __init__(self, index: list[int], channels: int, kind: Kind = "buffer") -> None:
        super().__init__()
        self.listed, self.kind = index, kind
        self.register_buffer("index", torch.tensor(index))
        rows = nn.functional.one_hot(self.index % channels, channels)
        self.register_buffer("selection", rows[:, :, None, None].double(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "select":
            return torch.index_select(x, 1, self.index % x.shape[1])
        if self.kind == "convolution":
            return nn.functional.conv2d(x, self.selection)
        return x[:, self.index] if self.kind == "buffer" else x[:, self.listed]


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "var" in name else -0.5))
    return module.double().eval()


def left(module: nn.Module, x: Tensor, times: int = 1) -> list[str]:
    """The operators that are left, after checking that the network is the same."""
    module = randomised(module)
    program = torch.export.export(module, (x,))
    assert REWRITE.apply(program) == times
    program.validate()
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-12, atol=1e-12)
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor) and times:
            assert node.target not in GATHERS
    assert REWRITE.apply(program) == 0
    return [str(n.target).split(".")[1] for n in program.graph.nodes if n.op == "call_function" and n.users]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), channels=st.integers(1, 5), kernel=st.integers(1, 3), norm=st.booleans())
def test_a_gather_that_reads_every_channel_goes_into_the_next_convolution(
    data: st.DataObject, channels: int, kernel: int, norm: bool
) -> None:
    more = data.draw(st.lists(st.integers(-channels, channels - 1), max_size=0 if norm else 4))
    index = data.draw(st.permutations([*range(channels), *more]))
    between = nn.BatchNorm2d(len(index)) if norm else nn.ReLU()
    module = nn.Sequential(Gather(index, channels), between, nn.Conv2d(len(index), 3, kernel))
    operators = left(module, torch.randn(2, channels, 5, 4, dtype=torch.float64))
    assert operators == ["batch_norm" if norm else "relu", "conv2d"]


@pytest.mark.parametrize("kind", ["buffer", "list"])
def test_every_spelling_of_an_index_is_known(kind: Kind) -> None:
    module = nn.Sequential(Gather([2, 0, 1, 0], 3, kind), nn.Conv2d(4, 3, 1))
    assert left(module, torch.randn(1, 3, 5, 4, dtype=torch.float64)) == ["conv2d"]


def test_index_select_by_a_constant_is_known() -> None:
    class Select(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.conv(torch.index_select(x, 1, torch.tensor([2, 0, 1, 0])))
            return result

    assert left(Select(), torch.randn(1, 3, 5, 4, dtype=torch.float64)) == ["conv2d"]


def test_a_convolution_that_only_selects_is_a_gather() -> None:
    module = nn.Sequential(Gather([2, 0, 1, 0], 3, "convolution"), nn.Conv2d(4, 3, 1))
    assert left(module, torch.randn(1, 3, 5, 4, dtype=torch.float64)) == ["conv2d"]


def test_a_linear_layer_takes_one_too() -> None:
    module = nn.Sequential(Gather([2, 0, 1, 0], 3), nn.Linear(4, 5))
    assert left(module, torch.randn(2, 3, dtype=torch.float64)) == ["linear"]


def test_channels_left_out_are_not_computed() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), Gather([5, 1, 6], 8), nn.Softmax(1))
    program = torch.export.export(randomised(module), (torch.randn(1, 3, 4, 4, dtype=torch.float64),))
    assert REWRITE.apply(program) == 1
    conv = next(node for node in program.graph.nodes if node.target is ATEN.conv2d.default)
    assert tuple(conv.meta["val"].shape) == (1, 3, 4, 4)
    assert left(module, torch.randn(1, 3, 4, 4, dtype=torch.float64))[:1] == ["conv2d"]


@pytest.mark.parametrize(
    ("index", "wanted"),
    [([2, 3, 4], ["slice", "softmax"]), ([4, 5, 0, 1], ["slice", "slice", "cat", "softmax"])],
)
def test_a_few_runs_become_slices(index: list[int], wanted: list[str]) -> None:
    module = nn.Sequential(Gather(index, 6), nn.Softmax(1))
    assert left(module, torch.randn(1, 6, 4, 4, dtype=torch.float64)) == wanted


def test_many_runs_that_nothing_can_take_stay_a_gather() -> None:
    index = [(i * 7) % 41 for i in range(MOST_SLICES + 1)]
    module = nn.Sequential(Gather(index, 41), nn.Softmax(1))
    assert left(module, torch.randn(1, 41, 2, 2, dtype=torch.float64), times=0)[-2:] == ["index", "softmax"]


def test_a_norm_that_treats_copies_of_a_channel_differently_keeps_them() -> None:
    module = nn.Sequential(Gather([0, 1, 1], 2), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
    operators = left(module, torch.randn(1, 2, 4, 4, dtype=torch.float64))
    assert operators == ["slice", "slice", "cat", "batch_norm", "conv2d"]


class Inverse(nn.Module):
    """Infinite where a channel is zero."""

    scale: Tensor

    def __init__(self, divides: bool) -> None:
        super().__init__()
        self.divides = divides
        self.register_buffer("scale", torch.ones(18, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale / x if self.divides else x**-1.0


@pytest.mark.parametrize("divides", [True, False])
def test_a_channel_left_out_may_be_zero_before_it_is_inverted(divides: bool) -> None:
    x = torch.rand(1, 36, 2, 2, dtype=torch.float64) + 1
    x[:, 1::2] = 0
    every_second = Gather([*range(0, 36, 2)], 36)
    left(nn.Sequential(every_second, Inverse(divides), nn.Conv2d(18, 2, 1)), x, times=0)


def test_a_selecting_convolution_of_one_image_is_none_of_its_rows() -> None:
    module = nn.Sequential(Gather([2, 0, 1, 3], 4, "convolution"), nn.Conv1d(4, 3, 1))
    left(module, torch.randn(4, 4, 5, dtype=torch.float64), times=0)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([1, 0, 0, 1]))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.mask, Tensor)
        return x[:, self.mask.to(torch.bool)].sum(1)


def test_a_mask_is_no_index() -> None:
    module, x = Masked(), torch.randn(1, 4, 2, 2, dtype=torch.float64)
    program = torch.export.export(module, (x,))
    assert REWRITE.apply(program) == 0
    assert torch.equal(program.module()(x), module(x))


class Other(nn.Module):
    """Gathers that are not of channels, or not by a constant."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rows":
            return x[:, :, torch.tensor([1, 0])]
        if self.kind == "pairs":
            return x[torch.tensor([0, 0]), torch.tensor([1, 2])]
        return x[:, x.sum((0, 2, 3)).argsort()]


@pytest.mark.parametrize("kind", ["rows", "pairs", "computed"])
def test_other_gathers_are_left_alone(kind: str) -> None:
    left(nn.Sequential(Other(kind), nn.ReLU()), torch.randn(1, 3, 4, 4, dtype=torch.float64), times=0)
