"""What a Core ML package tells an app about its inputs, outputs and states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from acmix.targets.mil.protobuf import Message, WireError

ARRAY_TYPES = {65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8", 65552: "float16"}
COLOURS: dict[int, Colours] = {10: "grayscale", 20: "rgb", 30: "bgr", 40: "grayscale_float16"}

Colours = Literal["grayscale", "rgb", "bgr", "grayscale_float16"]
Bounds = tuple[int, int | None]
"""The smallest and the largest size of an axis; None is unbounded."""


@dataclass(frozen=True)
class Sizes:
    """The shapes that a flexible input takes: one of a list, or a range for each axis; neither: only its own."""

    enumerated: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[Bounds, ...] = ()

    def allow(self, shape: tuple[int, ...], own: tuple[int, ...]) -> bool:
        if self.enumerated:
            return shape == own or shape in self.enumerated
        if self.ranges:
            return len(shape) == len(self.ranges) and all(
                low <= size and (high is None or size <= high)
                for size, (low, high) in zip(shape, self.ranges, strict=True)
            )
        return shape == own

    def __str__(self) -> str:
        if self.enumerated:
            return " or ".join(str(list(shape)) for shape in self.enumerated)
        return "[" + ", ".join(f"{low} to {'any' if high is None else high}" for low, high in self.ranges) + "]"


@dataclass(frozen=True)
class ArrayFeature:
    """shape: the default one.  default: what fills an optional input."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    sizes: Sizes
    optional: bool = False
    default: float = 0.0


@dataclass(frozen=True)
class ImageFeature:
    """Pixels of 0 to 255.  sizes: (height, width)."""

    name: str
    height: int
    width: int
    colours: Colours
    sizes: Sizes

    @property
    def channels(self) -> int:
        return 1 if self.colours.startswith("grayscale") else 3


@dataclass(frozen=True)
class LabelFeature:
    """A class label, or a dictionary of class probabilities."""

    name: str


Feature = ArrayFeature | ImageFeature | LabelFeature


@dataclass(frozen=True)
class Interface:
    """The features of one function."""

    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    states: tuple[ArrayFeature, ...]


def interface_of(description: Message) -> Interface:
    """Of a model's or a function's description; raises WireError for features that no ML program has."""
    states = tuple(
        _array(message.get("name", ""), message.get("type", {}).get("stateType", {}).get("arrayType", {}), False)
        for message in description.get("state", [])
    )
    inputs, outputs = (tuple(map(_feature, description.get(key, []))) for key in ("input", "output"))
    return Interface(inputs, outputs, states)


def _feature(message: Message) -> Feature:
    name, kind = message.get("name", ""), message.get("type", {})
    if "multiArrayType" in kind:
        return _array(name, kind["multiArrayType"], kind.get("isOptional", False))
    if "imageType" in kind:
        return _image(name, kind["imageType"])
    if kind.keys() & {"int64Type", "stringType", "dictionaryType"}:
        return LabelFeature(name)
    raise WireError(f"feature '{name}' is no array, image or label")


def _array(name: str, array: Message, optional: bool) -> ArrayFeature:
    if array.get("dataType") not in ARRAY_TYPES:
        raise WireError(f"feature '{name}' has the unknown data type {array.get('dataType')}")
    enumerated = tuple(tuple(s.get("shape", [])) for s in array.get("enumeratedShapes", {}).get("shapes", []))
    ranges = tuple(map(_bounds, array.get("shapeRange", {}).get("sizeRanges", [])))
    return ArrayFeature(
        name,
        tuple(array.get("shape", [])),
        ARRAY_TYPES[array["dataType"]],
        Sizes(enumerated, ranges),
        optional,
        array.get("default", 0.0),
    )


def _image(name: str, image: Message) -> ImageFeature:
    if image.get("colorSpace") not in COLOURS:
        raise WireError(f"image '{name}' has the unknown colour space {image.get('colorSpace')}")
    enumerated = tuple(
        (size.get("height", 0), size.get("width", 0)) for size in image.get("enumeratedSizes", {}).get("sizes", [])
    )
    span = image.get("imageSizeRange", {})
    ranges = tuple(_bounds(span.get(key, {})) for key in ("heightRange", "widthRange")) if span else ()
    colours = COLOURS[image["colorSpace"]]
    return ImageFeature(name, image.get("height", 0), image.get("width", 0), colours, Sizes(enumerated, ranges))


def _bounds(message: dict[str, Any]) -> Bounds:
    high = message.get("upperBound", 0)
    return message.get("lowerBound", 0), None if high < 0 else high
