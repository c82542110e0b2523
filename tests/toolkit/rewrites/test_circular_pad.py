"""Circular borders: bit for bit, up to a whole period, and other borders are left alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.toolkit.rewrites.circular_pad import REWRITE


class Pad(nn.Module):
    def __init__(self, widths: tuple[int, ...], mode: str = "circular") -> None:
        super().__init__()
        self.widths, self.mode = widths, mode

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.widths, self.mode)


def padded(module: nn.Module, x: Tensor) -> tuple[int, ExportedProgram]:
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), module(x), rtol=1e-12, atol=1e-12)
    assert REWRITE.apply(program) == 0
    return times, program


@settings(max_examples=20, deadline=None)
@given(
    size=st.tuples(st.integers(4, 7), st.integers(4, 7)),
    widths=st.tuples(*[st.integers(0, 4)] * 4),
    batch=st.sampled_from([(2, 3), (3,)]),
)
def test_a_circular_border_of_any_widths_is_one_slice_a_side(
    size: tuple[int, int], widths: tuple[int, ...], batch: tuple[int, ...]
) -> None:
    times, program = padded(Pad(widths), torch.randn(*batch, *size, dtype=torch.float64))
    slices = [n for n in program.graph.nodes if n.target is torch.ops.aten.slice.Tensor]
    assert times == 1
    assert len(slices) == sum(width > 0 for width in widths)


@pytest.mark.parametrize(("shape", "widths"), [((1, 2, 9), (9, 4)), ((1, 2, 4, 5, 6), (1, 2, 0, 3, 4, 0))])
def test_a_line_and_a_volume_go_round_too(shape: tuple[int, ...], widths: tuple[int, ...]) -> None:
    assert padded(Pad(widths), torch.randn(shape, dtype=torch.float64))[0] == 1


def test_a_convolution_on_a_ring_keeps_its_result() -> None:
    module = nn.Conv2d(2, 3, 5, padding=2, padding_mode="circular").double()
    assert padded(module, torch.randn(1, 2, 7, 6, dtype=torch.float64))[0] == 1


@pytest.mark.parametrize("mode", ["reflect", "replicate", "constant"])
def test_other_borders_are_left_alone(mode: str) -> None:
    assert padded(Pad((1, 1, 1, 1), mode), torch.randn(1, 2, 5, 5, dtype=torch.float64))[0] == 0
