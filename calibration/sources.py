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
WITHOUT_PHOTOS = {
    "--calibration": "Give arrays instead: --calibration samples.npz, or file.py:function.",
    "--photos": "Leave it out: the probes prove the file all the same.",
    "--data": "Leave it out, and take --precision w8a8 where mixed was asked for.",
}
"""What to do with a model that photos cannot be fed to, by the flag that named them."""
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
        crops = builtin_photos(for_photos("--calibration builtin", spec_inputs, preprocess), seed)
        return crops.pick(spread(len(crops), limit))
    if path.suffix in (".npz", ".npy"):
        return read_array_file(path, spec_inputs, preprocess, limit)
    if reference.rpartition(":")[0].endswith(".py"):
        return read_function(reference, spec_inputs, preprocess, limit, seed)
    if path.is_dir():
        made = for_photos(f"--calibration {reference}", spec_inputs, preprocess)
        return read_photo_folder(path, made).first(limit)
    raise UsageError(f"--calibration {reference!r} names nothing that is there.\nGive {KINDS}.")


def for_photos(
    flag: str,
    inputs: tuple[TensorSpec, ...],
    preprocess: Preprocess | None,
    further: tuple[Preprocess, ...] = (),
) -> Preprocess:
    """The preprocessing, once it is sure that photos can become the input. flag: as it was typed, with its value.

    Raises UsageError where there is none, or where what it makes is not the model's one input.
    further: preprocessings of the inputs behind the first, where each sees the photo in a way of its own.
    """
    if preprocess is None:
        raise UsageError(
            f"{flag}: the model has no preprocessing, so photos cannot become its input.\n"
            "Name one: --preprocess imagenet, or a TOML file (see docs/models.md)."
        )
    made = [((1, 3, *way.crop), "float32") for way in (preprocess, *further)]
    if [(spec.shape, spec.dtype) for spec in inputs] != made:
        taken = ", ".join(f"{'x'.join(map(str, spec.shape))} of {spec.dtype}" for spec in inputs)
        raise UsageError(
            f"{flag}: photos become one input 1x3x{preprocess.crop[0]}x{preprocess.crop[1]} of float32, and the model "
            f"takes {taken}.\n{WITHOUT_PHOTOS[flag.split()[0]]}"
        )
    return preprocess
