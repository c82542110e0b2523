"""GELU in every spelling: found, equal in float64, and nothing else taken for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from acmix.toolkit.rewrites import tanh_gelu
from acmix.toolkit.rewrites.gelu import REWRITE

Formula = Callable[[Tensor], Tensor]
RATE = math.sqrt(2 / math.pi)

ERF: dict[str, Formula] = {
    "textbook": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "timm": lambda x: x * 0.5 * (1.0 + torch.erf(x * 0.7071067811865476)),
    "cdf apart": lambda x: x * (0.5 * (1 + torch.erf(x / 1.4142135623730951))),
    "halves": lambda x: (0.5 + torch.erf(x * 0.5**0.5) * 0.5) * x,
    "divided": lambda x: x * (torch.erf(x / math.sqrt(2)) + 1) / 2,
    "multiplied out": lambda x: 0.5 * x + 0.5 * x * torch.erf(x / math.sqrt(2)),
}
TANH: dict[str, Formula] = {
    "BERT": lambda x: 0.5 * x * (1 + torch.tanh(RATE * (x + 0.044715 * torch.pow(x, 3.0)))),
    "power operator": lambda x: x * 0.5 * (1 + torch.tanh(RATE * (x + 0.044715 * x**3))),
    "NeoX": lambda x: x * 0.5 * (1.0 + torch.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x))),
    "products": lambda x: x * 0.5 * (1.0 + torch.tanh(x * (RATE + RATE * 0.044715 * x * x))),
}
OTHERS: dict[str, Formula] = {
    "sigmoid GELU": lambda x: x * torch.sigmoid(1.702 * x),
    "rough constant": lambda x: 0.5 * x * (1 + torch.erf(x / 1.41421)),
    "another cubic": lambda x: 0.5 * x * (1 + torch.tanh(RATE * (x + 0.04471 * x**3))),
    "no half": lambda x: x * (1 + torch.erf(x / math.sqrt(2))),
    "no one": lambda x: 0.5 * x * torch.erf(x / math.sqrt(2)),
    "two inputs": lambda x: 0.5 * x.flip(1) * (1 + torch.erf(x / math.sqrt(2))),
}


class Apply(nn.Module):
    def __init__(self, formula: Formula) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x * 2) - 1


def applied(formula: Formula) -> list[object]:
    """The kinds of GELU that the rule made."""
    module, x = Apply(formula), torch.randn(2, 3, 40, dtype=torch.float64) * 2
    program = torch.export.export(module, (x,))
    times = REWRITE.apply(program)
    program.validate()
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-12, atol=1e-14)
    assert REWRITE.apply(program) == 0
    found = [node for node in program.graph.nodes if node.target is torch.ops.aten.gelu.default]
    assert len(found) == times
    return [node.kwargs["approximate"] for node in found]


@pytest.mark.parametrize("name", ERF)
def test_every_spelling_by_erf_is_found(name: str) -> None:
    assert applied(ERF[name]) == ["none"]


@pytest.mark.parametrize("name", TANH)
def test_every_spelling_by_tanh_is_found(name: str) -> None:
    assert applied(TANH[name]) == ["tanh"]


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_gelu_is_left_alone(name: str) -> None:
    assert applied(OTHERS[name]) == []


@pytest.mark.parametrize("name", TANH)
def test_the_rule_that_spells_the_tanh_gelu_never_undoes_this_one(name: str) -> None:
    module, x = Apply(TANH[name]), torch.randn(2, 3, 40, dtype=torch.float64)
    program = torch.export.export(module, (x,))
    assert [REWRITE.apply(program), tanh_gelu.REWRITE.apply(program)] == [1, 1]
    assert [REWRITE.apply(program), tanh_gelu.REWRITE.apply(program)] == [0, 0]
    program.validate()
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-12, atol=1e-14)


def test_a_formula_of_integers_is_left_alone() -> None:
    program = torch.export.export(Apply(ERF["textbook"]), (torch.arange(6),))
    assert REWRITE.apply(program) == 0


def test_an_intermediate_that_is_read_elsewhere_stays() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            cdf = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
            return x * cdf, cdf

    module, x = Both(), torch.randn(2, 9, dtype=torch.float64)
    program = torch.export.export(module, (x,))
    assert REWRITE.apply(program) == 1
    program.validate()
    for found, wanted in zip(program.module()(x), module(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
