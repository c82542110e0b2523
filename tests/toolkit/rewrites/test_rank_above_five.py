"""Chains of views and permutations through high ranks: bit for bit by low ones, in few permutations."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.toolkit.rewrites.rank_above_five import REWRITE


class Moving(nn.Module):
    """Any function of one tensor."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def moved(function: Callable[[Tensor], Tensor], *shape: int) -> tuple[int, ExportedProgram]:
    x = torch.randn(shape, dtype=torch.float64)
    program = torch.export.export(Moving(function), (x.clone(),))
    times = REWRITE.apply(program)
    program.validate()
    assert torch.equal(program.module()(x.clone()), function(x.clone()))
    assert REWRITE.apply(program) == 0
    return times, program


def permutations(program: ExportedProgram) -> int:
    return sum(node.target is torch.ops.aten.permute.default for node in program.graph.nodes)


def highest_rank(program: ExportedProgram) -> int:
    return max(node.meta["val"].dim() for node in program.graph.nodes if node.op == "call_function")


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=6, max_size=8),
    order=st.randoms(use_true_random=False),
    joined_before=st.integers(1, 5),
    joined_after=st.integers(1, 5),
)
def test_any_permutation_of_high_rank_is_some_of_low_rank(
    sizes: list[int], order: object, joined_before: int, joined_after: int
) -> None:
    axes = list(range(len(sizes)))
    order.shuffle(axes)  # type: ignore[attr-defined]
    turned = [sizes[i] for i in axes]
    before = [*sizes[: joined_before - 1], math.prod(sizes[joined_before - 1 :])]
    after = [*turned[: joined_after - 1], math.prod(turned[joined_after - 1 :])]
    times, program = moved(lambda x: x.reshape(sizes).permute(axes).contiguous().view(after), *before)
    assert times == 1
    assert highest_rank(program) <= 5


CHAINS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], int]] = {
    "Swin's windows": (
        lambda x: x.view(2, 3, 4, 3, 4, 5).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, 5),
        (2, 12, 12, 5),
        1,
    ),
    "and back": (
        lambda x: x.view(2, 3, 3, 4, 4, 5).permute(0, 1, 3, 2, 4, 5).contiguous().view(2, 12, 12, -1),
        (18, 16, 5),
        1,
    ),
    "windows of an NCHW image": (
        lambda x: x.reshape(2, 5, 3, 4, 3, 4).permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(2, 3).flatten(0, 1),
        (2, 5, 12, 12),
        2,
    ),
    "transposes in place of a permutation": (
        lambda x: x.unflatten(2, (3, 4)).unflatten(4, (3, 4)).transpose(3, 4).reshape(2, 5, 9, 16),
        (2, 5, 12, 12),
        1,
    ),
    "patches by Tensor.unfold": (
        lambda x: x.unfold(2, 4, 4).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5).reshape(2, 12, 60),
        (2, 5, 12, 12),
        2,
    ),
    "patches of a line by Tensor.unfold": (lambda x: x.unfold(1, 4, 4).mT.flatten(1), (3, 12), 1),
    "views that cut across the axes": (
        lambda x: x.reshape(2, 2, 4, 2, 6, 2, 6).permute(6, 0, 4, 2, 5, 1, 3).reshape(9, -1),
        (4, 9, 64),
        4,
    ),
    "no permutation at all": (lambda x: x.view(1, 2, 2, 3, 2, 2).reshape(4, 12), (4, 12), 0),
}


@pytest.mark.parametrize(("function", "shape", "most"), CHAINS.values(), ids=CHAINS)
def test_known_chains_take_few_permutations(
    function: Callable[[Tensor], Tensor], shape: tuple[int, ...], most: int
) -> None:
    times, program = moved(function, *shape)
    assert times == 1
    assert permutations(program) <= most
    assert highest_rank(program) <= 5


def read_inside(x: Tensor) -> Tensor:
    windows = x.view(2, 3, 4, 3, 4, 5).permute(0, 1, 3, 2, 4, 5)
    return windows.reshape(-1, 16, 5) * windows.amax()


def test_a_chain_whose_middle_is_read_elsewhere_is_rebuilt_beside_it() -> None:
    assert moved(read_inside, 2, 12, 12, 5)[0] == 1


def written_inside(x: Tensor) -> Tensor:
    x = x + 1
    windows = x.view(2, 3, 4, 3, 4, 5).permute(0, 1, 3, 2, 4, 5)
    x.mul_(2)
    return windows.reshape(-1, 16, 5)


LEFT: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "rank five": (lambda x: x.view(2, 3, 4, 3, 20).transpose(2, 3).reshape(-1, 16, 5), (2, 12, 12, 5)),
    "an operator in between": (
        lambda x: x.view(2, 3, 4, 3, 4, 5).softmax(4).transpose(2, 3).reshape(2, -1),
        (2, 12, 12, 5),
    ),
    "pieces that overlap": (lambda x: x.unfold(1, 4, 2), (2, 12)),
    "an input of rank six": (lambda x: x.transpose(0, 1).reshape(2, -1), (2, 2, 2, 2, 2, 2)),
    "memory that is written": (written_inside, (2, 12, 12, 5)),
    "a view across factors in the middle": (
        lambda x: x.view(2, 3, 2, 3, 2, 3).transpose(0, 5).reshape(2, 2, 3, 1, 1, 18).transpose(0, 5).reshape(-1),
        (6, 6, 6),
    ),
}


@pytest.mark.parametrize(("function", "shape"), LEFT.values(), ids=LEFT)
def test_what_does_not_fit_the_rule_is_left_alone(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    assert moved(function, *shape)[0] == 0


def test_the_rewritten_program_survives_a_file() -> None:
    function, shape, _ = CHAINS["windows of an NCHW image"]
    program = moved(function, *shape)[1]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    x = torch.randn(shape, dtype=torch.float64)
    assert torch.equal(torch.export.load(file).module()(x), function(x))


def test_an_activation_in_place_behind_the_chain_does_not_stop_it() -> None:
    class Activated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen = (x * 2).view(1, 2, 2, 3, 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(2, 6, 8)
            return torch.relu_(seen)

    x = torch.randn(2, 6, 8, dtype=torch.float64)
    program = torch.export.export(Activated(), (x,))
    assert REWRITE.apply(program) == 1
    program.validate()
    assert torch.equal(program.module()(x), Activated()(x))
