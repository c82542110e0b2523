"""Between an app's arrays and images and a program's values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from acmix.targets.mil.arithmetic import Arithmetic
from acmix.targets.mil.call import StateReference, Value
from acmix.targets.mil.evaluate import fits
from acmix.targets.mil.interface import ArrayFeature, Feature, ImageFeature
from acmix.targets.mil.program import Function, NamedType, StateType, TensorType, TextValue, elements_of
from acmix.toolkit.errors import UsageError, did_you_mean

Array = NDArray[Any]
Output = Array | str | int | dict[str | int, float]


def values_of(function: Function, inputs: Mapping[str, Any], arithmetic: Arithmetic) -> list[Value]:
    """The function's operands in order.  Raises UsageError for what does not fit the package's description."""
    features = {feature.name: feature for feature in function.interface.inputs}
    for name in inputs:
        if name not in features:
            raise UsageError(
                f"the package has no input '{name}'.{did_you_mean(name, features)} It takes: {', '.join(features)}."
            )
    return [_value(given, features, inputs, arithmetic) for given in function.inputs]


def _value(
    given: NamedType, features: Mapping[str, Feature], inputs: Mapping[str, Any], arithmetic: Arithmetic
) -> Value:
    if isinstance(given.type, StateType):
        return StateReference(given.name)
    if not isinstance(given.type, TensorType) or given.type.dtype == "string":
        raise UsageError(f"input '{given.name}' is neither a tensor nor an image: it cannot be fed.")
    feature = features[given.name]
    if isinstance(feature, ImageFeature):
        array = _planes(feature, _required(given.name, inputs))
    elif isinstance(feature, ArrayFeature):
        array = _array(feature, inputs)
    else:
        raise UsageError(f"input '{given.name}' is a class label: it cannot be fed.")
    if given.type.shape == () and array.size == 1:
        array = array.reshape(())
    if not fits(array.shape, given.type.shape):
        raise UsageError(
            f"input '{given.name}' is {list(array.shape)} and the program takes {given.type.shape}: "
            "the package's description contradicts its program, export it again."
        )
    return arithmetic.load(array, given.type.dtype)


def _required(name: str, inputs: Mapping[str, Any]) -> Any:
    if name not in inputs:
        raise UsageError(f"the input '{name}' is missing: give an array or an image for it.")
    return inputs[name]


def _array(feature: ArrayFeature, inputs: Mapping[str, Any]) -> Array:
    if feature.optional and feature.name not in inputs:
        elements_of(feature.shape, f"the optional input '{feature.name}'")
        return np.full(feature.shape, feature.default, feature.dtype)
    array = np.asarray(_required(feature.name, inputs))
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and not feature.dtype.startswith("float")):
        raise UsageError(f"input '{feature.name}' takes {feature.dtype}, not {array.dtype}: convert it.")
    if array.shape == () and feature.shape == (1,):
        return array.reshape(1)
    if not feature.sizes.allow(array.shape, feature.shape):
        wanted = str(feature.sizes) if feature.sizes.enumerated or feature.sizes.ranges else str(list(feature.shape))
        raise UsageError(f"input '{feature.name}' takes {wanted}, not {list(array.shape)}.")
    return array


def _planes(feature: ImageFeature, picture: Any) -> Array:
    """An image as [1, C, H, W] in the package's order of colours.

    picture: a PIL image, or pixels of 0 to 255 as [H, W, C] or [1, H, W, C] (C may be left out when it is 1), always
    RGB, as Core ML's own images are: a package that wants BGR gets it.
    """
    if hasattr(picture, "convert"):
        picture = picture.convert("L" if feature.channels == 1 else "RGB")
    pixels = np.asarray(picture)
    if feature.channels == 1 and (pixels.ndim < 3 or pixels.shape[-1] != 1):
        pixels = pixels[..., None]
    if pixels.ndim == 3:
        pixels = pixels[None]
    size, own = pixels.shape[1:3], (feature.height, feature.width)
    if (
        pixels.dtype.kind not in "uif"
        or pixels.ndim != 4
        or pixels.shape[0] != 1
        or pixels.shape[3] != feature.channels
    ):
        raise UsageError(
            f"input '{feature.name}' takes an image, or pixels as [1, {own[0]}, {own[1]}, {feature.channels}], "
            f"not {pixels.dtype} {list(pixels.shape)}."
        )
    if not feature.sizes.allow(size, own):
        raise UsageError(f"input '{feature.name}' takes images of {list(own)} (height, width), not {list(size)}.")
    if feature.colours == "bgr":
        pixels = pixels[..., ::-1]
    return pixels.transpose(0, 3, 1, 2)


def outputs_of(function: Function, results: list[Value], arithmetic: Arithmetic) -> dict[str, Output]:
    """What the package describes as outputs, by name.

    Arrays have the described type, or float32 or float64 when that is what the program was evaluated in.
    """
    by_name = dict(zip(function.block.outputs, results, strict=True))
    return {feature.name: _output(feature, by_name[feature.name], arithmetic) for feature in function.interface.outputs}


def _output(feature: Feature, value: Value, arithmetic: Arithmetic) -> Output:
    if isinstance(value, TextValue) and value.texts:
        return value.texts[0]
    if isinstance(value, dict):
        return value
    if not isinstance(value, Tensor):
        raise UsageError(f"output '{feature.name}' is no tensor: the package is damaged, export it again.")
    array: Array = value.numpy()
    if isinstance(feature, ImageFeature):
        if array.ndim != 4 or array.dtype.kind not in "iuf":
            raise UsageError(
                f"output '{feature.name}' is no image but {array.dtype} {list(array.shape)}: "
                "the package is damaged, export it again."
            )
        return _pixels(feature, array)
    if isinstance(feature, ArrayFeature) and not (array.dtype.kind == "f" and arithmetic.precision != "declared"):
        return array.astype(feature.dtype)
    return np.array(array)


def _pixels(feature: ImageFeature, planes: Array) -> Array:
    """[1, C, H, W] as pixels, [1, H, W, C], RGB: uint8 to the nearest, clipped, or float16 as they are."""
    pixels = planes.transpose(0, 2, 3, 1)
    if feature.colours == "bgr":
        pixels = pixels[..., ::-1]
    if feature.colours == "grayscale_float16":
        return pixels.astype(np.float16)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
