"""Finds models, targets, recipes and rewrites by file name; listing them imports no torch and no converter."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from acmix.toolkit.errors import UsageError, did_you_mean
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.spec import Claims, ModelSpec
from acmix.toolkit.target import Target

DEFAULT_MODEL = "acmix_resnet26"

Room = Literal["toolkit.models", "toolkit.rewrites", "targets", "calibration.recipes"]


@dataclass(frozen=True)
class ModelCard:
    """What can be said of a model without importing torch: read from its file's syntax tree."""

    name: str
    family: str
    claims: Claims
    packaged_weights: bool


@functools.cache
def folder(room: Room) -> Path:
    """Where a room's files are, in a checkout or in site-packages."""
    found = importlib.util.find_spec(f"acmix.{room}")
    if found is None or not found.submodule_search_locations:
        raise UsageError(f"this installation of acmix has no folder {room!r}; reinstall it: pip install acmix")
    return Path(next(iter(found.submodule_search_locations)))


def stems(room: Room, suffix: str = ".py") -> tuple[str, ...]:
    """The names of a room's files, sorted."""
    return tuple(sorted(p.stem for p in folder(room).glob(f"*{suffix}") if not p.stem.startswith("_")))


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def _claims(node: ast.expr | None) -> Claims:
    if not isinstance(node, ast.Call):
        return Claims()
    return Claims(**{k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg})


def _cards(path: Path) -> Iterator[ModelCard]:
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if statement.target.id != "MODELS" or not isinstance(statement.value, ast.Dict):
            continue
        for key, value in zip(statement.value.keys, statement.value.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(value, ast.Call):
                yield ModelCard(
                    str(key.value),
                    path.stem,
                    _claims(_keyword(value, "claims")),
                    _keyword(value, "weights") is not None,
                )


@functools.cache
def model_cards() -> tuple[ModelCard, ...]:
    """Every model of the zoo, by family, then in the order of its file."""
    return tuple(card for stem in stems("toolkit.models") for card in _cards(folder("toolkit.models") / f"{stem}.py"))


@dataclass(frozen=True)
class RewriteCard:
    """What can be said of a rewrite without importing torch. targets: those it is for; empty for all."""

    name: str
    summary: str
    targets: tuple[str, ...]


@functools.cache
def rewrite_cards() -> tuple[RewriteCard, ...]:
    """Every graph rule, in the order of the file names."""
    return tuple(_rewrite_card(folder("toolkit.rewrites") / f"{stem}.py") for stem in stems("toolkit.rewrites"))


def _rewrite_card(path: Path) -> RewriteCard:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    fields = (field for rule in tree.body if isinstance(rule, ast.ClassDef) for field in rule.body)
    defaults = (f.value for f in fields if isinstance(f, ast.AnnAssign) and ast.unparse(f.target) == "targets")
    calls = (s.value for s in tree.body if isinstance(s, ast.Assign) and isinstance(s.value, ast.Call))
    given = (_keyword(call, "targets") for call in calls)
    written = next((value for value in (*given, *defaults) if value is not None), None)
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    return RewriteCard(path.stem, summary, tuple(ast.literal_eval(written)) if written is not None else ())


def unknown(kind: str, name: str, known: Iterable[str], listing: str) -> UsageError:
    """The error for a name that is not in the catalog."""
    known = list(known)
    return UsageError(
        f"no {kind} is called {name!r}.{did_you_mean(name, known)}\n`acmix list {listing}` shows all {len(known)}."
    )


def load_model(name: str) -> ModelSpec:
    """The spec of a zoo model. Imports torch and the family's file."""
    families = {card.name: card.family for card in model_cards()}
    if name not in families:
        raise unknown("model", name, families, "models")
    models = importlib.import_module(f"acmix.toolkit.models.{families[name]}").MODELS
    spec: ModelSpec = models[name]
    return spec


def check_target(name: str) -> None:
    """Raise UsageError unless `targets/<name>.py` exists."""
    if name not in stems("targets"):
        raise unknown("target", name, stems("targets"), "targets")


@functools.cache
def load_target(name: str) -> Target:
    """The target of `targets/<name>.py`."""
    check_target(name)
    target: Target = importlib.import_module(f"acmix.targets.{name}").TARGET
    return target


def missing_package(target: str) -> str | None:
    """The first distribution that a target needs and this installation lacks; None when it is complete."""
    from importlib.metadata import PackageNotFoundError, version

    for distribution in load_target(target).distributions:
        try:
            version(distribution)
        except PackageNotFoundError:
            return distribution
    return None


def require_packages(target: str) -> None:
    """Raise UsageError with the pip command when a target's extra is not installed."""
    if lacking := missing_package(target):
        raise UsageError(
            f"target {target!r} needs {lacking}, which is not installed.\nInstall it: pip install 'acmix[{target}]'"
        )


def load_recipe(name: str) -> Recipe:
    """The recipe of `calibration/recipes/<name>.toml`."""
    known = stems("calibration.recipes", ".toml")
    if name not in known:
        raise unknown("precision", name, known, "recipes")
    table: dict[str, Any] = tomllib.loads((folder("calibration.recipes") / f"{name}.toml").read_text("utf-8"))
    return msgspec.convert({"name": name, **table}, Recipe)
