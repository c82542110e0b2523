"""The time of every kernel of a TFLite file: LiteRT's own profiler, which sees inside the XNNPACK delegate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from acmix.targets.formats import tflite_flatbuffer, tflite_placement, tflite_taps
from acmix.targets.formats.tflite_litert import DELEGATED_OPERATOR, OPERATOR, STAGE, Event, Model
from acmix.targets.formats.tflite_placement import DELEGATE
from acmix.targets.formats.xnnpack_events import GraphNode, align
from acmix.toolkit.kernels import KernelTime, KernelTimes, Noted, Notes, same_in_every_run
from acmix.toolkit.target import Array

MEASURED_BY = "the profiler of LiteRT's C interface ({runtime}), in whole microseconds"


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
        runtime = f"ai-edge-litert {version('ai-edge-litert')}"
        return kernel_times(self.file, notes_of(self.model.events()), self.runs, runtime)


def notes_of(events: Iterable[Event]) -> Notes:
    """The operators of each invocation; what encloses them is left out."""
    places: dict[Noted, int] = {}
    runs: list[list[tuple[int, int]]] = []
    for event in events:
        if event.kind == STAGE and event.tag == b"Invoke":
            runs.append([])
        elif runs and event.kind in (OPERATOR, DELEGATED_OPERATOR):
            name, inside = event.tag.decode("utf-8", "replace"), event.kind == DELEGATED_OPERATOR
            noted = Noted(name, delegated=inside, place=(0, int(event.where)))
            runs[-1].append((places.setdefault(noted, len(places)), event.elapsed_us * 1000))
    return Notes(tuple(places), tuple(map(tuple, runs)))


def kernel_times(file: Path, notes: Notes, runs: int, runtime: str) -> KernelTimes:
    """See Target."""
    found = same_in_every_run(notes, runs, runtime)
    values = _values(file, [noted for noted, _ in found])
    made = tuple(
        KernelTime(noted.name, value, DELEGATE if noted.delegated else "TFLite kernel", noted.delegated, taken)
        for (noted, taken), value in zip(found, values, strict=True)
    )
    return KernelTimes(made, MEASURED_BY.format(runtime=runtime))


def _values(file: Path, kernels: Sequence[Noted]) -> list[str]:
    """The value that each kernel makes, '' where that cannot be told.

    A kernel's place is that of an operator in the file, or of an XNNPACK operator in its partition.
    """
    graph = tflite_placement.read_graph(file)
    partitions = [sorted(members) for members in tflite_placement.partitions_of(file, graph)]
    groups = list(_groups(kernels))
    places: list[int | None] = [None if noted.delegated else noted.place[1] for noted in kernels]
    # Partitions run in the order in which they were made; with another number of them nothing can be told.
    for members, group in zip(partitions, groups if len(groups) == len(partitions) else [], strict=False):
        nodes = [GraphNode(graph.kinds[m], _operators(graph.kinds[m], graph.operators[m])) for m in members]
        for index, node in zip(group, align([kernels[i].name for i in group], nodes), strict=True):
            places[index] = None if node is None else members[node]
    names = _names(file)
    # A device may name an operator that the file does not have.
    return ["" if place is None or place >= len(names) else names[place] for place in places]


def _groups(kernels: Sequence[Noted]) -> Iterator[list[int]]:
    """The places of each partition's operators, which it counts from 0."""
    group: list[int] = []
    for index, noted in enumerate(kernels):
        if group and (not noted.delegated or noted.place[1] == 0):
            yield group
            group = []
        if noted.delegated:
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
