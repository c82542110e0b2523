"""The TFLite flatbuffer as objects: read, named, cast to float16, written again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from acmix.toolkit import float16
from acmix.toolkit.spec import TensorSpec

BUFFER_ALIGNMENT_BYTES = 16


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]
    # The schema says force_align: 16; the generated Python ignores it, and kernels load whole vectors.
    def Pack(self, builder: Any) -> Any:  # noqa: N802
        if self.data is not None:
            builder.Prep(BUFFER_ALIGNMENT_BYTES, len(self.data))
        return super().Pack(builder)


def read_model(content: bytes | Path) -> Any:
    """The ModelT of a flatbuffer; raises ValueError when it is truncated or no TFLite model."""
    data = content.read_bytes() if isinstance(content, Path) else content
    if data[4:8] != b"TFL3":
        raise ValueError(f"not a TFLite model: its identifier is {data[4:8]!r}, not b'TFL3'")
    try:
        return flatbuffer_utils.read_model_from_bytearray(data)
    except Exception as error:  # struct.error, IndexError, TypeError ...: whatever the broken offset leads to
        raise ValueError(f"not a whole TFLite model: {type(error).__name__}: {error}") from error


def write_model(model: Any) -> bytes:
    """The flatbuffer of a ModelT, its buffers aligned; the same model always gives the same bytes."""
    model.buffers = [_AlignedBuffer(_bytes(buffer)) for buffer in model.buffers]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _bytes(buffer: Any) -> np.ndarray[Any, Any] | None:
    # bytes and memoryviews would be packed in a Python loop, one byte at a time.
    return None if buffer.data is None else np.frombuffer(buffer.data, np.uint8)


def add_metadata(model: Any, name: str, content: bytes) -> None:
    """Attach a named entry to the model, in place of one of the same name."""
    kept = [entry for entry in model.metadata or [] if entry.name != name.encode()]
    model.buffers.append(schema.BufferT(np.frombuffer(content, np.uint8)))
    model.metadata = [*kept, schema.MetadataT(name.encode(), len(model.buffers) - 1)]


def metadata_of(model: Any) -> dict[str, bytes]:
    """Every named entry of the model."""
    return {e.name.decode(): bytes(model.buffers[e.buffer].data) for e in model.metadata or []}


def name_interface(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the main graph's inputs and outputs their names, in its signature and on their tensors.

    The graph's own order is the program's; a signature is looked up by name and has none.
    """
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    signature.outputs = _name_tensors(graph, graph.outputs, outputs)
    signature.inputs = _name_tensors(graph, graph.inputs, inputs)


def _name_tensors(graph: Any, indices: Sequence[int], names: Sequence[str]) -> list[Any]:
    maps = []
    for index, name in zip(indices, names, strict=True):
        graph.tensors[index].name = name.encode()
        maps.append(schema.TensorMapT(name.encode(), index))
    return maps


def interface(
    model: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The specs with the shapes and dtypes that the main graph really has (litert-torch narrows int64 to int32)."""
    graph = model.subgraphs[0]
    return _as_stored(graph, graph.inputs, inputs), _as_stored(graph, graph.outputs, outputs)


def _as_stored(graph: Any, indices: Sequence[int], specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    tensors = [graph.tensors[index] for index in indices]
    return tuple(
        replace(spec, shape=tuple(int(n) for n in tensor.shape), dtype=tensor_dtype(tensor))
        for spec, tensor in zip(specs, tensors, strict=True)
    )


def details(model: Any) -> dict[str, str]:
    """The operator versions in use and the oldest runtime that has them, as the converter states it."""
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    versions = sorted(f"{names.get(c.builtinCode, c.builtinCode)} v{c.version}" for c in model.operatorCodes)
    oldest = metadata_of(model).get("min_runtime_version", b"").rstrip(b"\0").decode()
    return {"operator_versions": ", ".join(versions), "oldest_runtime": oldest}


def tensor_dtype(tensor: Any) -> str:
    """A tensor's numpy dtype name."""
    names: dict[int, str] = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
    return names[tensor.type]


def cast_weights(model: Any) -> tuple[int, int]:
    """Store constant weights as float16 behind DEQUANTIZE; (cast, kept for being out of float16's range).

    Vectors (biases, scales) stay float32, they weigh nothing; so do the filters of precise convolutions, see
    `acmix.toolkit.float16`. XNNPACK unpacks the constants once, at load.
    """
    halves: dict[int, int] = {}
    cast = out_of_range = 0
    for graph in model.subgraphs:
        unpacked = []
        precise = _precise_filters(model, graph)
        for index, tensor in enumerate(list(graph.tensors)):
            weights = _weights(model, tensor)
            if weights is None or index in precise:
                continue
            if weights.size and not np.abs(weights).max() <= float16.LARGEST:
                out_of_range += 1
                continue
            if tensor.buffer not in halves:
                halves[tensor.buffer] = len(model.buffers)
                model.buffers.append(schema.BufferT(weights.astype(np.float16).view(np.uint8)))
            unpacked.append(_unpack(model, graph, index, halves[tensor.buffer]))
        cast += len(unpacked)
        graph.operators = [*unpacked, *(graph.operators or [])]
    _empty_unused_buffers(model)
    return cast, out_of_range


def _precise_filters(model: Any, graph: Any) -> set[int]:
    operators, precise = schema.BuiltinOperator, set()
    for operator in graph.operators or []:
        kind = model.operatorCodes[operator.opcodeIndex].builtinCode
        if kind == operators.DEPTHWISE_CONV_2D:
            precise.add(operator.inputs[1])
        elif kind == operators.CONV_2D:
            outputs, height, width, inputs = graph.tensors[operator.inputs[1]].shape
            if float16.stays_float32((outputs, inputs, height, width)):
                precise.add(operator.inputs[1])
    return precise


def _weights(model: Any, tensor: Any) -> np.ndarray[Any, Any] | None:
    data = _bytes(model.buffers[tensor.buffer])
    shape = [] if tensor.shape is None else list(tensor.shape)
    if tensor.type != schema.TensorType.FLOAT32 or data is None or prod(shape) == max([1, *shape]):
        return None
    return data.view(np.float32)


def _unpack(model: Any, graph: Any, index: int, half: int) -> Any:
    tensor, stored = graph.tensors[index], schema.TensorT()
    stored.shape, stored.buffer, stored.type = tensor.shape, half, schema.TensorType.FLOAT16
    stored.name, stored.hasRank = tensor.name + b"_float16", tensor.hasRank
    tensor.buffer = 0
    graph.tensors.append(stored)
    operator = schema.OperatorT()
    operator.opcodeIndex = _dequantize_code(model)
    operator.inputs, operator.outputs = [len(graph.tensors) - 1], [index]
    return operator


def _empty_unused_buffers(model: Any) -> None:
    # A buffer may be shared with a vector that stays float32: it goes only when nobody reads it any more.
    used = {t.buffer for g in model.subgraphs for t in g.tensors} | {e.buffer for e in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None


def _dequantize_code(model: Any) -> int:
    dequantize, float16_version = schema.BuiltinOperator.DEQUANTIZE, 3
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == dequantize and code.version >= float16_version:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = dequantize
    code.version = float16_version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
