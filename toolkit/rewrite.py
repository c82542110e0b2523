"""A rewrite: an exact rule on a captured program. A file of toolkit/rewrites/ exports one as REWRITE."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from acmix.toolkit import catalog

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class Rewrite(Protocol):
    """One rule: what it matches, what it claims, and the change itself."""

    @property
    def name(self) -> str: ...
    @property
    def claim(self) -> str:
        """'exact', or a bound on the error."""

    def apply(self, program: ExportedProgram) -> int:
        """Change the program in place wherever the rule's precondition holds; how often it did."""


@dataclass(frozen=True)
class AppliedRewrite:
    """One line of the manifest: a rule that changed the program, and in how many places."""

    name: str
    claim: str
    times: int


def load_rewrites() -> tuple[Rewrite, ...]:
    """Every rule, in the order of the file names."""
    return tuple(
        importlib.import_module(f"acmix.toolkit.rewrites.{stem}").REWRITE for stem in catalog.stems("toolkit.rewrites")
    )


def rewrite(program: ExportedProgram) -> tuple[AppliedRewrite, ...]:
    """Apply every rule to the program, in place; the ones that changed something."""
    applied = ((rule, rule.apply(program)) for rule in load_rewrites())
    return tuple(AppliedRewrite(rule.name, rule.claim, times) for rule, times in applied if times)
