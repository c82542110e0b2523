"""What --model means where it is adaptive: cascade:..., or a name of an ADAPTIVE table of toolkit/models/."""

from __future__ import annotations

import ast
import functools
import importlib

from acmix.toolkit import catalog
from acmix.toolkit.adaptive.cascade import cascade, is_cascade
from acmix.toolkit.adaptive.spec import AdaptiveSpec
from acmix.toolkit.source import UNROLLED

NOT_OF_THE_ZOO = (".py", ".pt2")


@functools.cache
def adaptive_names() -> dict[str, str]:
    """The adaptive models of the zoo and their families, read from the syntax trees: torch is not imported."""
    names = {}
    for stem in catalog.stems("toolkit.models"):
        path = catalog.folder("toolkit.models") / f"{stem}.py"
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and statement.target.id == "ADAPTIVE"
                and isinstance(statement.value, ast.Dict)
            ):
                names.update({str(k.value): stem for k in statement.value.keys if isinstance(k, ast.Constant)})
    return names


def names_adaptive(reference: str) -> bool:
    """Whether --model names an adaptive model."""
    return is_cascade(reference) or reference in adaptive_names()


def is_of_zoo(reference: str) -> bool:
    """Whether an adaptive model, or the networks of one that is unrolled, are the catalog's and no user's file."""
    inner = reference.removeprefix(UNROLLED)
    return names_adaptive(inner) and inner.count(":") <= 1 and not any(part in inner for part in NOT_OF_THE_ZOO)


def find_adaptive(reference: str, imagenet: bool = False) -> AdaptiveSpec:
    """The adaptive model that --model names; raises UsageError for a cascade that cannot be.

    imagenet: networks of a cascade without a preprocessing of their own get ImageNet's.
    """
    if is_cascade(reference):
        return cascade(reference, imagenet)
    names = adaptive_names()
    if reference not in names:
        raise catalog.unknown("adaptive model", reference, names, "models")
    module = importlib.import_module(f"acmix.toolkit.models.{names[reference]}")
    spec: AdaptiveSpec = module.ADAPTIVE[reference]
    return spec
