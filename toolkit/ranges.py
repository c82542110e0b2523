"""Ranges: what every tensor of a captured program took on over the calibration samples. Found once, for all targets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Observer = Literal["minmax", "moving_average", "percentile", "mse", "entropy"]
OBSERVERS: tuple[Observer, ...] = get_args(Observer)


@dataclass(frozen=True)
class Range:
    """The values from `low` to `high` that a tensor's integers have to express; always with 0 between them."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= 0.0 <= self.high:
            raise ValueError(f"a range contains 0, and {self.low} to {self.high} does not")


@dataclass(frozen=True)
class Fingerprint:
    """What is the same of a tensor's values in any layout: to find a tensor again in a converted file."""

    count: int
    low: float
    high: float
    mean: float
    rms: float


@dataclass(frozen=True)
class Ranges:
    """By the name of the node in the graph of `program.module()`.

    sample: the first calibration sample, on which the fingerprints were taken.
    """

    tensors: dict[str, Range]
    fingerprints: dict[str, Fingerprint]
    sample: tuple[Array, ...]
    observer: Observer
    samples_name: str
    samples_count: int
    samples_digest: str


@dataclass(frozen=True)
class QuantizedTensor:
    """One tensor that a saved file holds as integers: value = scale * (integer - zero_point).

    node: of the captured program; '' where the converter made the tensor itself. for_all: every reader gets the
    integers; otherwise only those that compute on integers, and the others its float value.
    """

    node: str
    scale: float
    zero_point: int
    bits: int = 8
    for_all: bool = True


@dataclass(frozen=True)
class KeptFloat:
    """One kind of operator that stays float in a quantized file. modules: where, at most eight."""

    operator: str
    count: int
    reason: str
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Stored:
    """What of Ranges is JSON; the sample's arrays stand beside it."""

    tensors: dict[str, Range]
    fingerprints: dict[str, Fingerprint]
    observer: Observer
    samples_name: str
    samples_count: int
    samples_digest: str


def save_ranges(ranges: Ranges, path: Path) -> None:
    """Write ranges for the lowering processes: one .npz."""
    stored = _Stored(
        ranges.tensors,
        ranges.fingerprints,
        ranges.observer,
        ranges.samples_name,
        ranges.samples_count,
        ranges.samples_digest,
    )
    text = np.frombuffer(msgspec.json.encode(stored), np.uint8)
    np.savez(path, allow_pickle=False, stored=text, **{f"sample.{i}": array for i, array in enumerate(ranges.sample)})


def load_ranges(path: Path) -> Ranges:
    """Read what save_ranges wrote."""
    with np.load(path, allow_pickle=False) as file:
        stored = msgspec.json.decode(file["stored"].tobytes(), type=_Stored)
        sample = tuple(file[f"sample.{i}"] for i in range(len(file.files) - 1))
    return Ranges(
        stored.tensors,
        stored.fingerprints,
        sample,
        stored.observer,
        stored.samples_name,
        stored.samples_count,
        stored.samples_digest,
    )


def fingerprint(values: Array) -> Fingerprint:
    """The fingerprint of a tensor's values, in float64."""
    flat = values.astype(np.float64).ravel()
    if flat.size == 0:
        return Fingerprint(0, 0.0, 0.0, 0.0, 0.0)
    return Fingerprint(
        flat.size,
        float(flat.min()),
        float(flat.max()),
        float(flat.mean()),
        float(np.sqrt(np.square(flat).mean())),
    )
