"""What every stage says of every photo: traces of eager networks and of saved files, and samples for each network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from acmix.toolkit.adaptive.engine import Trace
from acmix.toolkit.adaptive.photos import Photos
from acmix.toolkit.adaptive.runner import Loaded
from acmix.toolkit.target import Array

Advance = Callable[[int], None]
"""Called with the number of photos that are done."""


@dataclass(frozen=True)
class Recorded:
    """Inputs that one network of an adaptive model got on photos: samples to prove its file on."""

    name: str
    identifiers: tuple[str, ...]
    inputs: tuple[tuple[Array, ...], ...]
    digest: str
    labels: None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        return iter(self.inputs)

    def pick(self, positions: Sequence[int]) -> Recorded:
        """The samples at these positions."""
        return replace(
            self,
            identifiers=tuple(self.identifiers[i] for i in positions),
            inputs=tuple(self.inputs[i] for i in positions),
            digest=hashlib.sha256(f"{self.digest} {list(positions)}".encode()).hexdigest(),
        )


def every_stage(loaded: Loaded, photos: Iterable[Array], advance: Advance | None = None) -> list[Trace]:
    """A trace through all stages for each photo."""
    traces = []
    for photo in photos:
        traces.append(loaded.every_stage(photo))
        if advance is not None:
            advance(len(traces))
    return traces


def logits_of(traces: Sequence[Trace]) -> npt.NDArray[np.float32]:
    """Logits [stages, photos, classes] of traces through all stages."""
    return np.stack([np.stack([stage.logits for stage in trace.stages]) for trace in traces], axis=1)


def stage_costs_ms(traces: Sequence[Trace]) -> tuple[float, ...]:
    """The mean time of each stage alone, from the decoded photo: host steps, networks and exit test."""
    total = np.array([[stage.time.total_ns for stage in trace.stages] for trace in traces])
    return tuple((total.mean(0) / 1e6).tolist())


def record_inputs(eager: Loaded, photos: Photos, most: int) -> dict[str, Recorded]:
    """What each network gets in eager on up to `most` photos, spread evenly; a network that runs twice gets both."""
    step = max(1, -(-len(photos) // most))
    kept: dict[str, list[tuple[str, tuple[Array, ...]]]] = {}
    for position, (identifier, photo) in enumerate(zip(photos.identifiers, photos, strict=True)):
        if position % step:
            continue

        def record(network: str, inputs: Sequence[Array], identifier: str = identifier) -> None:
            samples = kept.setdefault(network, [])
            times = sum(name.rpartition("#")[0] == identifier for name, _ in samples)
            # Crops are views of the image: a sample is a copy of its own.
            samples.append((f"{identifier}#{times + 1}", tuple(np.array(array) for array in inputs)))

        eager.every_stage(photo, record)
    return {network: _recorded(photos, network, samples) for network, samples in kept.items()}


def _recorded(photos: Photos, network: str, samples: Sequence[tuple[str, tuple[Array, ...]]]) -> Recorded:
    digest = hashlib.sha256(f"{photos.digest} {network} {len(samples)}".encode()).hexdigest()
    names, inputs = zip(*samples, strict=True)
    return Recorded(photos.name, names, inputs, digest)
