"""What the tensors of a float TFLite file hold: watched in its interpreter, and recognised among a program's nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from acmix.targets.formats import tflite_flatbuffer
from acmix.targets.formats.tflite_placement import Graph
from acmix.toolkit.errors import UsageError
from acmix.toolkit.grid import ACTIVATIONS, COMPUTE, JOINS
from acmix.toolkit.ranges import Fingerprint, Range, Ranges, fingerprint
from acmix.toolkit.spec import TensorSpec
from acmix.toolkit.target import Array, to_layout

if TYPE_CHECKING:
    from torch.fx import Graph as ProgramGraph

CLOSEST = 1e-3
"""Largest difference between two fingerprints of one tensor, in units of its root mean square."""
WIDENED = 1.25
"""Factor on a range that one sample alone has shown."""


@dataclass(frozen=True)
class Watch:
    """A float file under observation. source, stored: the inputs as the program and as the file have them."""

    content: bytes
    source: tuple[TensorSpec, ...]
    stored: tuple[TensorSpec, ...]

    def run(self, samples: Iterable[Sequence[Array]], wanted: Sequence[int]) -> Iterator[dict[int, Array]]:
        """The values of the wanted tensors on each sample; the samples are in the program's layout.

        They become outputs of the file: a delegate keeps what is inside its partitions to itself.
        """
        model = tflite_flatbuffer.read_model(self.content)
        graph = model.subgraphs[0]
        graph.outputs = list(dict.fromkeys([*graph.outputs, *(t for t in wanted if t not in set(graph.inputs))]))
        interpreter = Interpreter(model_content=tflite_flatbuffer.write_model(model), num_threads=1)
        interpreter.allocate_tensors()
        inputs = [detail["index"] for detail in interpreter.get_input_details()]
        for sample in samples:
            for index, array, source, stored in zip(inputs, sample, self.source, self.stored, strict=True):
                interpreter.set_tensor(index, to_layout(array, source, stored))
            interpreter.invoke()
            yield {index: interpreter.get_tensor(index) for index in wanted}


def read_samples(file: str, inputs: Sequence[TensorSpec]) -> Iterator[tuple[Array, ...]]:
    """The calibration samples of an .npz, one after the other, in the shapes of `inputs`.

    Raises UsageError when an input is missing.
    """
    with np.load(Path(file), allow_pickle=False) as stored:
        missing = [spec.name for spec in inputs if spec.name not in stored.files]
        if missing:
            raise UsageError(
                f"the calibration samples {Path(file).name} have no array called {missing[0]!r}; "
                f"they have {', '.join(stored.files)}.\nName the arrays after the model's inputs."
            )
        arrays = [stored[spec.name] for spec in inputs]
    for index in range(len(arrays[0])):
        yield tuple(array[index].reshape(spec.shape) for array, spec in zip(arrays, inputs, strict=True))


def recognise(values: dict[int, Array], ranges: Ranges) -> dict[int, str]:
    """The node whose value each tensor holds, by fingerprint; tensors that are no node's are left out.

    A reshape or permutation has its source's fingerprint: equals are given out in the order of the graph, the last
    one again to whatever is left. They share one range, so that nothing depends on which of them is which.
    """
    by_count: dict[int, list[tuple[int, str, Fingerprint]]] = {}
    for order, (node, known) in enumerate(ranges.fingerprints.items()):
        by_count.setdefault(known.count, []).append((order, node, known))
    found: dict[int, str] = {}
    last: dict[str, int] = {}
    for index, value in values.items():
        print_ = fingerprint(value)
        near = [(distance(known, print_), order, node) for order, node, known in by_count.get(print_.count, [])]
        equal = sorted((order, node) for gap, order, node in near if gap <= _tolerated(near))
        if not equal:
            continue
        node = next((node for _, node in equal if node not in last), equal[-1][1])
        last[node] = index
        found[index] = node
    return found


def activated(graph: Graph, program: ProgramGraph, nodes: Mapping[int, str]) -> dict[int, str]:
    """The nodes of tensors, where a fused activation makes the tensor the activation's own.

    On a sample that the activation leaves as it is, it has the fingerprint of the layer before it, and another range.
    """
    named = {node.name: node for node in program.nodes}
    found = dict(nodes)
    for operator in graph.operators:
        if not getattr(operator.builtinOptions, "fusedActivationFunction", 0):
            continue
        for tensor in operator.outputs:
            layer = named.get(found.get(tensor, ""))
            readers = list(layer.users) if layer is not None and layer.target in COMPUTE | JOINS else []
            if len(readers) == 1 and readers[0].target in ACTIVATIONS:
                found[tensor] = readers[0].name
    return found


def _tolerated(near: Sequence[tuple[float, int, str]]) -> float:
    # Equal tensors differ by rounding alone; twice the best keeps them together and other tensors out.
    best = min((gap for gap, _, _ in near), default=CLOSEST)
    return min(CLOSEST, max(2.0 * best, 1e-6))


def distance(one: Fingerprint, other: Fingerprint) -> float:
    """The largest difference of two fingerprints, in units of the larger root mean square; infinite for counts."""
    if one.count != other.count:
        return float("inf")
    scale = max(one.rms, other.rms)
    if scale == 0.0:
        return 0.0
    pairs = ((one.low, other.low), (one.high, other.high), (one.mean, other.mean), (one.rms, other.rms))
    return max(abs(a - b) for a, b in pairs) / scale


def observed(watch: Watch, ranges: Ranges, samples_file: str, wanted: Sequence[int]) -> tuple[dict[int, Range], int]:
    """The least and greatest values of the wanted tensors, and how many samples showed them.

    Over every calibration sample; without a file of them over the first alone, widened by a quarter.
    """
    samples = read_samples(samples_file, watch.source) if samples_file else iter([ranges.sample])
    factor = 1.0 if samples_file else WIDENED
    lows, highs, count = dict.fromkeys(wanted, 0.0), dict.fromkeys(wanted, 0.0), 0
    for values in watch.run(samples, wanted) if wanted else ():
        count += 1
        for index, value in values.items():
            lows[index] = min(lows[index], float(value.min()))
            highs[index] = max(highs[index], float(value.max()))
    return {i: Range(factor * lows[i], factor * highs[i]) for i in wanted}, count


def moving(graph: Graph) -> list[int]:
    """The float tensors of a file that are no constants, in the order of execution: its inputs first."""
    made = dict.fromkeys(t for operator in graph.operators for t in operator.outputs)
    read = dict.fromkeys(t for operator in graph.operators for t in operator.inputs if t >= 0)
    entering = [t for t in read if t not in made and t not in graph.constants]
    return [t for t in (*entering, *made) if graph.tensors[t].type == schema.TensorType.FLOAT32]
