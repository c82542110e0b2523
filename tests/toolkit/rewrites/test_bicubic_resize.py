"""Bicubic and antialiased resizes as two matrices: float64 against torch's own kernels, by size and by scale."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.toolkit.rewrites.bicubic_resize import REWRITE


class Resize(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, **self.options)


def resized(module: nn.Module, x: Tensor, tolerance: float = 1e-12) -> tuple[int, ExportedProgram]:
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    torch.testing.assert_close(program.module()(x), module(x), rtol=tolerance, atol=tolerance)
    assert REWRITE.apply(program) == 0
    return times, program


KINDS = st.sampled_from(
    [
        {"mode": "bicubic", "align_corners": True},
        {"mode": "bicubic", "align_corners": False},
        {"mode": "bicubic", "align_corners": False, "antialias": True},
        {"mode": "bilinear", "align_corners": False, "antialias": True},
    ]
)


@settings(max_examples=25, deadline=None)
@given(
    kind=KINDS,
    old=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    new=st.tuples(st.integers(1, 13), st.integers(1, 13)),
)
def test_a_resize_to_a_size_is_two_matrices(kind: dict[str, Any], old: tuple[int, int], new: tuple[int, int]) -> None:
    # torch's own antialiasing kernel goes wrong on images one pixel wide: channels-last ones differ by as much.
    assume("antialias" not in kind or 1 not in (old[1], new[1]))
    times, program = resized(Resize(size=new, **kind), torch.randn(2, 3, *old, dtype=torch.float64))
    assert times == 1
    assert not [n for n in program.graph.nodes if "upsample" in n.name]


@settings(max_examples=15, deadline=None)
@given(
    kind=KINDS,
    scale=st.tuples(st.sampled_from([0.5, 0.6, 1.0, 1.7, 2.0]), st.sampled_from([0.37, 1.3, 3.0])),
    exact=st.booleans(),
)
def test_a_resize_by_a_scale_uses_the_scale_that_was_given(
    kind: dict[str, Any], scale: tuple[float, float], exact: bool
) -> None:
    module = Resize(scale_factor=scale, recompute_scale_factor=exact or None, **kind)
    assert resized(module, torch.randn(1, 2, 7, 10, dtype=torch.float64))[0] == 1


def test_float32_keeps_torchs_own_weights() -> None:
    module = Resize(size=(80, 75), mode="bicubic", align_corners=True)
    assert resized(module, torch.randn(1, 3, 56, 61), tolerance=2e-6)[0] == 1


def test_a_resize_to_its_own_size_needs_no_matrix() -> None:
    module = Resize(size=(5, 9), mode="bicubic", align_corners=True)
    program = resized(module, torch.randn(1, 2, 5, 6, dtype=torch.float64))[1]
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == [torch.ops.aten.linear.default]


def test_the_matrices_survive_a_file() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 1).double(), Resize(scale_factor=2, mode="bicubic"))
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    program = resized(module, x)[1]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(file).module()(x), module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "bilinear", "align_corners": True},
        {"mode": "bilinear", "align_corners": False},
        {"mode": "nearest"},
        {"mode": "area"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_what_every_runtime_has_is_left_alone(options: dict[str, Any]) -> None:
    assert resized(Resize(size=(8, 6), **options), torch.randn(1, 2, 4, 3, dtype=torch.float64))[0] == 0


@pytest.mark.parametrize(("old", "new"), [((2, 2), (3, 1)), ((3, 1), (5, 4))])
def test_an_antialiased_resize_from_or_to_one_column_stays(old: tuple[int, int], new: tuple[int, int]) -> None:
    module = Resize(size=new, mode="bicubic", align_corners=False, antialias=True)
    assert resized(module, torch.randn(1, 2, *old, dtype=torch.float64))[0] == 0
