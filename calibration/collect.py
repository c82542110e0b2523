"""Calibration: run the captured program over samples, and reduce every tensor to the range that it takes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from acmix.calibration.observers import PERCENTILE, Observation, found_range, start, widest_range
from acmix.toolkit.errors import UsageError
from acmix.toolkit.quantize import graph_module
from acmix.toolkit.ranges import Fingerprint, Observer, Ranges, fingerprint
from acmix.toolkit.samples import Samples
from acmix.toolkit.target import Array

Watch = Callable[[str, Tensor], None]
"""watch(node, value): called with each floating tensor of the graph as it is computed."""


@dataclass
class Observed:
    """What every floating tensor of a program took on over samples, by the name of its node in `program.module()`.

    first: the first sample.
    """

    samples: Samples
    observations: dict[str, Observation] = field(default_factory=dict)
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)
    first: tuple[Array, ...] = ()

    def ranges(self, observer: Observer, percentile: float = PERCENTILE) -> Ranges:
        """The ranges that one of the observers finds that were asked for."""
        samples = self.samples
        return Ranges(
            {node: found_range(one, observer, percentile) for node, one in self.observations.items()},
            self.fingerprints,
            self.first,
            observer,
            samples.name,
            len(samples),
            samples.digest,
        )

    def extremes_of(self, positions: Collection[int]) -> dict[str, tuple[float, float]]:
        """The range of each tensor, 0 included, over some of the samples."""
        some = {node: widest_range([one.extremes[i] for i in positions]) for node, one in self.observations.items()}
        return {node: (found.low, found.high) for node, found in some.items()}


def collect(
    program: ExportedProgram, samples: Samples, observer: Observer = "mse", percentile: float = PERCENTILE
) -> Ranges:
    """The range of every floating tensor of the program. Raises UsageError as `observe` does."""
    return observe(program, samples, (observer,)).ranges(observer, percentile)


def observe(program: ExportedProgram, samples: Samples, observers: Collection[Observer]) -> Observed:
    """Run the program over the samples once, and keep what these observers need; the extremes without any.

    Raises UsageError when there is no sample, when one does not fit the program, or when a value is not finite.
    """
    made, run = Observed(samples), Watched(program)
    for identifier, sample in each_sample(program, samples):
        made.first = made.first or sample

        def watch(node: str, value: Tensor, identifier: str = identifier) -> None:
            check_finite(node, value, identifier)
            if node not in made.observations:
                made.observations[node] = start(observers)
                made.fingerprints[node] = fingerprint(value.detach().double().numpy())
            made.observations[node].add(value)

        run.outputs(sample, watch)
    return made


def each_sample(program: ExportedProgram, samples: Samples) -> Iterator[tuple[str, tuple[Array, ...]]]:
    """The samples with their identifiers.

    Raises UsageError when there is none, or when one has not the program's own shapes and dtypes.
    """
    if not len(samples):
        raise UsageError(f"{samples.name} holds no sample, and calibration needs some.\nGive 50 photos or more.")
    wanted = input_types(program)
    for identifier, sample in zip(samples.identifiers, samples, strict=True):
        found = [(tuple(array.shape), str(array.dtype)) for array in sample]
        if found != wanted:
            raise UsageError(
                f"sample {identifier} is {_described(found)}; the program takes {_described(wanted)}.\n"
                "Prepare the samples with the model's own preprocessing."
            )
        yield identifier, sample


def input_types(program: ExportedProgram) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of each input of the program."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    named = [values[str(name)] for name in program.graph_signature.user_inputs]
    return [(tuple(map(int, value.shape)), str(value.dtype).removeprefix("torch.")) for value in named]


def _described(types: Sequence[tuple[tuple[int, ...], str]]) -> str:
    return ", ".join(f"{'x'.join(map(str, shape))} of {dtype}" for shape, dtype in types) or "nothing"


def check_finite(node: str, value: Tensor, identifier: str) -> None:
    """Raise UsageError when a value is NaN or infinite: no range holds it."""
    if value.numel() and not all(math.isfinite(float(end)) for end in torch.aminmax(value)):
        raise UsageError(
            f"{node} takes on NaN or infinity on sample {identifier}, which integers cannot express.\n"
            "Look at the sample and at the network's float32 outputs on it first."
        )


class Watched(fx.Interpreter):
    """Runs the program's graph node by node, showing every floating tensor; values are freed after their last use."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__(graph_module(program))
        self.watch: Watch = lambda node, value: None

    def outputs(self, sample: Sequence[Array], watch: Watch) -> list[Tensor]:
        """The outputs on one sample, flattened. The sample's own arrays stay as they are, whatever the graph does."""
        self.watch = watch
        inputs = [torch.from_numpy(np.array(array)) for array in sample]
        with torch.no_grad():
            found = self.run(*inputs, enable_io_processing=False)
        return [value for value in torch.utils._pytree.tree_leaves(found) if isinstance(value, Tensor)]

    def run_node(self, n: fx.Node) -> Any:
        """Compute one node and show it, when it is the program's own value: no weight, and floating."""
        value = super().run_node(n)
        if n.op in ("placeholder", "call_function") and isinstance(value, Tensor) and value.is_floating_point():
            self.watch(n.name, value)
        return value
