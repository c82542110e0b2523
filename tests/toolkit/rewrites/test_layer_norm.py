"""Layer norms by their formula: equal in float64, over tokens and over the channels of a map."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites.layer_norm import REWRITE

ATEN = torch.ops.aten


class OnMap(nn.Module):
    """ConvNeXt's norm over the channels of [N, C, H, W]."""

    def __init__(self, channels: int, affine: bool = True, back: bool = True) -> None:
        super().__init__()
        self.norm, self.back = nn.LayerNorm(channels, elementwise_affine=affine), back

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.permute(0, 2, 3, 1))
        return x.permute(0, 3, 1, 2) if self.back else x


def applied(module: nn.Module, x: Tensor) -> tuple[int, int]:
    """How often the rule applied, and how many permutations are left."""
    generator = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    module = module.double().eval()
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-12, atol=1e-12)
    assert times == 0 or not any(node.target is ATEN.layer_norm.default for node in program.graph.nodes)
    assert REWRITE.apply(program) == 0
    return times, sum(node.target is ATEN.permute.default for node in program.graph.nodes)


@settings(max_examples=20, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), size=st.integers(2, 7), affine=st.booleans())
def test_a_norm_over_the_last_axis(shape: list[int], size: int, affine: bool) -> None:
    x = torch.randn(*shape, size, dtype=torch.float64) * 3 + 5
    assert applied(nn.LayerNorm(size, elementwise_affine=affine), x) == (1, 0)


@settings(max_examples=15, deadline=None)
@given(channels=st.integers(2, 6), space=st.tuples(st.integers(1, 4), st.integers(1, 4)), affine=st.booleans())
def test_a_norm_over_channels_needs_no_permutation(channels: int, space: tuple[int, int], affine: bool) -> None:
    x = torch.randn(2, channels, *space, dtype=torch.float64)
    assert applied(OnMap(channels, affine), x) == (1, 0)


def test_a_channel_last_result_keeps_its_permutation() -> None:
    assert applied(OnMap(4, back=False), torch.randn(1, 4, 3, 2, dtype=torch.float64)) == (1, 1)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_a_norm_over_several_axes_is_left_alone(shape: tuple[int, ...]) -> None:
    assert applied(nn.LayerNorm(list(shape)), torch.randn(2, *shape, dtype=torch.float64)) == (0, 0)
