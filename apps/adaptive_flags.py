"""What adaptive models make of flags: what they cannot use is refused, photos that find ranges are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from acmix.calibration.checks import check_samples
from acmix.calibration.photos import read_photo_folder
from acmix.toolkit.adaptive.export import RANGE_PHOTOS
from acmix.toolkit.adaptive.find import find_adaptive
from acmix.toolkit.adaptive.unrolled import find_unrolled
from acmix.toolkit.errors import UsageError
from acmix.toolkit.source import UNROLLED
from acmix.toolkit.spec import TensorSpec

if TYPE_CHECKING:
    from acmix.apps.requests import ExportFlags
    from acmix.toolkit.recipe import Recipe
    from acmix.toolkit.spec import Preprocess

OF_MIXED = "it judges --precision mixed, which is for single models"
EVERY = "its networks are artifacts of their own, and `acmix inspect` lists the operators of each"
OVER_PHOTOS = "an adaptive artifact is measured on this host, once on each photo"


def refuse_given(flags: Mapping[str, object], reason: str) -> None:
    """Raise UsageError for the first flag that was given: None and False stand for flags that were not."""
    for flag, value in flags.items():
        if value is not None and value is not False:
            raise UsageError(f"{flag} has no meaning for an adaptive model: {reason}.\nLeave it out.")


def refuse_export_flags(flags: ExportFlags, recipe: Recipe) -> None:
    """Raise UsageError for what belongs to the calibration of single models."""
    judged = {"--max-drop": flags.max_drop, "--data": flags.data, "--data-count": flags.data_count}
    refuse_given(judged, OF_MIXED)
    ranges = {"--calibration": flags.calibration, "--calibration-count": flags.calibration_count}
    refuse_given(ranges, f"ranges are found on up to {RANGE_PHOTOS} of --photos")
    if not recipe.needs_ranges:
        refuse_given({"--accept-calibration": flags.accept_calibration}, f"{recipe.name} finds no ranges")


def checked_ranges(flags: ExportFlags, preprocess: Preprocess) -> tuple[str, ...]:
    """What is to be said of --photos as samples that find ranges, seen as the first stage sees them.

    Raises UsageError for photos that are unfit, unless --accept-calibration was given.
    """
    assert flags.photos is not None
    samples = read_photo_folder(flags.photos, preprocess).first(RANGE_PHOTOS)
    image = TensorSpec("image", (1, 3, *preprocess.crop), layout="nchw")
    findings = check_samples(samples, (image,), preprocess)
    refused = [finding.sentence for finding in findings if finding.severity == "refuse"]
    if refused and not flags.accept_calibration:
        raise UsageError(
            f"--photos {flags.photos} is not fit to find ranges on: {' '.join(refused)}\n"
            "Give photos like those that the model will see; --accept-calibration goes on all the same."
        )
    return tuple(finding.sentence for finding in findings)


def unrolled_flags(flags: ExportFlags, exits: str | None, shared_weights: bool = False) -> ExportFlags:
    """The flags of an ordinary export of all stages as one network; raises UsageError where there is none to make."""
    if exits is not None:
        raise UsageError(
            f"--exits {exits}: an unrolled graph runs every stage and takes no exit.\nLeave one of them out."
        )
    if shared_weights:
        raise UsageError(
            "--shared-weights joins the files of several networks: an unrolled graph is one already.\n"
            "Leave one of them out."
        )
    source = find_unrolled(f"{UNROLLED}{flags.model}")
    if flags.preprocess not in (None, "imagenet"):
        raise UsageError("--preprocess of an adaptive model is 'imagenet' or nothing: each stage has its own size.")
    # Networks without a preprocessing of their own are refused here, unless the flag was given.
    find_adaptive(flags.model, flags.preprocess == "imagenet")
    return replace(flags, model=source.reference, preprocess=None)
