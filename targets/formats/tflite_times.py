"""The time of every kernel of a TFLite file: LiteRT's own profiler, which sees inside the XNNPACK delegate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from acmix.targets.formats import tflite_flatbuffer, tflite_placement, tflite_taps
from acmix.targets.formats.tflite_litert import DELEGATED_OPERATOR, OPERATOR, STAGE, Event, Model
from acmix.targets.formats.xnnpack_events import GraphNode, align
from acmix.toolkit.errors import UsageError
from acmix.toolkit.kernels import KernelTime, KernelTimes
from acmix.toolkit.target import Array

MEASURED_BY = "the profiler of LiteRT's C interface (ai-edge-litert {version}), in whole microseconds"
Kernel = tuple[str, bool, int]
"""Name, inside the delegate, place: of an operator in the file, or of an XNNPACK operator in its partition."""


class ProfiledModel:
    """A file loaded by LiteRT's C interface, with its profiler."""

    def __init__(self, file: Path, threads: int) -> None:
        self.file, self.model = file, Model(file, threads)
        model = tflite_flatbuffer.read_model(file)
        tensors = [model.subgraphs[0].tensors[index] for index in model.subgraphs[0].outputs]
        self.outputs = [(tflite_flatbuffer.tensor_dtype(t), tuple(map(int, t.shape))) for t in tensors]
        self.runs = 0
        # One profile over all runs: reading events between them would count as time of the runtime.
        self.model.start()

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        self.runs += 1
        made = self.model.run([array.tobytes() for array in inputs])
        kinds = zip(made, self.outputs, strict=True)
        return [np.frombuffer(content, dtype).reshape(shape) for content, (dtype, shape) in kinds]

    def kernels(self) -> KernelTimes:
        runs: list[list[Event]] = []
        for event in self.model.events():
            if event.kind == STAGE and event.tag == b"Invoke":
                runs.append([])
            elif runs and event.kind in (OPERATOR, DELEGATED_OPERATOR):
                runs[-1].append(event)
        first = [_kernel(event) for event in runs[0]] if runs else []
        if len(runs) != self.runs or any([_kernel(event) for event in run] != first for run in runs):
            raise UsageError(
                f"LiteRT's profile of {self.runs} runs does not show the same kernels in each of them: "
                "their times cannot be told apart. Profile fewer runs."
            )
        times = zip(*([event.elapsed_us * 1000 for event in run] for run in runs), strict=True)
        made = tuple(
            KernelTime(name, value, tflite_placement.DELEGATE if inside else "TFLite kernel", inside, taken)
            for (name, inside, _), value, taken in zip(first, _values(self.file, first), times, strict=True)
        )
        return KernelTimes(made, MEASURED_BY.format(version=version("ai-edge-litert")))


def _kernel(event: Event) -> Kernel:
    return event.tag.decode("utf-8", "replace"), event.kind == DELEGATED_OPERATOR, int(event.where)


def _values(file: Path, kernels: Sequence[Kernel]) -> list[str]:
    """The value that each kernel makes, '' where that cannot be told."""
    graph = tflite_placement.read_graph(file)
    partitions = [sorted(members) for members in tflite_placement.partitions_of(file, graph)]
    groups = list(_groups(kernels))
    places: list[int | None] = [None if inside else place for _, inside, place in kernels]
    # Partitions run in the order in which they were made; with another number of them nothing can be told.
    for members, group in zip(partitions, groups if len(groups) == len(partitions) else [], strict=False):
        nodes = [GraphNode(graph.kinds[m], _operators(graph.kinds[m], graph.operators[m])) for m in members]
        for index, node in zip(group, align([kernels[i][0] for i in group], nodes), strict=True):
            places[index] = None if node is None else members[node]
    names = _names(file)
    return ["" if place is None else names[place] for place in places]


def _groups(kernels: Sequence[Kernel]) -> Iterator[list[int]]:
    """The places of each partition's operators, which it counts from 0."""
    group: list[int] = []
    for index, (_, inside, place) in enumerate(kernels):
        if group and (not inside or place == 0):
            yield group
            group = []
        if inside:
            group.append(index)
    if group:
        yield group


def _operators(kind: str, operator: Any) -> int:
    if kind == "CONCATENATION":
        return len(operator.inputs)
    return len(operator.outputs) if kind == "SPLIT" else 1


def _names(file: Path) -> list[str]:
    """The first result of each operator, by the name that `tflite_taps` gives to it."""
    graph = tflite_flatbuffer.read_model(file).subgraphs[0]
    names = tflite_taps.names_of(graph) | {int(index): f"output.{i}" for i, index in enumerate(graph.outputs)}
    return [names.get(int(operator.outputs[0]), "") for operator in graph.operators]
