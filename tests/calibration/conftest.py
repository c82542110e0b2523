"""What the tests of this room share: seeded noise as samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from acmix.toolkit.samples import Samples, digest_of
from acmix.toolkit.target import Array


@dataclass(frozen=True)
class _Noise:
    """Samples of unit variance, the same for each position."""

    shape: tuple[int, ...]
    count: int
    labels: tuple[int, ...] | None = None
    name: str = "noise"

    @property
    def identifiers(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.count)))

    @property
    def digest(self) -> str:
        return digest_of(self)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        for i in range(self.count):
            yield (np.random.default_rng(i).standard_normal(self.shape).astype(np.float32),)


@pytest.fixture(scope="session")
def noise() -> Callable[..., Samples]:
    """noise(shape, count, labels): seeded samples, labelled or not."""
    return _Noise
