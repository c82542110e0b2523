"""Photos as an adaptive model takes them: decoded, at their own size, since each stage looks at them anew."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from acmix.toolkit.target import Array


class Photos(Protocol):
    """Decoded photos in a fixed order, uint8 [H, W, 3] RGB each."""

    @property
    def name(self) -> str: ...
    @property
    def identifiers(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> tuple[int, ...] | None: ...
    @property
    def digest(self) -> str:
        """sha256 over what the photos are made from, in order."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Array]: ...


@dataclass(frozen=True)
class SeededPhotos:
    """Images that need no file: smooth coloured noise of several sizes, from a seed."""

    count: int
    seed: int = 0
    name: str = "seeded images"

    @property
    def identifiers(self) -> tuple[str, ...]:
        return tuple(f"seeded_{i:03d}" for i in range(self.count))

    @property
    def labels(self) -> None:
        return None

    @property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for photo in self:
            digest.update(str(photo.shape).encode() + photo.tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Array]:
        return (_seeded(np.random.default_rng([self.seed, i])) for i in range(self.count))


def _seeded(rng: np.random.Generator) -> Array:
    # Coarse blocks in fine noise: both edges and flat parts, as photos have them.
    block = int(rng.integers(8, 48))
    rows, columns = (int(n) for n in rng.integers(6, 10, 2))
    coarse = np.kron(rng.integers(0, 256, (rows, columns, 3)), np.ones((block, block, 1)))
    noisy = coarse + rng.normal(0, 12, coarse.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
