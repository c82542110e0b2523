"""What --model means where it is adaptive: cascade:..., a name of the zoo's ADAPTIVE tables, a user's own."""

from __future__ import annotations

import ast
import functools
import importlib
from dataclasses import replace

from acmix.toolkit import catalog
from acmix.toolkit.adaptive.cascade import PREFIX, cascade, is_cascade
from acmix.toolkit.adaptive.spec import AdaptiveSpec, check_spec
from acmix.toolkit.errors import UsageError
from acmix.toolkit.source import UNROLLED, import_source

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
    return is_cascade(reference) or reference in adaptive_names() or _of_a_user(reference) is not None


def _of_a_user(reference: str) -> AdaptiveSpec | None:
    """The AdaptiveSpec that file.py:NAME or package.module:NAME holds; None where it is something else or nothing.

    Raises UsageError when the file is not there or fails.
    """
    if reference.startswith(UNROLLED):
        return None
    module, _, attribute = reference.rpartition(":")
    found = getattr(import_source(module), attribute, None) if module else None
    return replace(found, reference=reference) if isinstance(found, AdaptiveSpec) else None


def is_of_zoo(reference: str) -> bool:
    """Whether an adaptive model, or the networks of one that is unrolled, are the catalog's and no user's file."""
    inner = reference.removeprefix(UNROLLED)
    # Told by the words alone: asking what a user's file holds would run it.
    of_users = any(part in inner for part in NOT_OF_THE_ZOO) or ":" in inner.removeprefix(PREFIX)
    return not of_users and (is_cascade(inner) or inner in adaptive_names())


def find_adaptive(reference: str, imagenet: bool = False) -> AdaptiveSpec:
    """The adaptive model that --model names; raises UsageError for a cascade or stages that cannot be.

    imagenet: networks of a cascade without a preprocessing of their own get ImageNet's.
    """
    if is_cascade(reference):
        return cascade(reference, imagenet)
    if (own := _of_a_user(reference)) is not None:
        check_spec(own)
        return own
    if ":" in reference:
        raise UsageError(f"{reference} is no adaptive model.\nName an AdaptiveSpec of that file: docs/adaptive.md.")
    names = adaptive_names()
    if reference not in names:
        raise catalog.unknown("adaptive model", reference, names, "models")
    module = importlib.import_module(f"acmix.toolkit.models.{names[reference]}")
    spec: AdaptiveSpec = module.ADAPTIVE[reference]
    return spec
