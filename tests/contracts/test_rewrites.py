"""Every graph rule keeps its promises. Adding a rule adds its tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from acmix.toolkit import catalog
from acmix.toolkit.rewrite import Rewrite, load_rewrites, rewrite

ROOT = Path(__file__).parents[2]
RULES = {rule.name: rule for rule in load_rewrites()}


class Plain(nn.Module):
    """Nothing that any rule is for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)) * 2


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_named_like_its_file_and_says_whom_it_helps(name: str) -> None:
    rule: Rewrite = RULES[name]
    card = next(card for card in catalog.rewrite_cards() if card.name == name)
    assert card.targets == rule.targets
    assert set(rule.targets) <= set(catalog.stems("targets"))
    assert card.summary.endswith(".")
    assert rule.claim == "exact" or any(digit.isdigit() for digit in rule.claim)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_leaves_alone_what_it_is_not_for(name: str) -> None:
    program = torch.export.export(Plain().eval(), (torch.randn(1, 3, 8, 8),))
    before = str(program.graph)
    assert RULES[name].apply(program) == 0
    assert str(program.graph) == before


@pytest.mark.parametrize("name", RULES)
def test_a_rule_has_a_proof_and_a_line_of_documentation(name: str) -> None:
    assert (ROOT / "tests" / "toolkit" / "rewrites" / f"test_{name}.py").is_file()
    assert f"`{name}`" in (ROOT / "docs" / "rewrites.md").read_text(encoding="utf-8")


def test_a_target_gets_its_own_rules_and_those_of_all() -> None:
    for target in catalog.stems("targets"):
        given = {rule.name for rule in load_rewrites(target)}
        assert given == {rule.name for rule in RULES.values() if not rule.targets or target in rule.targets}


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(self.norm(x), 1, 3)


def test_the_rules_end_and_give_the_same_network() -> None:
    for target in (None, *catalog.stems("targets")):
        net = Norms().double().eval()
        x = torch.randn(1, 4, 6, 5, dtype=torch.float64)
        program = torch.export.export(net, (x,))
        applied = rewrite(program, target)
        assert applied
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-12, atol=1e-12)
        assert rewrite(program, target) == ()
