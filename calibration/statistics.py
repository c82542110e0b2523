"""What can be said of one sample without a network: how natural its pixels are, and what it looks like when small."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from acmix.toolkit.target import Array

Float64 = npt.NDArray[np.float64]

THUMBNAIL = 8
"""Pixels a side of the tiny picture by which near-duplicates are found."""
SPECTRUM_FROM = 4.0
"""Periods a side from which the spectrum is fitted: below, an image has too few waves to average."""
SPECTRUM_TO = 0.35
"""Cycles a pixel up to which it is fitted: above, resampling and JPEG have changed it."""
LEAST_SIDE = 24
"""Pixels a side under which there is no spectrum to fit."""
CONSTANT = 1e-6
"""Standard deviation, relative to the largest value, under which nothing of an image is to be seen."""


@dataclass(frozen=True)
class ImageStatistics:
    """Of one image, whatever its scale and offset.

    neighbour_correlation: of pixels beside and under each other, median over the channels, -1 to 1.
    spectrum_slope: exponent of power against frequency; about -2 for photos, 0 for white noise.  Both are None
    where the image is constant or smaller than LEAST_SIDE.
    thumbnail: [3 * THUMBNAIL * THUMBNAIL], mean 0 and norm 1; zeros for a constant image.
    """

    neighbour_correlation: float | None
    spectrum_slope: float | None
    thumbnail: Float64
    constant: bool


@dataclass(frozen=True)
class SampleStatistics:
    """Of one sample: the digest and limits of all its inputs, and what its image looks like, if it is one.

    low, high: of each input.
    """

    digest: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    image: ImageStatistics | None


def describe(sample: tuple[Array, ...], is_image: bool) -> SampleStatistics:
    """The statistics of one sample; is_image: its one array is [1, 3, H, W]."""
    digest = hashlib.sha256()
    for array in sample:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    image = describe_image(sample[0][0]) if is_image else None
    low, high = (tuple(float(reduced(array)) for array in sample) for reduced in (np.min, np.max))
    return SampleStatistics(digest.hexdigest(), low, high, image)


def describe_image(planes: npt.NDArray[Any]) -> ImageStatistics:
    """The statistics of an image [C, H, W]."""
    values = planes.astype(np.float64)
    constant = bool(values.std() <= CONSTANT * max(1.0, float(np.abs(values).max())))
    small = thumbnail(values)
    if constant or min(values.shape[1:]) < LEAST_SIDE:
        return ImageStatistics(None, None, small, constant)
    return ImageStatistics(neighbour_correlation(values), spectrum_slope(values), small, constant)


def neighbour_correlation(planes: Float64) -> float:
    """Pearson's correlation of neighbouring pixels: the mean of across and down, the median of the channels."""
    found = []
    for plane in planes:
        if plane.std() > 0:
            across = _correlation(plane[:, :-1], plane[:, 1:])
            down = _correlation(plane[:-1], plane[1:])
            found.append((across + down) / 2)
    return float(np.median(found))


def _correlation(left: Float64, right: Float64) -> float:
    left, right = left - left.mean(), right - right.mean()
    norm = float(np.sqrt(np.square(left).sum() * np.square(right).sum()))
    return float((left * right).sum()) / norm if norm > 0 else 1.0


def spectrum_slope(planes: Float64) -> float:
    """The slope of log power against log frequency, by least squares over rings of the windowed spectrum.

    Natural images fall with about the square of the frequency (Field 1987).
    """
    height, width = planes.shape[1:]
    window = np.outer(np.hanning(height), np.hanning(width))
    centred = planes - planes.mean(axis=(1, 2), keepdims=True)
    power = np.square(np.abs(np.fft.rfft2(centred * window))).sum(axis=0)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    edges = np.geomspace(SPECTRUM_FROM / min(height, width), SPECTRUM_TO, 13)
    ring = np.digitize(radius, edges)
    points = [
        (np.log(radius[ring == i].mean()), np.log(power[ring == i].mean() + np.finfo(np.float64).tiny))
        for i in range(1, len(edges))
        if (ring == i).any()
    ]
    log_frequency, log_power = np.asarray(points).T
    return float(np.polyfit(log_frequency, log_power, 1)[0])


def thumbnail(planes: Float64) -> Float64:
    """The image as THUMBNAIL x THUMBNAIL block means, mean 0 and norm 1: two of them multiply to a correlation."""
    for axis in (1, 2):
        parts = np.array_split(planes, min(THUMBNAIL, planes.shape[axis]), axis=axis)
        planes = np.concatenate([part.mean(axis=axis, keepdims=True) for part in parts], axis=axis)
    flat = (planes - planes.mean()).ravel()
    norm = float(np.linalg.norm(flat))
    return flat / norm if norm > CONSTANT else np.zeros_like(flat)
