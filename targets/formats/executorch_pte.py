"""Read a .pte file: the instructions of its forward method and the XNNPACK graphs inside its delegates.

Both are FlatBuffers (ExecuTorch 1.5: exir/_serialize/program.fbs, backends/xnnpack/serialization/schema.fbs).
Reading the few fields we need takes milliseconds; the package's own reader imports the converter first (4 s).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from acmix.targets.formats.executorch_flatbuffer import Table, root

KERNEL_CALL, DELEGATE_CALL, TENSOR, XNN_QUANTIZED_VALUE = 1, 2, 5, 2
XNN_NODES = [
    "Add",
    "FullyConnected",
    "Softmax",
    "Sigmoid",
    "StaticTranspose",
    "Clamp",
    "Conv2d",
    "Div",
    "StaticResizeBilinear2D",
    "StaticConstantPad",
    "AvgPooling2d",
    "Minimum",
    "DepthwiseConv2d",
    "MaxPooling2d",
    "Multiply",
    "Subtract",
    "Floor",
    "Convert",
    "GlobalAvgPooling2d",
    "StaticReshape",
    "ArgMaxPooling2d",
    "SquareRoot",
    "Ceiling",
    "Hardswish",
    "LeakyReLU",
    "Maximum",
    "Negate",
    "Square",
    "ELU",
    "Abs",
    "PReLU",
    "Concatenate2",
    "Concatenate3",
    "Concatenate4",
    "StaticSlice",
    "ScaledDotProductAttention",
    "BatchMatrixMultiply",
    "Concatenate5",
    "ConvTranspose2d",
    "ReciprocalSquareRoot",
    "Log",
    "Gelu",
    "Tanh",
    "Exp",
    "Sin",
    "Copy",
    "Cos",
]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the program: its shape and ExecuTorch's number of its dtype (5: half, 6: float)."""

    shape: tuple[int, ...]
    scalar_type: int


@dataclass(frozen=True)
class XnnNode:
    """One node of a delegate's XNNPACK graph."""

    kind: str
    macs: int


@dataclass(frozen=True)
class KernelCall:
    """One call of a portable kernel: its operator (aten::cumsum.out) and its tensor arguments, output last."""

    operator: str
    tensors: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class DelegateCall:
    """One call of a delegate; nodes is empty where the blob is not an XNNPACK graph."""

    backend: str
    nodes: tuple[XnnNode, ...]


Instruction = KernelCall | DelegateCall


def read_instructions(file: Path, method: str = "forward") -> tuple[Instruction, ...]:
    """The instructions of one method, in order.  Raises ValueError on anything that is not a whole .pte file."""
    data = file.read_bytes()
    if data[4:8] != b"ET12":
        raise ValueError(f"{file.name} is not an ExecuTorch program: its identifier is {data[4:8]!r}, not ET12")
    try:
        program = root(data)
        plans = {plan.string(0): plan for plan in program.tables(1)}
        return tuple(_instructions(program, plans[method], data))
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.name} is truncated or corrupt: {error}") from error


def _instructions(program: Table, plan: Table, data: bytes) -> Iterator[Instruction]:
    operators = [f"{op.string(0)}.{op.string(1)}" for op in plan.tables(6)]
    delegates = plan.tables(7)
    values = plan.tables(2)
    for chain in plan.tables(5):
        for instruction in chain.tables(2):
            call, kind = instruction.table(1), instruction.number(0, "B")
            if kind == KERNEL_CALL:
                arguments = [values[index] for index in call.numbers(1, "i")]
                tensors = tuple(_tensor(a.table(1)) for a in arguments if a.number(0, "B") == TENSOR)
                yield KernelCall(operators[call.number(0, "i")], tensors)
            elif kind == DELEGATE_CALL:
                delegate = delegates[call.number(0, "i")]
                blob = _delegate_blob(program, delegate, data)
                yield DelegateCall(delegate.string(0), _xnn_nodes(blob))


def _tensor(tensor: Table) -> TensorInfo:
    return TensorInfo(tuple(tensor.numbers(2, "i")), tensor.number(0, "b"))


def _delegate_blob(program: Table, delegate: Table, data: bytes) -> bytes:
    reference = delegate.table(1)
    in_segment, index = reference.number(0, "b") == 1, reference.number(1, "I")
    if not in_segment:
        return bytes(program.tables(3)[index].numbers(0, "B"))
    # The extended header follows the identifier: "eh00", its length, the program's size, the segments' base.
    base = struct.unpack_from("<Q", data, 24)[0]
    segment = program.tables(4)[index]
    start, size = base + segment.number(0, "Q"), segment.number(1, "Q")
    if start + size > len(data):
        raise IndexError(f"a delegate ends at byte {start + size}, the file at {len(data)}")
    return data[start : start + size]


def _xnn_nodes(blob: bytes) -> tuple[XnnNode, ...]:
    if blob[4:8] != b"XH00":
        return ()
    offset, size = struct.unpack_from("<II", blob, 10)
    graph = root(blob[offset : offset + size])
    shapes: dict[int, tuple[int, ...]] = {}
    for value in graph.tables(2):
        tensor = value.table(1)
        if value.number(0, "B") == XNN_QUANTIZED_VALUE:
            tensor = tensor.table(0)
        shapes[tensor.number(6, "I")] = tuple(tensor.numbers(2, "I"))
    nodes = ((XNN_NODES[node.number(0, "B") - 1], node.table(1)) for node in graph.tables(1))
    return tuple(XnnNode(f"XNN{kind}", _macs(kind, node, shapes)) for kind, node in nodes)


def _macs(kind: str, node: Table, shapes: dict[int, tuple[int, ...]]) -> int:
    def value(slot: int) -> int:
        return node.number(slot, "I")

    if kind in ("Conv2d", "DepthwiseConv2d"):
        return math.prod(shapes[value(18)]) * value(10) * value(4) * value(5)
    if kind == "ConvTranspose2d":
        return math.prod(shapes[value(15)]) * value(11) * value(4) * value(5)
    if kind == "FullyConnected":
        return math.prod(shapes[value(3)]) * shapes[value(0)][-1]
    if kind == "BatchMatrixMultiply":
        return math.prod(shapes[value(2)]) * shapes[value(0)][-1]
    return 0
