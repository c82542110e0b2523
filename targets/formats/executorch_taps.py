"""A copy of a .pte file that gives every intermediate value as an output, those inside XNNPACK's delegates too.

An XNNPACK delegate holds a graph of its own as a FlatBuffer. A value of it becomes external when it has the flag of
an external output, an external id, and a tensor of the program as the argument of that place in the delegate's call
(ExecuTorch 1.5: backends/xnnpack/serialization/schema.fbs, exir/_serialize/program.fbs).
"""

from __future__ import annotations

import json
import math
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acmix.toolkit.errors import UsageError
from acmix.toolkit.target import Tap

EXTERNAL_OUTPUT = 2
ALIGNMENT_BYTES = 64
# XNNPACK's data types that a tensor of the program can hold: its name, ExecuTorch's number, bytes an element.
SCALARS = {
    "xnn_datatype_fp32": (6, 4),
    "xnn_datatype_fp16": (5, 2),
    "xnn_datatype_qint8": (1, 1),
    "xnn_datatype_quint8": (0, 1),
}
FLOAT_BYTES = {5: 2, 6: 4}


def tap(file: Path, copy: Path) -> tuple[Tap, ...]:
    """Write `copy`: the same program and weights, each value declared as one more output, in order.

    Raises UsageError when the file is damaged, or delegates to something other than XNNPACK.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary

    try:
        pte = deserialize_pte_binary(file.read_bytes())
    except (ValueError, IndexError, KeyError, struct.error, AssertionError) as error:
        raise UsageError(f"'{file.name}' is not a whole ExecuTorch program: {error}. Export it again.") from error
    plan = next(plan for plan in pte.program.execution_plan if plan.name == "forward")
    taps = []
    for value, one in list(_taps(pte.program, plan, file)):
        if value not in plan.outputs:
            plan.outputs.append(value)
            taps.append(one)
    copy.write_bytes(bytes(serialize_pte_binary(pte, extract_delegate_segments=True)))
    return tuple(taps)


def _taps(program: Any, plan: Any, file: Path) -> Iterator[tuple[int, Tap]]:
    """The program's value and the tap of every result, in the order of the instructions; changes the program."""
    from executorch.exir.schema import DelegateCall, KernelCall

    for chain in plan.chains:
        for instruction in chain.instructions:
            call = instruction.instr_args
            if isinstance(call, DelegateCall):
                yield from _delegate_taps(program, plan, call, file)
            elif isinstance(call, KernelCall) and _own_memory(plan, call.args[-1]):
                yield call.args[-1], Tap(f"value.{call.args[-1]}")


def _delegate_taps(program: Any, plan: Any, call: Any, file: Path) -> Iterator[tuple[int, Tap]]:
    delegate = plan.delegates[call.delegate_index]
    if delegate.id != "XnnpackBackend":
        raise UsageError(
            f"'{file.name}' delegates to {delegate.id}, whose values cannot be read here.\n"
            "Export with --delegate xnnpack to compare layers."
        )
    data = program.backend_delegate_data[delegate.processed.index]
    blob = bytes(data.data)
    offset, size = struct.unpack_from("<II", blob, 10)
    graph = as_json(blob[offset : offset + size])
    outputs = list(call.args[len(graph["input_ids"]) :])
    for value in graph["xvalues"]:
        if tensor := _tappable(value):
            tensor["external_id"], tensor["flags"] = len(call.args), EXTERNAL_OUTPUT
            graph["output_ids"].append(len(call.args))
            call.args.append(_add_tensor(plan, tensor))
            yield call.args[-1], _tap(f"delegate.{call.delegate_index}.{tensor['id_out']}", value)
    graph["num_externs"] = len(call.args)
    data.data = _with_graph(blob, _as_flatbuffer(graph))
    for value in outputs:
        if _own_memory(plan, value):
            yield value, Tap(f"value.{value}")


def tensor_of(value: dict[str, Any]) -> dict[str, Any]:
    """What is said of one value of a graph, quantized or not."""
    union: dict[str, Any] = value["xvalue_union"]
    tensor: dict[str, Any] = union.get("tensor_value", union)
    return tensor


def _tappable(value: dict[str, Any]) -> dict[str, Any] | None:
    """The tensor of a value that is computed, is not external yet, and has numbers that a program can hold."""
    tensor = tensor_of(value)
    computed = tensor["constant_buffer_idx"] == 0 and tensor["flags"] == 0 and tensor.get("dims")
    return tensor if computed and tensor["datatype"] in SCALARS else None


def _tap(name: str, value: dict[str, Any]) -> Tap:
    params = value["xvalue_union"].get("quant_params")
    return Tap(name, params["scale"], params["zero_point"]) if params else Tap(name)


def _add_tensor(plan: Any, tensor: dict[str, Any]) -> int:
    """A new tensor of the program, in memory of its own; its index."""
    from executorch.exir.schema import EValue, Tensor, TensorShapeDynamism

    number, size = SCALARS[tensor["datatype"]]
    dims = list(tensor["dims"])
    made = Tensor(
        scalar_type=_scalar_type(number),
        storage_offset=0,
        sizes=dims,
        dim_order=list(range(len(dims))),
        requires_grad=False,
        layout=0,
        data_buffer_idx=0,
        allocation_info=_allocate(plan, math.prod(dims) * size),
        shape_dynamism=TensorShapeDynamism.STATIC,
    )
    plan.values.append(EValue(made))
    return len(plan.values) - 1


def _scalar_type(number: int) -> Any:
    from executorch.exir.scalar_type import ScalarType

    return ScalarType(number)


def _allocate(plan: Any, size: int) -> Any:
    from executorch.exir.schema import AllocationDetails

    sizes = plan.non_const_buffer_sizes
    if len(sizes) < 2:
        sizes.append(0)
    start = -(-sizes[1] // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    sizes[1] = start + size
    return AllocationDetails(1, start & 0xFFFFFFFF, start >> 32)


def _own_memory(plan: Any, index: int) -> bool:
    """Move a floating-point tensor to memory that no other one reuses; False where it is none, or has none planned."""
    from executorch.exir.schema import Tensor

    tensor = plan.values[index].val
    if not isinstance(tensor, Tensor) or tensor.allocation_info is None or not tensor.sizes:
        return False
    if tensor.scalar_type not in FLOAT_BYTES:
        return False
    tensor.allocation_info = _allocate(plan, math.prod(tensor.sizes) * FLOAT_BYTES[tensor.scalar_type])
    return True


def as_json(graph: bytes) -> dict[str, Any]:
    """An XNNPACK graph as its schema names it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "graph.bin").write_bytes(graph)
        schema = _schema(folder)
        _flatc(
            "--json",
            "--defaults-json",
            "--strict-json",
            "--raw-binary",
            "-o",
            folder,
            schema,
            "--",
            f"{folder}/graph.bin",
        )
        text = Path(folder, "graph.json").read_text("utf-8")
    # Clamps without a bound: flatc writes what JSON cannot say, and reads it quoted.
    found: dict[str, Any] = json.loads(re.sub(r":\s*(-?inf|nan)\b", r': "\1"', text))
    return found


def _as_flatbuffer(graph: dict[str, Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "graph.json").write_text(json.dumps(graph), "utf-8")
        _flatc("--binary", "-o", folder, _schema(folder), f"{folder}/graph.json")
        return next(path for path in Path(folder).iterdir() if path.suffix not in (".json", ".fbs")).read_bytes()


def _schema(folder: str) -> str:
    from importlib.resources import files

    path = Path(folder, "schema.fbs")
    path.write_bytes(files("executorch.backends.xnnpack.serialization").joinpath("schema.fbs").read_bytes())
    return str(path)


def _flatc(*arguments: str) -> None:
    from executorch.exir._serialize._flatbuffer import _get_flatc_path

    ended = subprocess.run([_get_flatc_path(), *arguments], capture_output=True, text=True)
    if ended.returncode:
        raise UsageError(
            f"the XNNPACK graph of the file cannot be read: {ended.stdout.strip() or ended.stderr.strip()}"
        )


def _with_graph(blob: bytes, graph: bytes) -> bytes:
    """The delegate's blob with another graph before the same constants (XNNHeader: offsets from its start)."""
    start = struct.unpack_from("<I", blob, 10)[0]
    constants, size = struct.unpack_from("<IQ", blob, 18)
    moved = start + -(-len(graph) // 16) * 16
    header = bytearray(blob[:start])
    struct.pack_into("<IIIQ", header, 10, start, len(graph), moved, size)
    return bytes(header) + graph.ljust(moved - start, b"\0") + blob[constants : constants + size]
