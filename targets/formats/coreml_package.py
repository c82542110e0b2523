"""Reading a Core ML package (.mlpackage folder): its specification, operators, shapes and weights.

Needs coremltools' generated protobuf classes only (30 ms), neither its converter (seconds) nor a Mac.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import struct
import sys
import uuid
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from acmix.toolkit.errors import UsageError

SPECIFICATION = Path("Data", "com.apple.CoreML", "model.mlmodel")
WEIGHTS = Path("Data", "com.apple.CoreML", "weights", "weight.bin")
MANIFEST = "Manifest.json"
# Each tensor of weight.bin starts with this record: sentinel, type, size in bytes, offset of the values.
BLOB_RECORD = struct.Struct("<IIQQ")
BLOB_SENTINEL = 0xDEADBEEF

Shapes = dict[str, tuple[int, ...]]
Operation = Any
Specification = Any


def read_specification(package: Path) -> Specification:
    """The package's protobuf message, its weights checked to be there; raises UsageError on damage."""
    try:
        message = _message_type()()
        message.ParseFromString((package / SPECIFICATION).read_bytes())
        for name in message.mlProgram.functions:
            for operation in operations(message, True, name):
                for offset in _blob_offsets(operation):
                    blob(package, offset)
    except (OSError, ValueError, struct.error) as error:
        raise _damaged(package, type(error).__name__) from error
    except Exception as error:
        # protobuf's DecodeError has a module of its own for each implementation.
        if type(error).__name__ != "DecodeError":
            raise
        raise _damaged(package, "its specification does not parse") from error
    if message.WhichOneof("Type") != "mlProgram":
        raise _damaged(package, "it holds no ML program")
    return message


def _damaged(package: Path, reason: str) -> UsageError:
    return UsageError(f"'{package.name}' is not a complete Core ML package ({reason}): export it again.")


def _message_type() -> Any:
    """coremltools' Model message, without importing coremltools itself: that takes seconds."""
    if "coremltools" in sys.modules:
        return importlib.import_module("coremltools.proto.Model_pb2").Model
    name = "acmix_coreml_proto"
    if name not in sys.modules:
        found = importlib.util.find_spec("coremltools")
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError("No module named 'coremltools'", name="coremltools")
        folder = Path(next(iter(found.submodule_search_locations)), "proto")
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{name}.Model_pb2").Model


MAIN = "main"
"""The function that a prediction runs, where there is one only."""


def main_function(specification: Specification) -> Any:
    """The function that a prediction runs."""
    return specification.mlProgram.functions[MAIN]


def operations(specification: Specification, constants: bool = False, function_name: str = MAIN) -> Iterator[Operation]:
    """Every operation of a function in order, those of nested blocks included; constants only when asked for."""
    function = specification.mlProgram.functions[function_name]
    yield from _of_block(function.block_specializations[function.opset], constants)


def _of_block(block: Any, constants: bool) -> Iterator[Operation]:
    for operation in block.operations:
        if constants or not operation.type.startswith("const"):
            yield operation
        for nested in operation.blocks:
            yield from _of_block(nested, constants)


def shapes_of(specification: Specification) -> Shapes:
    """The shape of every named value: inputs, constants, results."""
    values = list(main_function(specification).inputs)
    for operation in operations(specification, constants=True):
        values.extend(operation.outputs)
    return {value.name: tuple(axis.constant.size for axis in value.type.tensorType.dimensions) for value in values}


def macs(operation: Operation, shapes: Shapes) -> int:
    """Multiply-accumulates of one operation: convolutions and matrix products; 0 for everything else."""

    def shape(argument: str) -> tuple[int, ...]:
        arguments = operation.inputs[argument].arguments
        return shapes.get(arguments[0].name, ()) if arguments else ()

    if operation.type not in ("conv", "conv_transpose", "linear", "matmul"):
        return 0
    result = prod(shapes[operation.outputs[0].name])
    if operation.type == "conv":
        return result * prod(shape("weight")[1:])
    if operation.type == "conv_transpose":
        return prod(shape("x")) * prod(shape("weight")[1:])
    if operation.type == "linear":
        return result * shape("weight")[-1]
    # One of the left operand's last two axes is the result's rows, whichever way it is transposed.
    left, rows = shape("x"), shapes[operation.outputs[0].name][-2:-1]
    return result * (prod(left[-2:]) // rows[0] if len(left) > 1 else left[0])


def value_of(package: Path, specification: Specification, name: str) -> Any:
    """The float constant called `name` as a numpy array, from the specification or from the weights."""
    import numpy as np

    operation = next(op for op in operations(specification, constants=True) if op.outputs[0].name == name)
    value = operation.attributes["val"]
    shape = shapes_of(specification)[name]
    if value.WhichOneof("value") == "blobFileValue":
        data = blob(package, value.blobFileValue.offset)
        return np.frombuffer(data, np.float16 if len(data) == 2 * prod(shape) else np.float32).reshape(shape)
    tensor = value.immediateValue.tensor
    if tensor.WhichOneof("value") == "bytes":
        return np.frombuffer(tensor.bytes.values, np.float16).reshape(shape)
    return np.array(tensor.floats.values, np.float32).reshape(shape)


def blob(package: Path, offset: int) -> bytes:
    """The values of one tensor of weight.bin; `offset` is where its record is.  Raises ValueError."""
    with (package / WEIGHTS).open("rb") as stream:
        stream.seek(offset)
        sentinel, _, size, start = BLOB_RECORD.unpack(stream.read(BLOB_RECORD.size))
        if sentinel != BLOB_SENTINEL:
            raise ValueError(f"no tensor at byte {offset} of the weights")
        stream.seek(start)
        data = stream.read(size)
    if len(data) != size:
        raise ValueError(f"the weights end inside the tensor at byte {start}")
    return data


def _blob_offsets(operation: Operation) -> Iterator[int]:
    arguments = (a.value for value in operation.inputs.values() for a in value.arguments)
    for value in (*operation.attributes.values(), *arguments):
        if value.WhichOneof("value") == "blobFileValue":
            yield value.blobFileValue.offset


def seal_weights(specification: Specification, package: Path) -> None:
    """Let the package tell a changed weight: Core ML's format has no checksum of its own."""
    from acmix.targets.mil.weights import FINGERPRINT_KEY, fingerprint

    if (package / WEIGHTS).exists():
        data = (package / WEIGHTS).read_bytes()
        specification.description.metadata.userDefined[FINGERPRINT_KEY] = fingerprint(data)


def write_specification(package: Path, specification: Specification) -> None:
    """Replace the package's specification, and what coremltools makes random or adds, by stable bytes.

    Manifest.json names its items by identifiers that only have to differ: derived from the content here, and written
    as coremltools writes it again whenever it opens a package, so that to open one changes no byte.
    """
    data = specification.SerializeToString(deterministic=True)
    # coremltools leaves a file and a folder that their owner alone may read.
    (package / WEIGHTS).parent.chmod(0o755)
    (package / SPECIFICATION).unlink()
    (package / SPECIFICATION).write_bytes(data)
    (package / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    manifest = json.loads((package / MANIFEST).read_text("utf-8"))
    digest = hashlib.sha256(data).hexdigest()
    entries = manifest["itemInfoEntries"]
    renamed = {key: str(uuid.uuid5(uuid.NAMESPACE_OID, digest + item["path"])) for key, item in entries.items()}
    manifest["itemInfoEntries"] = {renamed[key]: entry for key, entry in entries.items()}
    manifest["rootModelIdentifier"] = renamed[manifest["rootModelIdentifier"]]
    (package / MANIFEST).write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", "utf-8")
