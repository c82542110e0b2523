"""Reflected and repeated borders: bit for bit, narrow and wide, and nothing else is touched."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.toolkit.rewrites.reflection_pad import REWRITE

MODES = ["reflect", "replicate"]


class Pad(nn.Module):
    def __init__(self, widths: tuple[int, ...], mode: str) -> None:
        super().__init__()
        self.widths, self.mode = widths, mode

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.widths, self.mode)


def padded(module: nn.Module, x: Tensor) -> tuple[int, ExportedProgram]:
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), module(x), rtol=0, atol=0)
    assert REWRITE.apply(program) == 0
    return times, program


def operators(program: ExportedProgram) -> set[str]:
    return {node.target.__name__.split(".")[0] for node in program.graph.nodes if node.op == "call_function"}


@settings(max_examples=25, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    size=st.tuples(st.integers(9, 12), st.integers(9, 12)),
    widths=st.tuples(*[st.integers(0, 8)] * 4),
    batch=st.sampled_from([(2, 3), (3,)]),
)
def test_a_border_of_any_widths_is_slices_and_concatenations(
    mode: str, size: tuple[int, int], widths: tuple[int, ...], batch: tuple[int, ...]
) -> None:
    times, program = padded(Pad(widths, mode), torch.randn(*batch, *size, dtype=torch.float64))
    assert times == 1
    assert operators(program) <= {"slice", "cat", "clone"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("widths", "most"), [((2, 2, 1, 0), 5), ((20, 11, 2, 19), 32)])
def test_a_border_copies_the_image_once_an_axis(mode: str, widths: tuple[int, ...], most: int) -> None:
    program = padded(Pad(widths, mode), torch.randn(1, 3, 24, 21))[1]
    joined = [len(n.args[0]) for n in program.graph.nodes if n.target is torch.ops.aten.cat.default]
    assert len(joined) == 2
    assert max(joined) == most


def test_pixels_that_are_no_numbers_stay_where_they_are() -> None:
    x = torch.tensor([[[1.0, float("inf"), float("nan"), 2.0, -0.0]]])
    program = torch.export.export(Pad((3, 4), "reflect"), (x,))
    assert REWRITE.apply(program) == 1
    torch.testing.assert_close(program.module()(x), Pad((3, 4), "reflect")(x), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_line_and_a_volume_are_padded_too(mode: str) -> None:
    assert padded(Pad((2, 3), mode), torch.randn(2, 3, 5, dtype=torch.float64))[0] == 1
    assert padded(Pad((1, 0, 2, 1, 0, 3), mode), torch.randn(1, 2, 4, 5, 6, dtype=torch.float64))[0] == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_convolution_with_such_a_border_keeps_its_result_through_a_file(mode: str) -> None:
    module = nn.Conv2d(2, 3, 5, padding=2, padding_mode=mode).double()
    x = torch.randn(1, 2, 7, 6, dtype=torch.float64)
    times, program = padded(module, x)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    with torch.no_grad():
        assert times == 1
        torch.testing.assert_close(torch.export.load(file).module()(x), module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "module",
    [
        Pad((1, 1, 1, 1), "constant"),
        Pad((1, 1, 1, 1), "circular"),
        nn.ConstantPad2d(1, 3.0),
        nn.ReplicationPad2d((-1, 1, 0, 0)),
    ],
    ids=["zeros", "circular, another rule's", "a constant", "a negative width"],
)
def test_other_paddings_are_left_alone(module: nn.Module) -> None:
    assert padded(module, torch.randn(1, 2, 5, 5, dtype=torch.float64))[0] == 0
