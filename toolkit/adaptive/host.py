"""Host steps: what happens to images between networks. Every function keeps the layout of what it is given."""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from acmix.toolkit.errors import GateError
from acmix.toolkit.spec import Preprocess
from acmix.toolkit.target import Array

ImageLayout = Literal["nchw", "nhwc"]
Float32s = npt.NDArray[np.float32]

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
CUBIC = -0.75
"""The slope that torch's bicubic gives its kernel at a distance of one pixel."""


def fitted(photo: Array, preprocess: Preprocess) -> Array:
    """A decoded photo, uint8 [H, W, 3] RGB, with its short side resized and its centre cropped: uint8 [h, w, 3].

    Pixel for pixel what Pillow's resize and then crop give.  Pillow resizes all rows and then all columns: between
    the two, columns that the crop drops are dropped.  A view of the photo where its size is right already.
    """
    height, width = photo.shape[:2]
    scale = preprocess.resize_short / min(width, height)
    crop_height, crop_width = preprocess.crop
    wide, high = max(round(width * scale), crop_width), max(round(height * scale), crop_height)
    left, top = (wide - crop_width) // 2, (high - crop_height) // 2
    if (wide, high) == (width, height):
        return photo[top : top + crop_height, left : left + crop_width]
    resampling = RESAMPLING[preprocess.interpolation]
    narrowed = Image.fromarray(photo).resize((wide, height), resampling).crop((left, 0, left + crop_width, height))
    resized = narrowed.resize((crop_width, high), resampling)
    return np.asarray(resized.crop((0, top, crop_width, top + crop_height)))


def normalised(pixels: Array, preprocess: Preprocess) -> Float32s:
    """uint8 [H, W, 3] to float32 [1, H, W, 3]: (pixel - mean) / std."""
    height, width, _ = pixels.shape
    # Whole rows: with three channels innermost numpy would loop over three numbers at a time.
    mean, std = (np.tile(np.asarray(v, np.float32), width) for v in (preprocess.mean, preprocess.std))
    rows = np.subtract(pixels.reshape(height, width * 3), mean, dtype=np.float32)
    rows /= std
    return rows.reshape(1, height, width, 3)


def corner(action: Array, image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Row and column of a patch of `size` in an image (height, width), from a predicted place [1, 2] in 0 to 1.

    Raises GateError for a place outside: its patch would be another one, or none.
    """
    predicted = action.reshape(2).astype(np.float32)
    # Asked this way round, NaN is refused too.
    if not ((predicted >= 0) & (predicted <= 1)).all():
        raise GateError(
            f"a network places a patch at {predicted.tolist()}; a place is two numbers from 0 to 1.\n"
            "No patch can be cut; verify the network's file: acmix verify."
        )
    # In float32, as the published pipeline computes it; an action of exactly 1 is the last place, not beyond it.
    room = np.asarray([image[0] - size[0], image[1] - size[1]], np.float32)
    row, column = np.floor(predicted * room).astype(int).tolist()
    return row, column


def patch(image: Array, layout: ImageLayout, place: tuple[int, int], size: tuple[int, int]) -> Array:
    """A view of one patch, its corner at `place`."""
    rows, columns = slice(place[0], place[0] + size[0]), slice(place[1], place[1] + size[1])
    return image[:, rows, columns, :] if layout == "nhwc" else image[:, :, rows, columns]


def sides(image: Array, layout: ImageLayout) -> tuple[int, int]:
    """Height and width."""
    return (image.shape[1], image.shape[2]) if layout == "nhwc" else (image.shape[2], image.shape[3])


def _kernel(distance: float) -> float:
    d = abs(distance)
    if d <= 1:
        return ((CUBIC + 2) * d - (CUBIC + 3)) * d**2 + 1
    return CUBIC * (((d - 5) * d + 8) * d - 4) if d < 2 else 0.0


@functools.cache
def aligned_bicubic(source: int, target: int) -> Float32s:
    """R [target, source]: R @ x resizes one axis so that first and last pixel stay; computed in float64."""
    matrix = np.zeros((target, source))
    for row in range(target):
        position = row * (source - 1) / max(target - 1, 1)
        first = math.floor(position) - 1
        for pixel in range(first, first + 4):
            # Beyond the border the last pixel is repeated.
            matrix[row, min(max(pixel, 0), source - 1)] += _kernel(position - pixel)
    return matrix.astype(np.float32)


def resized(image: Array, layout: ImageLayout, size: tuple[int, int]) -> Float32s:
    """An image at another size, bicubic between aligned corners: one matrix for the rows, one for the columns."""
    height, width = sides(image, layout)
    rows, columns = aligned_bicubic(height, size[0]), aligned_bicubic(width, size[1])
    if layout == "nchw":
        made: Float32s = rows @ image @ columns.T
        return made
    shrunk = (rows @ image.reshape(height, -1)).reshape(size[0], width, -1)
    return (columns @ shrunk)[None]
