"""Samples: a named, ordered, hashed source of inputs, with labels where there are any."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from acmix.toolkit.spec import TensorSpec
from acmix.toolkit.target import Array


class Samples(Protocol):
    """Inputs in the captured program's own layout, one tuple of arrays a sample."""

    @property
    def name(self) -> str: ...
    @property
    def identifiers(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> tuple[int, ...] | None: ...
    @property
    def digest(self) -> str:
        """sha256 over what the inputs are made from, in order."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Array, ...]]: ...


@dataclass(frozen=True)
class Probes:
    """Inputs that need no photo: zeros, ones, ramps, checks, noise and a large range, from a seed.

    Values are in the network's own input range (about -2.5 to 2.5 for normalised photos); `large` is four
    times that. Integer inputs get 0 or 1, which are valid indices everywhere.

    bounds: lowest and highest value of each input, where the file can express no more (integer activations).
    """

    inputs: tuple[TensorSpec, ...]
    seed: int = 0
    name: str = "probes"
    bounds: tuple[tuple[float, float], ...] = ()

    @property
    def identifiers(self) -> tuple[str, ...]:
        return ("zeros", "ones", "ramp", "checks", "noise", "smooth", "large")

    @property
    def labels(self) -> None:
        return None

    @property
    def digest(self) -> str:
        return digest_of(self)

    def __len__(self) -> int:
        return len(self.identifiers)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        for kind in self.identifiers:
            rng = np.random.default_rng([self.seed, len(kind), ord(kind[0])])
            made = tuple(_probe(kind, spec, rng) for spec in self.inputs)
            yield tuple(map(_bounded, made, self.bounds)) if self.bounds else made


@dataclass(frozen=True)
class Spread:
    """At most `count` samples of others, evenly spread over them."""

    samples: Samples
    count: int

    @property
    def positions(self) -> tuple[int, ...]:
        total = len(self.samples)
        return tuple(dict.fromkeys(i * total // self.count for i in range(self.count)))

    @property
    def name(self) -> str:
        return self.samples.name

    @property
    def identifiers(self) -> tuple[str, ...]:
        return tuple(self.samples.identifiers[i] for i in self.positions)

    @property
    def labels(self) -> tuple[int, ...] | None:
        labels = self.samples.labels
        return None if labels is None else tuple(labels[i] for i in self.positions)

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.samples.digest} {self.positions}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        wanted = set(self.positions)
        return (sample for i, sample in enumerate(self.samples) if i in wanted)


def _bounded(array: Array, bounds: tuple[float, float]) -> Array:
    return np.clip(array, *bounds).astype(array.dtype)


def digest_of(samples: Sequence[tuple[Array, ...]] | Samples) -> str:
    """sha256 over the arrays themselves: shape, dtype and bytes, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        for array in sample:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _probe(kind: str, spec: TensorSpec, rng: np.random.Generator) -> Array:
    count = math.prod(spec.shape)
    if not np.issubdtype(np.dtype(spec.dtype), np.floating):
        values = np.zeros(count) if kind == "zeros" else rng.integers(0, 2, count)
        return values.reshape(spec.shape).astype(spec.dtype)
    if kind in ("zeros", "ones"):
        values = np.full(count, float(kind == "ones"))
    elif kind == "ramp":
        values = np.linspace(-2.0, 2.0, count)
    elif kind == "checks":
        values = np.where(np.arange(count) // 7 % 2 == 0, 1.5, -1.5)
    elif kind == "smooth":
        values = np.cumsum(rng.standard_normal(count)) / math.sqrt(count)
    else:
        values = rng.standard_normal(count) * (4.0 if kind == "large" else 1.0)
    return values.reshape(spec.shape).astype(spec.dtype)
