"""A rewrite: an exact rule on a captured program. A file of toolkit/rewrites/ exports one as REWRITE."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from acmix.toolkit import catalog

if TYPE_CHECKING:
    from torch.export import ExportedProgram

ROUNDS = 8
"""One rule's result may be another's precondition: the rules go round until none applies, so often at the most."""


class Rewrite(Protocol):
    """One rule: what it matches, what it claims, and the change itself."""

    @property
    def name(self) -> str: ...
    @property
    def claim(self) -> str:
        """'exact', or a bound on the error."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets that it helps; empty when it helps, or costs nothing, on every one."""

    def apply(self, program: ExportedProgram) -> int:
        """Change the program in place wherever the rule's precondition holds; how often it did."""


@dataclass(frozen=True)
class AppliedRewrite:
    """One line of the manifest: a rule that changed the program, and in how many places."""

    name: str
    claim: str
    times: int


def load_rewrites(target: str | None = None) -> tuple[Rewrite, ...]:
    """Every rule, or those that are for a target, in the order of the file names."""
    rules: list[Rewrite] = [
        importlib.import_module(f"acmix.toolkit.rewrites.{stem}").REWRITE for stem in catalog.stems("toolkit.rewrites")
    ]
    return tuple(rule for rule in rules if target is None or not rule.targets or target in rule.targets)


def applications(program: ExportedProgram, target: str | None = None) -> Iterator[tuple[Rewrite, int]]:
    """Apply the rules that are for a target (None: all), in place; each rule with what it changed, as it is done."""
    rules = load_rewrites(target)
    for _ in range(ROUNDS):
        changed = 0
        for rule in rules:
            if times := rule.apply(program):
                changed += times
                yield rule, times
        if not changed:
            return


def rewrite(program: ExportedProgram, target: str | None = None) -> tuple[AppliedRewrite, ...]:
    """Apply the rules that are for a target (None: all) to the program, in place; the ones that changed something."""
    times: Counter[Rewrite] = Counter()
    for rule, changes in applications(program, target):
        times[rule] += changes
    return tuple(
        AppliedRewrite(rule.name, rule.claim, n) for rule, n in sorted(times.items(), key=lambda item: item[0].name)
    )
