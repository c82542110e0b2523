"""From the files of an .mlpackage to a Program.  Raises UsageError for anything that is no ML program."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from acmix.targets.mil import protobuf
from acmix.targets.mil.interface import Interface, interface_of
from acmix.targets.mil.program import (
    DATA_TYPES,
    ArrayValue,
    Binding,
    BlobValue,
    Block,
    DictionaryType,
    Function,
    ListType,
    Literal_,
    NamedType,
    Operation,
    Program,
    StateType,
    TensorType,
    TextValue,
    ValueType,
    elements_of,
)
from acmix.targets.mil.protobuf import Message, WireError
from acmix.targets.mil.schema import SCHEMA
from acmix.targets.mil.weights import FINGERPRINT_KEY, NUMPY_TYPES, SUB_BYTE_BITS, from_bytes
from acmix.toolkit.errors import UsageError

OPSETS = {f"CoreML{version}": version + 10 for version in range(5, 17)}
OLDER = (
    "'{name}' holds no ML program but an older kind of Core ML model (such as neuralnetwork): only ML programs can be "
    "evaluated. Convert it again with convert_to='mlprogram', for iOS 15 or later."
)
MAX_SPECIFICATION_BYTES = 2**31


def read_package(path: Path) -> Program:
    """The program of an .mlpackage folder; its weights are not touched."""
    file = _model_file(path)
    try:
        if file.stat().st_size > MAX_SPECIFICATION_BYTES:
            raise _damaged(path, "its specification is larger than protobuf allows")
        model = protobuf.decode(file.read_bytes(), SCHEMA, "Model")
        if "mlProgram" not in model:
            if "older" in model:
                raise UsageError(OLDER.format(name=path.name))
            raise WireError("it holds no program")
        return _program(model, path, file.parent)
    except OSError as error:
        raise _damaged(path, f"{file.name} is missing") from error
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> UsageError:
    return UsageError(f"'{path.name}' is not a complete Core ML package ({reason}): export or copy it again.")


def _model_file(path: Path) -> Path:
    """The specification inside a package, as its Manifest.json names it; a single .mlmodel is itself."""
    if path.is_file():
        return path
    try:
        manifest = json.loads((path / "Manifest.json").read_text("utf-8"))
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        file = path / "Data" / str(entry)
        is_there = file.resolve().is_relative_to(path.resolve()) and file.is_file()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _damaged(path, "its Manifest.json is missing or names no model") from error
    if not is_there:
        raise _damaged(path, f"Data/{entry} is missing")
    return file


def _program(model: Message, path: Path, folder: Path) -> Program:
    description = model.get("description", {})
    described = description.get("functions", [])
    default = description.get("defaultFunctionName") or "main"
    interfaces = {one.get("name", ""): interface_of(one) for one in described} or {default: interface_of(description)}
    functions = model["mlProgram"].get("functions", {})
    if set(interfaces) - set(functions):
        raise WireError(f"the functions {sorted(set(interfaces) - set(functions))} are described and not there")
    if default not in interfaces:
        raise WireError(f"its default function '{default}' is not there")
    made = {name: _function(name, functions[name], interfaces[name]) for name in interfaces}
    fingerprint = str(description.get("metadata", {}).get("userDefined", {}).get(FINGERPRINT_KEY, ""))
    return Program(path, folder, made, default, fingerprint)


def _function(name: str, message: Message, interface: Interface) -> Function:
    opset = message.get("opset", "")
    if opset not in OPSETS:
        raise WireError(f"function '{name}' uses the operators of '{opset}', known are {', '.join(list(OPSETS)[:4])}")
    blocks = message.get("block_specializations", {})
    if opset not in blocks:
        raise WireError(f"function '{name}' has no block for its opset {opset}")
    inputs = tuple(map(_named, message.get("inputs", [])))
    return Function(name, inputs, OPSETS[opset], _block(blocks[opset]), interface)


def _block(message: Message) -> Block:
    return Block(
        tuple(map(_named, message.get("inputs", []))),
        tuple(map(_operation, message.get("operations", []))),
        tuple(message.get("outputs", [])),
    )


def _operation(message: Message) -> Operation:
    kind, outputs = message.get("type", ""), tuple(map(_named, message.get("outputs", [])))
    attributes = {key: _value(value) for key, value in message.get("attributes", {}).items()}
    name = attributes.pop("name", None)
    label = str(name.texts[0]) if isinstance(name, TextValue) and name.texts else ""
    inputs = {
        key: tuple(map(_binding, argument.get("arguments", []))) for key, argument in message.get("inputs", {}).items()
    }
    blocks = tuple(map(_block, message.get("blocks", [])))
    return Operation(kind, label or (outputs[0].name if outputs else kind), inputs, outputs, blocks, attributes)


def _binding(message: Message) -> Binding:
    return _value(message["value"]) if "value" in message else str(message.get("name", ""))


def _named(message: Message) -> NamedType:
    return NamedType(message.get("name", ""), _type(message.get("type", {})))


def _type(message: Message) -> ValueType:
    if "tensorType" in message:
        return _tensor_type(message["tensorType"])
    if "listType" in message:
        element = _type(message["listType"].get("type", {}))
        if isinstance(element, TensorType):
            return ListType(element)
    if "stateType" in message:
        element = _type(message["stateType"].get("wrappedType", {}))
        if isinstance(element, TensorType):
            return StateType(element)
    if "dictionaryType" in message:
        return DictionaryType()
    raise WireError(f"a value has the unknown type {sorted(message)}")


def _tensor_type(message: Message) -> TensorType:
    code = message.get("dataType", 0)
    if code not in DATA_TYPES:
        raise WireError(f"a tensor has the unknown data type {code}")
    axes = [_axis(axis) for axis in message.get("dimensions", [])]
    if "variadic" in axes:
        return TensorType(DATA_TYPES[code], None)
    if len(axes) != message.get("rank", 0):
        raise WireError(f"a tensor of rank {message.get('rank', 0)} has {len(axes)} axes")
    shape = tuple(axis if isinstance(axis, int) else None for axis in axes)
    elements_of(tuple(axis for axis in shape if axis is not None), "a tensor of the program")
    return TensorType(DATA_TYPES[code], shape)


def _axis(message: Message) -> int | str:
    if "constant" in message:
        return int(message["constant"].get("size", 0))
    return "variadic" if message.get("unknown", {}).get("variadic") else "unknown"


def _value(message: Message) -> Literal_:
    kind = _type(message.get("type", {}))
    if "blobFileValue" in message and isinstance(kind, TensorType):
        blob = message["blobFileValue"]
        return BlobValue(kind, blob.get("fileName", ""), blob.get("offset", 0))
    immediate = message.get("immediateValue", {})
    if isinstance(kind, ListType):
        items = [_value(item) for item in immediate.get("list", {}).get("values", [])]
        return TextValue(tuple(_plain(item) for item in items), is_list=True)
    if not isinstance(kind, TensorType) or "tensor" not in immediate:
        raise WireError("a constant is neither a tensor nor a list")
    return _immediate(kind, immediate["tensor"])


def _plain(value: Literal_) -> str | int:
    if isinstance(value, TextValue) and len(value.texts) == 1:
        return value.texts[0]
    if isinstance(value, ArrayValue) and value.array.size == 1:
        return int(value.array.item())
    raise WireError("a list holds something other than strings and integers")


def _immediate(kind: TensorType, tensor: Mapping[str, Any]) -> Literal_:
    field, values = next(
        ((key, one.get("values", b"" if key == "bytes" else [])) for key, one in tensor.items()), ("", [])
    )
    if field == "strings" or kind.dtype == "string":
        if field != "strings" or kind.dtype != "string":
            raise WireError(f"a constant of {kind.dtype} holds {field}")
        return TextValue(tuple(values), is_list=kind.shape != ())
    if kind.shape is None or None in kind.shape:
        raise WireError("a constant has no fixed shape")
    shape = tuple(axis or 0 for axis in kind.shape)
    count = elements_of(shape, "a constant")
    if field == "bytes":
        raw = np.frombuffer(bytes(values), np.uint8)
        bits = SUB_BYTE_BITS.get(kind.dtype) or 8 * np.dtype(NUMPY_TYPES[kind.dtype]).itemsize
        if len(raw) != -(-count * bits // 8):
            raise WireError(f"a constant of {list(shape)} {kind.dtype} holds {len(raw)} bytes")
        return ArrayValue(kind, from_bytes(raw, kind.dtype, shape))
    if (field in ("floats", "doubles")) != (kind.dtype in ("fp16", "fp32", "fp64")) or len(values) != count:
        raise WireError(f"a constant of {list(shape)} {kind.dtype} holds {len(values)} {field or 'values'}")
    numbers = np.asarray(values)
    return ArrayValue(kind, numbers.astype(NUMPY_TYPES.get(kind.dtype, "i1")).reshape(shape))
