"""--calibration: what a reference names, as samples in the network's own layout."""

from __future__ import annotations

from pathlib import Path

from acmix.calibration.arrays import read_array_file, read_function
from acmix.calibration.builtin import builtin_photos
from acmix.calibration.photos import read_photo_folder
from acmix.calibration.selection import CalibrationSamples, spread
from acmix.toolkit.errors import UsageError
from acmix.toolkit.spec import Preprocess, TensorSpec

DEFAULT_COUNT = 128
"""Samples, unless --calibration-count says otherwise."""
KINDS = "a folder of photos, a .npz or .npy file, file.py:function, or builtin"


def read_calibration(
    reference: str,
    spec_inputs: tuple[TensorSpec, ...],
    preprocess: Preprocess | None,
    limit: int = DEFAULT_COUNT,
    seed: int = 0,
) -> CalibrationSamples:
    """At most `limit` samples of a photo folder, a .npz or .npy, `file.py:function`, or `builtin`.

    seed: of the built-in crops, and of random numbers that a function draws.  Raises UsageError for a reference
    that names nothing, samples that do not fit the inputs, and photos for a model that takes none.
    """
    if limit < 1:
        raise UsageError(f"--calibration-count {limit} asks for no sample.\nGive 1 or more; the default is 128.")
    path = Path(reference)
    if reference == "builtin":
        crops = builtin_photos(_for_photos(reference, spec_inputs, preprocess), seed)
        return crops.pick(spread(len(crops), limit))
    if path.suffix in (".npz", ".npy"):
        return read_array_file(path, spec_inputs, preprocess, limit)
    if reference.rpartition(":")[0].endswith(".py"):
        return read_function(reference, spec_inputs, preprocess, limit, seed)
    if path.is_dir():
        return read_photo_folder(path, _for_photos(reference, spec_inputs, preprocess)).first(limit)
    raise UsageError(f"--calibration {reference!r} names nothing that is there.\nGive {KINDS}.")


def _for_photos(reference: str, inputs: tuple[TensorSpec, ...], preprocess: Preprocess | None) -> Preprocess:
    """The preprocessing, once it is sure that photos can become the input."""
    if preprocess is None:
        raise UsageError(
            f"--calibration {reference}: the model has no preprocessing, so photos cannot become its input.\n"
            "Name one: --preprocess imagenet, or a TOML file (see docs/models.md)."
        )
    if [spec.shape for spec in inputs] != [(1, 3, *preprocess.crop)]:
        shapes = ", ".join("x".join(map(str, spec.shape)) for spec in inputs)
        raise UsageError(
            f"--calibration {reference}: photos become one input 1x3x{preprocess.crop[0]}x{preprocess.crop[1]}, and "
            f"the model takes {shapes}.\nGive arrays instead: --calibration samples.npz, or file.py:function."
        )
    return preprocess
