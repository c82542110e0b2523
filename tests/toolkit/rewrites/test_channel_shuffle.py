"""Channel shuffles taken into weights: equal in float64, gone where a layer can take them, whole where none can."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites.channel_shuffle import REWRITE

ATEN = torch.ops.aten
MOVES = (ATEN.transpose.int, ATEN.permute.default, ATEN.channel_shuffle.default)


class Shuffle(nn.Module):
    """The shuffle as ShuffleNet's authors spell it, of [N, C, ...]."""

    def __init__(self, groups: int, permutes: bool = False) -> None:
        super().__init__()
        self.groups, self.permutes = groups, permutes

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *space = x.shape
        seen = x.view(batch, self.groups, channels // self.groups, *space)
        order = [0, 2, 1, *range(3, 3 + len(space))]
        swapped = seen.permute(order) if self.permutes else torch.transpose(seen, 1, 2).contiguous()
        return swapped.reshape(batch, channels, *space)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "var" in name else -0.5))
    return module.double().eval()


def left(module: nn.Module, x: Tensor, times: int = 1) -> int:
    """How many operators still move channels, after checking that the network is the same."""
    module = randomised(module)
    program = torch.export.export(module, (x,))
    assert REWRITE.apply(program) == times
    program.validate()
    found, wanted = program.module()(x), module(x)
    for one, other in zip(*((t,) if isinstance(t, Tensor) else t for t in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert REWRITE.apply(program) == 0
    return sum(node.target in MOVES for node in program.graph.nodes)


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 4),
    each=st.integers(1, 4),
    outputs=st.integers(1, 5),
    kernel=st.integers(1, 3),
    permutes=st.booleans(),
    bias=st.booleans(),
)
def test_the_next_convolution_takes_it(
    groups: int, each: int, outputs: int, kernel: int, permutes: bool, bias: bool
) -> None:
    channels = groups * each
    module = nn.Sequential(Shuffle(groups, permutes), nn.Conv2d(channels, outputs, kernel, bias=bias))
    assert left(module, torch.randn(2, channels, 5, 4, dtype=torch.float64)) == 0


@pytest.mark.parametrize("shuffle", [nn.ChannelShuffle(2), Shuffle(2), Shuffle(2, permutes=True)])
def test_it_passes_norms_activations_and_pools(shuffle: nn.Module) -> None:
    body = [nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.PReLU(6), nn.ZeroPad2d(1)]
    assert left(nn.Sequential(shuffle, *body, nn.Conv2d(6, 4, 3)), torch.randn(1, 6, 8, 8, dtype=torch.float64)) == 0


def test_it_passes_a_depthwise_convolution() -> None:
    depthwise = nn.Conv2d(6, 12, 3, 2, 1, groups=6)
    module = nn.Sequential(Shuffle(3), depthwise, nn.Hardswish(), nn.Conv2d(12, 4, 1))
    assert left(module, torch.randn(1, 6, 8, 8, dtype=torch.float64)) == 0


def test_it_passes_the_mean_to_a_linear_layer() -> None:
    module = nn.Sequential(Shuffle(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    assert left(module, torch.randn(2, 6, 5, 5, dtype=torch.float64)) == 0


def test_several_readers_take_it_each() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shuffle, self.one, self.other = Shuffle(2), nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.shuffle(x)
            one: Tensor = self.one(x)
            return one * self.other(x.relu())

    assert left(Fork(), torch.randn(1, 6, 5, 5, dtype=torch.float64)) == 0


@pytest.mark.parametrize("before", [nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3, bias=False)])
def test_else_the_layer_before_takes_it(before: nn.Module) -> None:
    module = nn.Sequential(before, nn.BatchNorm2d(6), nn.ReLU6(), Shuffle(3))
    assert left(module, torch.randn(1, 6, 6, 6, dtype=torch.float64)) == 0


def test_the_way_back_passes_a_depthwise_convolution() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), Shuffle(2))
    assert left(module, torch.randn(1, 3, 6, 6, dtype=torch.float64)) == 0


class SwapBlocks(nn.Module):
    """Looks like a shuffle, and cuts channels apart: two channels stand in one row of the view."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        seen = x.view(batch, 2, channels // 4, 2 * height, width).transpose(1, 2)
        return seen.reshape(batch, channels, height, width)


class PoolOfLines(nn.Module):
    """A pool of images on a batch of lines: it mixes their channels."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 3, 1, 1)


def test_a_pool_that_mixes_the_channels_of_lines_stops_it() -> None:
    module = nn.Sequential(Shuffle(2), PoolOfLines(), nn.Conv1d(6, 3, 1))
    assert left(module, torch.randn(2, 6, 5, dtype=torch.float64), times=0) == 1


def test_grouped_convolutions_of_one_channel_each_pass_it_on() -> None:
    module = nn.Sequential(Shuffle(2), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 3, 1))
    assert left(module, torch.randn(1, 4, 6, 6, dtype=torch.float64)) == 0


def test_a_shuffle_of_other_axes_is_none() -> None:
    module = nn.Sequential(SwapBlocks(), nn.Conv2d(8, 4, 1))
    assert left(module, torch.randn(1, 8, 4, 4, dtype=torch.float64), times=0) == 1


def test_between_grouped_convolutions_that_mix_it_stays() -> None:
    module = nn.Sequential(nn.Conv2d(8, 8, 1, groups=2), Shuffle(2), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2))
    assert left(module, torch.randn(1, 8, 6, 6, dtype=torch.float64), times=0) == 1


def test_an_operator_that_nothing_can_take_is_spelled_with_rank_four() -> None:
    module = nn.Sequential(nn.Conv2d(8, 8, 1, groups=2), nn.ChannelShuffle(4), nn.Conv2d(8, 8, 1, groups=2))
    assert left(module, torch.randn(1, 8, 6, 6, dtype=torch.float64)) == 1


@pytest.mark.parametrize("after", [nn.Softmax(1), nn.LayerNorm(5), nn.Identity(), nn.Flatten()])
def test_what_mixes_channels_or_ends_the_network_stops_it(after: nn.Module) -> None:
    assert left(nn.Sequential(Shuffle(2), after), torch.randn(1, 6, 5, 5, dtype=torch.float64), times=0) == 1


def test_a_source_that_an_in_place_operator_would_spoil_stops_it() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shuffle, self.conv = Shuffle(2), nn.Conv2d(6, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            result: Tensor = self.conv(torch.relu_(self.shuffle(y)))
            return result + y

    assert left(Reused(), torch.randn(1, 6, 5, 5, dtype=torch.float64), times=0) == 1


def test_the_users_module_keeps_its_weights_and_the_program_can_be_saved() -> None:
    module = randomised(nn.Sequential(Shuffle(2), nn.Conv2d(6, 4, 1)))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(1, 6, 3, 3, dtype=torch.float64)
    program = torch.export.export(module, (x,))
    REWRITE.apply(program)
    stream = io.BytesIO()
    torch.export.save(program, stream)
    stream.seek(0)
    torch.testing.assert_close(torch.export.load(stream).module()(x), module(x), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
