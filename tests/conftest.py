"""What every room's tests share: the tiny network, exported once a run for each precision."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from acmix.apps.requests import ExportFlags, export_request
from acmix.toolkit import catalog, pipeline
from acmix.toolkit.artifact import Artifact

# Before torch loads: OpenMP threads that spin while they wait starve the runtimes under test.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).parent.parent
TINY = f"{ROOT / 'tests' / 'tiny_net.py'}:make_net"
PHOTOS = ROOT.parent / "shared" / "data" / "imagenet_sample"


def targets_of(precision: str) -> list[str]:
    """The targets that take a recipe with their default options."""
    targets = map(catalog.load_target, catalog.stems("targets"))
    return [t.name for t in targets if t.refuses(catalog.load_recipe(precision), t.options()) is None]


def no_progress(target: str, stage: pipeline.Stage, seconds: float) -> None:
    """Nobody watches."""


@pytest.fixture(scope="session")
def tiny() -> str:
    """--model for the tiny network."""
    return TINY


@pytest.fixture(scope="session")
def photos() -> Path:
    """500 labelled photos, or a skip."""
    if not PHOTOS.is_dir():
        pytest.skip(f"the labelled photos are not here: {PHOTOS.relative_to(ROOT.parent)}")
    return PHOTOS


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Artifact]]:
    """The tiny network at a precision, on every target that takes it: name to artifact. Do not write into these."""

    @cache
    def export(precision: str) -> dict[str, Artifact]:
        recipe = catalog.load_recipe(precision)
        flags = ExportFlags(
            model=TINY,
            target=",".join(targets_of(precision)),
            precision=precision,
            inputs=("1x3x32x32",),
            preprocess="imagenet",
            out=tmp_path_factory.mktemp("exported"),
            calibration="builtin" if recipe.needs_ranges else None,
        )
        outcomes = pipeline.export(export_request(flags, {}), no_progress)
        assert [o.error for o in outcomes] == [""] * len(outcomes)
        return {o.target: o.artifact for o in outcomes if o.artifact is not None}

    return export
