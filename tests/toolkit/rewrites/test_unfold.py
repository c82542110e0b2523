"""Unfold: bit for bit against torch's own, for every kernel, stride, dilation and padding; sums under weights too."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.toolkit.rewrites.unfold import REWRITE

PLAIN = {"reshape", "slice", "cat", "constant_pad_nd", "permute"}


class Unfolding(nn.Module):
    """Any function of images and weights."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def rewritten(function: Callable[..., Tensor], *inputs: Tensor, rtol: float = 0) -> ExportedProgram:
    program = torch.export.export(Unfolding(function), inputs)
    assert REWRITE.apply(program) == 1
    program.validate()
    torch.testing.assert_close(program.module()(*inputs), function(*inputs), rtol=rtol, atol=rtol)
    assert REWRITE.apply(program) == 0
    return program


def operators(program: ExportedProgram) -> set[str]:
    return {node.target.__name__.split(".")[0] for node in program.graph.nodes if node.op == "call_function"}


def highest_rank(program: ExportedProgram) -> int:
    return max(n.meta["val"].dim() for n in program.graph.nodes if n.op == "call_function")


def image(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(3, 11), st.integers(3, 11)),
    batch=st.sampled_from([(1, 1), (2, 3), (4,)]),
)
def test_every_unfold_is_slices_of_stride_one_in_the_same_order(
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    stride: tuple[int, int],
    size: tuple[int, int],
    batch: tuple[int, ...],
) -> None:
    spans = (d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    assume(all(n + 2 * p >= span for n, p, span in zip(size, padding, spans, strict=True)))
    program = rewritten(lambda x: F.unfold(x, kernel, dilation, padding, stride), image(*batch, *size))
    assert operators(program) <= PLAIN
    assert highest_rank(program) <= 4
    assert all(len(n.args) < 5 or n.args[4] == 1 for n in program.graph.nodes if "slice" in n.name)


@pytest.mark.parametrize("size", [(8, 12), (9, 14)], ids=["patches that fit", "a rest that is dropped"])
def test_patches_side_by_side_are_two_permutations(size: tuple[int, int]) -> None:
    program = rewritten(lambda x: F.unfold(x, 4, stride=4), image(2, 3, *size))
    assert [n.name.split("_")[0] for n in program.graph.nodes if n.op == "call_function"].count("permute") == 2
    assert "cat" not in operators(program)


def involution(x: Tensor, weights: Tensor, groups: int, kernel: int, stride: int = 1) -> Tensor:
    batch, channels = x.shape[:2]
    patches = F.unfold(x, kernel, padding=kernel // 2, stride=stride)
    patches = patches.view(batch, groups, channels // groups, kernel**2, *weights.shape[-2:])
    return (weights.unsqueeze(2) * patches).sum(3).view(batch, channels, *weights.shape[-2:])


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 2),
    groups=st.integers(1, 3),
    sharing=st.integers(1, 3),
    kernel=st.sampled_from([3, 5]),
    stride=st.integers(1, 2),
)
def test_an_involution_is_slices_products_and_sums_of_low_rank(
    batch: int, groups: int, sharing: int, kernel: int, stride: int
) -> None:
    places = (-(-7 // stride), -(-6 // stride))
    weights = image(batch, groups, kernel**2, *places)
    x = image(batch, groups * sharing, 7, 6)
    program = rewritten(lambda x, w: involution(x, w, groups, kernel, stride), x, weights, rtol=1e-12)
    assert not operators(program) & {"im2col", "sum", "cat", "unsqueeze"}
    assert highest_rank(program) <= 5


CONSUMERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "LSNet: groups that share": lambda x, w: (
        F.unfold(x, 3, padding=1).view(2, 2, 3, 9, 4, 5) * w[:, :3].unsqueeze(1)
    ).sum(3),
    "one kernel for all channels": lambda x, w: (F.unfold(x, 3, padding=1).view(2, 6, 9, 4, 5) * w[:, :1]).sum(2),
    "places flattened, axis kept": lambda x, w: (
        w.flatten(3)[:, 0, None] * F.unfold(x, 3, padding=1).view(2, 6, 9, 20)
    ).sum(-2, keepdim=True),
    "a kernel for each channel": lambda x, w: (F.unfold(x, 3, padding=1).unflatten(1, (6, 9)) * w.flatten(3)).sum(2),
}


@pytest.mark.parametrize("consumer", CONSUMERS.values(), ids=CONSUMERS)
def test_a_weighted_sum_is_found_in_many_spellings(consumer: Callable[[Tensor, Tensor], Tensor]) -> None:
    program = rewritten(consumer, image(2, 6, 4, 5), image(2, 6, 9, 4, 5), rtol=1e-12)
    assert not operators(program) & {"im2col", "sum", "cat"}


def read_twice(x: Tensor, w: Tensor) -> Tensor:
    patches = F.unfold(x, 3, padding=1).view(2, 6, 9, 4, 5)
    return (patches * w).sum(2) + patches.amax(2)


OTHERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the patches are read twice": read_twice,
    "the sum is over the channels": lambda x, w: (F.unfold(x, 3, padding=1).view(2, 6, 9, 4, 5) * w).sum(1),
    "the sum is over more": lambda x, w: (F.unfold(x, 3, padding=1).view(2, 6, 9, 4, 5) * w).sum((1, 2)),
    "channels and taps are mixed": lambda x, w: (F.unfold(x, 3, padding=1).view(2, 9, 6, 4, 5) * w.mT.mT[0, 0, 0]).sum(
        1
    ),
    "x is overwritten in between": lambda x, w: overwritten(x + 1, w),
}


def overwritten(x: Tensor, w: Tensor) -> Tensor:
    patches = F.unfold(x, 3, padding=1).view(2, 6, 9, 4, 5)
    x.mul_(2)
    return (patches * w).sum(2) + x


@pytest.mark.parametrize("consumer", OTHERS.values(), ids=OTHERS)
def test_where_the_sum_does_not_fit_the_patches_are_still_built(consumer: Callable[[Tensor, Tensor], Tensor]) -> None:
    program = rewritten(consumer, image(2, 6, 4, 5), image(2, 6, 9, 4, 5), rtol=1e-12)
    assert "cat" in operators(program)
    assert "im2col" not in operators(program)


def test_an_unfold_and_a_linear_layer_survive_a_file() -> None:
    module = nn.Sequential(nn.Unfold(3, padding=1, stride=2), nn.Linear(12, 5).double())
    x = image(1, 2, 6, 8)
    program = torch.export.export(module, (x,))
    assert REWRITE.apply(program) == 1
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(file).module()(x), module(x), rtol=1e-12, atol=1e-12)
