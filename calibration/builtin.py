"""--calibration builtin: crops of the photos that scikit-image and scikit-learn carry in their wheels."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from acmix.calibration.photos import RESAMPLING, cropped, decode, normalise
from acmix.toolkit.errors import UsageError
from acmix.toolkit.spec import Preprocess
from acmix.toolkit.target import Array

PHOTOS = (
    "skimage/data/astronaut.png",
    "skimage/data/brick.png",
    "skimage/data/camera.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/coins.png",
    "skimage/data/grass.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/motorcycle_left.png",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)
CROPS = 10
"""Of each photo: the middle first, then boxes of random size and place, half of them mirrored."""
LEAST_AREA = 0.3
"""Of the largest box that fits: below, the pixels would be enlarged more than twice at 224."""


@dataclass(frozen=True)
class Crop:
    """One crop. box: left, top, right, bottom in the photo's pixels; None is the evaluation's own crop."""

    photo: str
    number: int
    box: tuple[float, float, float, float] | None
    mirrored: bool


@dataclass(frozen=True)
class BuiltinPhotos:
    """Crops of packaged photos: the same ones for the same seed and aspect, photo after photo."""

    crops: tuple[Crop, ...]
    preprocess: Preprocess
    name: str = "builtin"

    @property
    def identifiers(self) -> tuple[str, ...]:
        return tuple(f"{Path(crop.photo).stem}/{crop.number}" for crop in self.crops)

    @property
    def labels(self) -> None:
        return None

    @cached_property
    def digest(self) -> str:
        files = {photo: hashlib.sha256(find(photo).read_bytes()).digest() for photo in {c.photo for c in self.crops}}
        digest = hashlib.sha256()
        for crop in self.crops:
            digest.update(files[crop.photo])
            digest.update(f"{crop.box}{crop.mirrored}".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.crops)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        photo, image = "", Image.new("RGB", (1, 1))
        for crop in self.crops:
            if crop.photo != photo:
                photo, image = crop.photo, decode(find(crop.photo))
            yield (normalise(_cut(image, crop, self.preprocess), self.preprocess),)

    def pick(self, positions: Sequence[int]) -> BuiltinPhotos:
        """The crops at these positions."""
        return replace(self, crops=tuple(self.crops[i] for i in positions))


def builtin_photos(preprocess: Preprocess, seed: int = 0) -> BuiltinPhotos:
    """CROPS crops of each packaged photo.  Raises UsageError when a package lacks."""
    crops = []
    for position, photo in enumerate(PHOTOS):
        with Image.open(find(photo)) as opened:
            size = opened.size
        rng = np.random.default_rng([seed, position])
        crops.append(Crop(photo, 0, None, False))
        crops += [_random_crop(photo, number, size, preprocess, rng) for number in range(1, CROPS)]
    return BuiltinPhotos(tuple(crops), preprocess)


def find(photo: str) -> Path:
    """Where an installed package keeps one of PHOTOS; the package itself is not imported, which takes seconds."""
    package, _, inside = photo.partition("/")
    found = importlib.util.find_spec(package)
    places = [Path(place) / inside for place in found.submodule_search_locations or ()] if found else []
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UsageError(
            f"--calibration builtin needs {inside} of {package}, which is not installed.\n"
            "Install it: pip install 'acmix[calibration]', or give photos of your own: --calibration FOLDER."
        )
    return file


def _random_crop(
    photo: str, number: int, size: tuple[int, int], preprocess: Preprocess, rng: np.random.Generator
) -> Crop:
    width, height = size
    crop_height, crop_width = preprocess.crop
    largest = min(width / crop_width, height / crop_height)
    side = largest * math.sqrt(rng.uniform(LEAST_AREA, 1.0))
    left = rng.uniform(0.0, width - side * crop_width)
    top = rng.uniform(0.0, height - side * crop_height)
    mirrored = bool(rng.random() < 0.5)
    return Crop(photo, number, (left, top, left + side * crop_width, top + side * crop_height), mirrored)


def _cut(image: Image.Image, crop: Crop, preprocess: Preprocess) -> Array:
    if crop.box is None:
        return cropped(image, preprocess)
    height, width = preprocess.crop
    cut = np.asarray(image.resize((width, height), RESAMPLING[preprocess.interpolation], box=crop.box))
    return np.ascontiguousarray(cut[:, ::-1]) if crop.mirrored else cut
