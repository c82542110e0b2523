"""Spatial means keep their axes: equal in float64, and other means are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from acmix.toolkit.rewrites.keep_mean_dims import REWRITE


class Mean(nn.Module):
    def __init__(self, axes: tuple[int, ...], keepdim: bool = False, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.options = {"dim": axes, "keepdim": keepdim, "dtype": dtype}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = x.mean(**self.options)  # type: ignore[call-overload]
        return pooled, pooled * 2


def applied(module: nn.Module, x: Tensor) -> int:
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    for found, wanted in zip(program.module()(x), module(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)
    kept = [node.args[2:] for node in program.graph.nodes if node.target is torch.ops.aten.mean.dim]
    assert not times or kept == [(True,)]
    return times


@pytest.mark.parametrize("axes", [(2, 3), (3, 2), (-2, -1), (2, -1)])
@pytest.mark.parametrize("shape", [(1, 5, 7, 3), (2, 1, 1, 4)])
def test_a_spatial_mean_keeps_its_axes(axes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    assert applied(Mean(axes), torch.randn(shape, dtype=torch.float64)) == 1


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Mean((1, 2)), (1, 5, 7, 3)),
        (Mean((2, 3), keepdim=True), (1, 5, 7, 3)),
        (Mean((2,)), (1, 5, 7, 3)),
        (Mean((1, 2)), (5, 7, 3)),
        (Mean((2, 3), dtype=torch.float64), (1, 5, 7, 3)),
    ],
    ids=["other axes", "kept already", "one axis", "rank 3", "another type"],
)
def test_other_means_are_left_alone(module: nn.Module, shape: tuple[int, ...]) -> None:
    assert applied(module, torch.randn(shape, dtype=torch.float64)) == 0
