"""Hard-swish and hard-sigmoid in every spelling: found, equal in float64, and nothing else taken for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrites.hard_swish import REWRITE

ATEN = torch.ops.aten
Formula = Callable[[Tensor], Tensor]

SWISHES: dict[str, Formula] = {
    "paper": lambda x: x * F.relu6(x + 3) / 6,
    "gate apart": lambda x: x * (F.relu6(x + 3) / 6),
    "factor": lambda x: x * (F.relu6(x + 3) * (1 / 6)),
    "clamp": lambda x: x * torch.clamp(x + 3, 0, 6) / 6,
    "in place": lambda x: x * F.relu6(x + 3.0, inplace=True) / 6.0,
    "hardtanh": lambda x: x * F.hardtanh(x + 3, 0.0, 6.0) / 6.0,
    "unit clamp": lambda x: torch.clamp(x / 6 + 0.5, 0, 1) * x,
    "hardsigmoid": lambda x: x * F.hardsigmoid(x),
}
SIGMOIDS: dict[str, Formula] = {
    "paper": lambda x: F.relu6(x + 3) / 6,
    "factor": lambda x: F.relu6(3 + x) * 0.16666666666666666,
    "clamp": lambda x: (x + 3).clamp(0, 6).div(6),
    "hardtanh": lambda x: F.hardtanh(3.0 + x, 0.0, 6.0) / 6,
    "scaled inside": lambda x: (6 * torch.clamp(0.5 + x / 6, 0, 1)) / 6,
}
OTHERS: dict[str, Formula] = {
    "steeper": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1) * x,
    "other bounds": lambda x: x * torch.clamp(x + 3, 0, 5) / 6,
    "other offset": lambda x: x * F.relu6(x + 2) / 6,
    "another input": lambda x: x.flip(1) * F.relu6(x + 2.5) / 6,
    "one bound": lambda x: x * torch.clamp(x + 3, min=0) / 6,
}


class Apply(nn.Module):
    def __init__(self, formula: Formula) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x * 4) - 1


def applied(formula: Formula, x: Tensor) -> list[str]:
    """What the rule made, after checking that it is the same function."""
    module = Apply(formula)
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-12, atol=1e-14)
    assert REWRITE.apply(program) == 0
    targets = [node.target for node in program.graph.nodes]
    left = [t for t in targets if t in (ATEN.relu6.default, ATEN.clamp.default, ATEN.hardtanh.default)]
    assert not times or not left
    return [str(t) for t in targets if t in (ATEN.hardswish.default, ATEN.hardsigmoid.default)] if times else []


@pytest.mark.parametrize("name", SWISHES)
def test_every_spelling_of_hard_swish_is_found(name: str) -> None:
    assert applied(SWISHES[name], torch.randn(2, 3, 30, dtype=torch.float64)) == ["aten.hardswish.default"]


@pytest.mark.parametrize("name", SIGMOIDS)
def test_every_spelling_of_hard_sigmoid_is_found(name: str) -> None:
    assert applied(SIGMOIDS[name], torch.randn(2, 3, 30, dtype=torch.float64)) == ["aten.hardsigmoid.default"]


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_neither_is_left_alone(name: str) -> None:
    assert applied(OTHERS[name], torch.randn(2, 3, 30, dtype=torch.float64)) == []


@settings(max_examples=20, deadline=None)
@given(high=st.floats(0.1, 50), shape=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_the_scale_may_stand_anywhere(high: float, shape: list[int]) -> None:
    found = applied(
        lambda x: x * torch.clamp(x * (high / 6) + high / 2, 0.0, high) * (1 / high),
        torch.randn(shape, dtype=torch.float64),
    )
    assert found == ["aten.hardswish.default"]


def test_a_gate_on_another_tensor_is_a_hard_sigmoid() -> None:
    found = applied(lambda x: x.flip(1) * (F.relu6(x + 3) / 6), torch.randn(2, 3, 30, dtype=torch.float64))
    assert found == ["aten.hardsigmoid.default"]
