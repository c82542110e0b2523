"""Host steps: what happens to images between networks. Every function keeps the layout of what it is given."""

from __future__ import annotations

import functools
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
TAPS = 4
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
def cubic_taps(source: int, target: int) -> tuple[npt.NDArray[np.intp], Float32s]:
    """The four pixels of one axis that each new pixel is made of, and their weights, computed in float64: [4, target].

    First and last pixel stay.
    """
    taps = np.arange(TAPS)[:, None]
    positions = np.arange(target) * (source - 1) / max(target - 1, 1)
    pixels = np.floor(positions).astype(np.intp) - 1 + taps
    weights = np.vectorize(_kernel, otypes=[np.float64])(positions - pixels)
    # Beyond the border the last pixel is repeated.
    return pixels.clip(0, source - 1), weights.astype(np.float32)


def _along(image: Array, axis: int, target: int) -> Float32s:
    pixels, weights = cubic_taps(image.shape[axis], target)
    shape = tuple(-1 if number == axis else 1 for number in range(image.ndim))
    made: Float32s = image.take(pixels[0], axis) * weights[0].reshape(shape)
    for tap in range(1, TAPS):
        made += image.take(pixels[tap], axis) * weights[tap].reshape(shape)
    return made


def resized(image: Array, layout: ImageLayout, size: tuple[int, int]) -> Float32s:
    """An image at another size, bicubic between aligned corners: its rows, then its columns.

    Not by matrices: numpy shares a product among threads, and where another core is busy they wait for each other a
    hundred times as long as the product takes.
    """
    rows = 1 if layout == "nhwc" else 2
    return _along(_along(image, rows, size[0]), rows + 1, size[1])
