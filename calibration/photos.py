"""A folder of photos as samples: labels.csv, or one folder a class, or photos alone."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from acmix.calibration.selection import spread
from acmix.toolkit.adaptive import host
from acmix.toolkit.errors import UsageError
from acmix.toolkit.spec import Preprocess
from acmix.toolkit.target import Array

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
RESAMPLING = host.RESAMPLING


def decode(photo: Path) -> Image.Image:
    """The photo as it was taken, RGB.  Raises UsageError when the file is no photo that Pillow reads."""
    try:
        with Image.open(photo) as opened:
            return opened.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{photo} is not a readable photo: {error}\nRemove it from the folder.") from error


def pixels(photo: Path, preprocess: Preprocess) -> Array:
    """The photo resized and cropped: uint8 [H, W, 3], RGB.  Raises UsageError like decode."""
    return cropped(decode(photo), preprocess)


def cropped(image: Image.Image, preprocess: Preprocess) -> Array:
    """The middle of an image after its short side was resized: uint8 [H, W, 3]."""
    return host.fitted(np.asarray(image), preprocess)


def normalise(image: Array, preprocess: Preprocess) -> Array:
    """uint8 [H, W, 3] to the network's float32 [1, 3, H, W]."""
    return np.ascontiguousarray(host.normalised(image, preprocess).transpose(0, 3, 1, 2))


@dataclass(frozen=True)
class PhotoFolder:
    """Photos of one folder, in a fixed order, preprocessed as they are read.

    further: for models that look at each photo in several ways: of their inputs behind the first.
    """

    name: str
    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    preprocess: Preprocess
    further: tuple[Preprocess, ...] = ()

    @property
    def identifiers(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.files)

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        ways = (self.preprocess, *self.further)
        return (tuple(normalise(pixels(file, way), way) for way in ways) for file in self.files)

    def pick(self, positions: Sequence[int]) -> PhotoFolder:
        """The photos at these positions."""
        labels = tuple(self.labels[i] for i in positions) if self.labels is not None else None
        return replace(self, files=tuple(self.files[i] for i in positions), labels=labels)

    def first(self, count: int) -> PhotoFolder:
        """At most `count` photos, spread evenly over the folder so that many classes are seen."""
        return self if count >= len(self) else self.pick(spread(len(self), count))


def read_photo_folder(folder: Path, preprocess: Preprocess | None, further: tuple[Preprocess, ...] = ()) -> PhotoFolder:
    """The photos of a folder: with labels from labels.csv (file,label) or from folders named 0, 1, 2 ...

    Class folders with other names are numbered in sorted order.  Raises UsageError when there is no such
    folder, no photo in it, a malformed labels.csv, or no preprocessing to apply.
    """
    if preprocess is None:
        raise UsageError(
            "the model has no preprocessing, so photos cannot become its input.\n"
            "Name one: --preprocess imagenet, or a TOML file (see docs/models.md)."
        )
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.\nGive a folder of photos, with labels.csv or a folder a class.")
    listed = (folder / "labels.csv").exists()
    files, labels = _read_labels(folder) if listed else _read_class_folders(folder)
    if not files:
        raise UsageError(f"{folder} holds no photo ({', '.join(sorted(SUFFIXES))}).")
    return PhotoFolder(folder.name, tuple(files), tuple(labels) if labels is not None else None, preprocess, further)


def _read_labels(folder: Path) -> tuple[list[Path], list[int] | None]:
    files, labels = [], []
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as text:
        for number, row in enumerate(csv.DictReader(text), start=2):
            try:
                file, label = folder / row["file"], int(row["label"])
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(
                    f"{folder / 'labels.csv'} line {number} is {dict(row)}.\n"
                    "It needs the columns file and label, and a whole number as label."
                ) from error
            if not file.is_file():
                raise UsageError(f"{folder / 'labels.csv'} line {number} names {row['file']!r}, which is not there.")
            files.append(file)
            labels.append(label)
    return files, labels


def _photos(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())


def _read_class_folders(folder: Path) -> tuple[list[Path], list[int] | None]:
    classes = [d for d in sorted(folder.iterdir()) if d.is_dir() and _photos(d)]
    if not classes:
        return _photos(folder), None
    numbered = all(d.name.isdigit() for d in classes)
    pairs = [(f, int(d.name) if numbered else i) for i, d in enumerate(classes) for f in _photos(d)]
    return [f for f, _ in pairs], [label for _, label in pairs]
