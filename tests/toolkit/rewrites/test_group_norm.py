"""Group and instance norms by their formula: equal in float64, centred before they are squared."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites.group_norm import REWRITE

NORMS = (torch.ops.aten.group_norm.default, torch.ops.aten.instance_norm.default)


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return module.double().eval()


def applied(module: nn.Module, x: Tensor) -> int:
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-12, atol=1e-12)
    left = sum(node.target in NORMS for node in program.graph.nodes)
    assert times == 0 or left == 0
    assert all(node.meta["val"].dim() <= 5 for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor))
    assert REWRITE.apply(program) == 0
    return times


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 4),
    each=st.integers(1, 4),
    batch=st.integers(1, 2),
    space=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    affine=st.booleans(),
)
def test_a_group_norm_of_any_shape(groups: int, each: int, batch: int, space: list[int], affine: bool) -> None:
    module = randomised(nn.GroupNorm(groups, groups * each, affine=affine, eps=1e-3))
    x = torch.randn(batch, groups * each, *space, dtype=torch.float64) * 3 + 5
    if each * torch.Size(space).numel() > 1:
        assert applied(module, x) == 1


@pytest.mark.parametrize("affine", [True, False])
def test_an_instance_norm_is_a_group_a_channel(affine: bool) -> None:
    module = randomised(nn.InstanceNorm2d(4, affine=affine))
    assert applied(module, torch.randn(2, 4, 5, 3, dtype=torch.float64)) == 1


def test_an_instance_norm_with_statistics_of_its_own_is_left_alone() -> None:
    module = nn.InstanceNorm2d(4, track_running_stats=True).double().eval()
    assert applied(module, torch.randn(2, 4, 5, 3, dtype=torch.float64)) == 0


def test_two_norms_share_no_constants_and_the_program_can_be_saved() -> None:
    module = randomised(nn.Sequential(nn.GroupNorm(2, 8), nn.ReLU(), nn.GroupNorm(4, 8)))
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    program = torch.export.export(module, (x,))
    assert REWRITE.apply(program) == 2
    stream = io.BytesIO()
    torch.export.save(program, stream)
    stream.seek(0)
    torch.testing.assert_close(torch.export.load(stream).module()(x), module(x), rtol=1e-12, atol=1e-12)


def test_a_large_mean_costs_float32_no_digits() -> None:
    module = randomised(nn.GroupNorm(2, 8)).float()
    x = torch.randn(1, 8, 12, 12) * 0.1 + 300
    program = torch.export.export(module, (x,))
    assert REWRITE.apply(program) == 1
    wanted = module.double()(x.double())
    torch.testing.assert_close(program.module()(x).double(), wanted, rtol=3e-3, atol=3e-3)
