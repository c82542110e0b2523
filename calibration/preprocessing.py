"""--preprocess: a published preprocessing by name, or a TOML file of one."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import msgspec

from acmix.toolkit.errors import UsageError
from acmix.toolkit.spec import Preprocess, TensorSpec, imagenet_preprocess


def read_preprocess(text: str, inputs: tuple[TensorSpec, ...]) -> Preprocess:
    """The preprocessing that --preprocess names: 'imagenet' at the input's size, or a TOML file.

    Raises UsageError for an unknown name, a malformed file, or a crop that is not the input's size.
    """
    sizes = {(spec.shape[2], spec.shape[3]) for spec in inputs if len(spec.shape) == 4}
    if text == "imagenet":
        if len(sizes) != 1 or len(set(next(iter(sizes)))) != 1:
            raise UsageError("--preprocess imagenet needs one square image input: --input 1x3x224x224.")
        return imagenet_preprocess(next(iter(sizes))[0])
    path = Path(text)
    if not path.is_file():
        raise UsageError(f"--preprocess {text!r} is neither 'imagenet' nor a TOML file.\nSee docs/models.md.")
    try:
        preprocess = msgspec.toml.decode(path.read_bytes(), type=Preprocess)
    except (msgspec.MsgspecError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no preprocessing: {error}\nSee docs/models.md.") from error
    if sizes and preprocess.crop not in sizes:
        raise UsageError(f"{path} crops to {preprocess.crop}, but the input is {next(iter(sizes))}.")
    if not all(math.isfinite(value) for value in (*preprocess.mean, *preprocess.std)) or preprocess.resize_short < 1:
        raise UsageError(f"{path}: mean, std and resize_short are finite, and resize_short is 1 or more.")
    if any(value <= 0 for value in preprocess.std):
        raise UsageError(f"{path}: every std is above 0, in pixel units (0 to 255).")
    return preprocess
