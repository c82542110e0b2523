"""A copy of an ONNX file that gives every intermediate value as an output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from acmix.toolkit.errors import UsageError
from acmix.toolkit.target import Tap

if TYPE_CHECKING:
    import onnx


def tap(file: Path, copy: Path) -> tuple[Tap, ...]:
    """Write `copy`: the same graph, each floating-point result of a node declared as one more output, in order.

    Raises UsageError when the file is not a whole ONNX model.
    """
    import onnx

    try:
        model = onnx.load(file)
    except Exception as error:
        # protobuf's DecodeError has a module of its own for each implementation.
        if type(error).__name__ != "DecodeError":
            raise
        raise UsageError(f"'{file.name}' is not a whole ONNX model: {error}. Export it again.") from error
    added = list(_values(onnx.shape_inference.infer_shapes(model).graph))
    model.graph.output.extend(added)
    copy.write_bytes(model.SerializeToString())
    return tuple(Tap(value.name) for value in added)


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """The floating-point results that depend on an input; stored weights behind a Cast do not."""
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    outputs = {value.name for value in graph.output}
    known = {value.name: value for value in graph.value_info}
    live = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if live.isdisjoint(node.input):
            continue
        for name in filter(None, node.output):
            live.add(name)
            if name not in outputs and name in known and known[name].type.tensor_type.elem_type in floats:
                yield known[name]
