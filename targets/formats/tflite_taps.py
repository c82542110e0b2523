"""A copy of a TFLite file that gives every intermediate value as an output."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from acmix.targets.formats import tflite_flatbuffer
from acmix.toolkit.errors import UsageError
from acmix.toolkit.target import Tap

TAPPED = ("float32", "float16", "int8", "uint8", "int16")


def tap(file: Path, copy: Path) -> tuple[Tap, ...]:
    """Write `copy`: the same main graph, each operator's result declared as one more output, in order.

    Raises UsageError when the file is not a whole TFLite model.
    """
    try:
        model = tflite_flatbuffer.read_model(file)
    except ValueError as error:
        raise UsageError(f"'{file.name}' cannot be tapped: {error}. Export it again.") from error
    graph = model.subgraphs[0]
    names = names_of(graph)
    graph.outputs = [*graph.outputs, *names]
    copy.write_bytes(tflite_flatbuffer.write_model(model))
    return tuple(_tap(name, graph.tensors[index]) for index, name in names.items())


def names_of(graph: Any) -> dict[int, str]:
    """The tapped tensors of a main graph by their index, each with a name of its own."""
    added = _values(graph)
    names = [graph.tensors[index].name.decode() for index in added]
    shared = Counter(names)
    # Names tell values apart in files of one converter version; where two values share one, the place does.
    unique = [name if shared[name] == 1 else f"{name}#{index}" for name, index in zip(names, added, strict=True)]
    return dict(zip(added, unique, strict=True))


def _values(graph: Any) -> list[int]:
    """The numeric results that depend on an input, in order; unpacked weights do not."""
    live, added = {int(index) for index in graph.inputs}, []
    outputs = {int(index) for index in graph.outputs}
    for operator in graph.operators or []:
        if live.isdisjoint(int(index) for index in operator.inputs):
            continue
        for index in map(int, operator.outputs):
            live.add(index)
            if index not in outputs and tflite_flatbuffer.tensor_dtype(graph.tensors[index]) in TAPPED:
                added.append(index)
    return added


def _tap(name: str, tensor: Any) -> Tap:
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or len(quantization.scale) != 1:
        return Tap(name)
    return Tap(name, float(quantization.scale[0]), int(quantization.zeroPoint[0]))
