"""What an export is asked for and what becomes of it; refusals before any work."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acmix.toolkit import catalog
from acmix.toolkit.adaptive.unrolled import networks_of
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.errors import UsageError
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.samples import Samples
from acmix.toolkit.source import ModelSource

if TYPE_CHECKING:
    from acmix.toolkit.quantized import Calibrator


@dataclass(frozen=True)
class TargetRequest:
    """One target with its own options."""

    name: str
    options: Any


@dataclass(frozen=True)
class ExportRequest:
    """Everything that --flags say, checked. kept_float: layers, by node, that a quantized file computes in float."""

    source: ModelSource
    recipe: Recipe
    targets: tuple[TargetRequest, ...]
    out: Path
    weights: str | None = None
    seed: int = 0
    labels: tuple[str, ...] = ()
    photos: Samples | None = None
    overwrite: bool = False
    snr_db_overrides: dict[str, float] = field(default_factory=dict)
    require_full_delegation: bool = False
    calibrator: Calibrator | None = None
    kept_float: tuple[str, ...] = ()

    def folder_name(self, target: TargetRequest) -> str:
        """The artifact's: model, target and precision."""
        return f"{self.source.spec.name}-{target.name}-{self.recipe.name}"

    @property
    def takes_image(self) -> bool:
        """Whether a target was asked for pixels in place of a normalised input."""
        return any(getattr(target.options, "image_input", False) for target in self.targets)


@dataclass(frozen=True)
class Outcome:
    """What became of one target: an artifact, or an error."""

    target: str
    artifact: Artifact | None = None
    error: str = ""
    exit_code: int = 0


def has_random_weights(request: ExportRequest) -> bool:
    """Whether the export will use weights that classify nothing."""
    if request.weights == "random":
        return True
    networks = networks_of(request.source)
    return request.weights is None and any(n.kind == "zoo" and n.spec.weights is None for n in networks)


def refuse_early(request: ExportRequest) -> None:
    """Raise UsageError for combinations and folders that cannot work."""
    if request.recipe.is_quantized and (float_only := request.source.spec.float_only):
        raise UsageError(f"{request.source.reference} cannot be {request.recipe.name}: {float_only}.")
    if request.takes_image and request.source.spec.further_preprocess:
        raise UsageError(
            f"--image-input bakes one preprocessing in, and {request.source.reference} looks at the photo in "
            f"{1 + len(request.source.spec.further_preprocess)} ways.\nLeave it out."
        )
    for target in request.targets:
        catalog.require_packages(target.name)
        if reason := catalog.load_target(target.name).refuses(request.recipe, target.options):
            raise UsageError(f"target {target.name!r}: {reason}")
        folder = request.out / request.folder_name(target)
        if folder.exists() and not request.overwrite:
            raise UsageError(f"{folder} exists already.\nAdd --overwrite to replace it, or choose another --out.")
    parent = next(p for p in (request.out, *request.out.absolute().parents) if p.exists())
    if not parent.is_dir():
        raise UsageError(f"--out {request.out} cannot be made: {parent} is a file.")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UsageError(f"cannot write to {parent}: {error.strerror}.\nChoose another folder: --out DIR.") from error
