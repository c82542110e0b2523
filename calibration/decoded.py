"""A folder of photos, decoded one by one at their own size: what adaptive models take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from acmix.calibration.photos import PhotoFolder, decode
from acmix.toolkit.target import Array


@dataclass(frozen=True)
class DecodedPhotos:
    """The photos of a folder, uint8 [H, W, 3] RGB each; its preprocessing is left to the model."""

    folder: PhotoFolder

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def identifiers(self) -> tuple[str, ...]:
        return self.folder.identifiers

    @property
    def labels(self) -> tuple[int, ...] | None:
        return self.folder.labels

    @property
    def digest(self) -> str:
        return self.folder.digest

    def __len__(self) -> int:
        return len(self.folder)

    def __iter__(self) -> Iterator[Array]:
        return (np.asarray(decode(file)) for file in self.folder.files)
