"""Which operators of a TFLite file the XNNPACK delegate takes, as the interpreter itself partitioned them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from acmix.targets.formats import tflite_flatbuffer
from acmix.toolkit.target import Operator, Placement

DELEGATE = "XNNPACK"
LARGEST_RANK = 6
NUMERIC = frozenset({"float32", "int8", "uint8"})
_KNOWN = """
    ABS ADD AVERAGE_POOL_2D BATCH_MATMUL CEIL CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE
    DIV ELU FLOOR FULLY_CONNECTED GELU HARD_SWISH LEAKY_RELU LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL NEG PAD
    PRELU QUANTIZE RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR ROUND RSQRT SLICE SOFTMAX SPACE_TO_DEPTH SPLIT
    SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM TANH TRANSPOSE TRANSPOSE_CONV
"""
KINDS = frozenset(_KNOWN.split())
"""What the delegate knows at all. Explains what it left out; decides nothing."""


@dataclass(frozen=True)
class Graph:
    """The main graph of one file."""

    kinds: tuple[str, ...]
    operators: Sequence[Any]
    tensors: Sequence[Any]
    constants: frozenset[int]

    def shape(self, index: int) -> tuple[int, ...]:
        shape = self.tensors[index].shape
        return tuple(int(n) for n in shape) if shape is not None else ()


def read_graph(file: Path | bytes) -> Graph:
    """The main graph of a TFLite file; raises ValueError when the file is not whole."""
    model = tflite_flatbuffer.read_model(file)
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    codes = [names.get(c.builtinCode, str(c.builtinCode)) for c in model.operatorCodes]
    kinds = [
        c.customCode.decode() if name == "CUSTOM" and c.customCode else name
        for name, c in zip(codes, model.operatorCodes, strict=True)
    ]
    graph = model.subgraphs[0]
    constants = {i for i, t in enumerate(graph.tensors) if model.buffers[t.buffer].data is not None}
    operators = graph.operators or []
    return Graph(tuple(kinds[o.opcodeIndex] for o in operators), operators, graph.tensors, frozenset(constants))


def placement(file: Path) -> Placement:
    """Every operator of the file in order; raises ValueError when the file is not whole.

    The interpreter lists its nodes after allocation: the file's operators, then one node for each partition with
    the tensors that enter and leave it. An operator is delegated when a partition's results need it.
    """
    graph = read_graph(file)
    partitions = partitions_of(file, graph)
    taken = set().union(*partitions)
    operators = [_operator(graph, i, i in taken, taken) for i in range(len(graph.operators))]
    used = f"the interpreter of ai-edge-litert {version('ai-edge-litert')}, default XNNPACK delegate, on this machine"
    return Placement(tuple(operators), len(partitions), used)


def partitions_of(file: Path, graph: Graph) -> list[set[int]]:
    """The operators of each partition that the delegate takes, by their places in the file."""
    interpreter = Interpreter(model_path=str(file), num_threads=1)
    interpreter.allocate_tensors()
    found = interpreter._get_ops_details()[len(graph.operators) :]
    return [_members(graph, set(one["inputs"].tolist()), one["outputs"].tolist()) for one in found]


def _members(graph: Graph, entering: set[int], leaving: Sequence[int]) -> set[int]:
    producer = {t: i for i, o in enumerate(graph.operators) for t in o.outputs}
    members: set[int] = set()
    wanted = [t for t in leaving if t not in entering]
    while wanted:
        index = producer.get(wanted.pop())
        if index is None or index in members:
            continue
        members.add(index)
        wanted += [t for t in graph.operators[index].inputs if t not in entering]
    return members


def _operator(graph: Graph, index: int, delegated: bool, taken: set[int]) -> Operator:
    kind, operator = graph.kinds[index], graph.operators[index]
    first = graph.tensors[operator.outputs[0]].name.decode()
    return Operator(
        kind=kind,
        name=first.partition(";")[0],
        runs_on=DELEGATE if delegated else "TFLite kernel",
        delegated=delegated,
        reason="" if delegated else refusal(graph, index, taken),
        macs=_MACS[kind](graph, operator) if kind in _MACS else 0,
        changes_layout=kind == "TRANSPOSE",
    )


def refusal(graph: Graph, index: int, taken: set[int]) -> str:
    """Why the delegate left an operator out, as far as its documented limits tell."""
    kind, operator = graph.kinds[index], graph.operators[index]
    if kind not in KINDS:
        return f"{kind} is not in the XNNPACK delegate's operator list"
    if kind == "DEQUANTIZE" and operator.inputs[0] in graph.constants:
        consumers = {graph.kinds[i] for i, o in enumerate(graph.operators) if operator.outputs[0] in o.inputs}
        return f"its weights are read by {', '.join(sorted(consumers))} outside the delegate"
    moving = [t for t in (*operator.inputs, *operator.outputs) if t >= 0 and t not in graph.constants]
    for tensor in moving:
        dtype = tflite_flatbuffer.tensor_dtype(graph.tensors[tensor])
        if dtype not in NUMERIC:
            return f"a tensor is {dtype}; XNNPACK takes float32 and 8-bit integers"
        if len(graph.shape(tensor)) > LARGEST_RANK:
            return f"a tensor has {len(graph.shape(tensor))} axes; XNNPACK takes {LARGEST_RANK}"
    return _weights_refusal(graph, index, taken)


def _weights_refusal(graph: Graph, index: int, taken: set[int]) -> str:
    kind, operator = graph.kinds[index], graph.operators[index]
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "PRELU"):
        producer = {t: i for i, o in enumerate(graph.operators) for t in o.outputs}
        if operator.inputs[1] not in graph.constants and producer.get(operator.inputs[1]) not in taken:
            return "its weights are computed at run time; XNNPACK packs constants"
        if kind.endswith("CONV_2D") and (len(operator.inputs) < 3 or operator.inputs[2] < 0):
            return "it has no bias; XNNPACK's convolution wants one"
    return "XNNPACK has this operator, but not with these shapes or parameters"


def _convolution(graph: Graph, operator: Any) -> int:
    return prod(graph.shape(operator.outputs[0])) * prod(graph.shape(operator.inputs[1])[1:])


def _depthwise(graph: Graph, operator: Any) -> int:
    return prod(graph.shape(operator.outputs[0])) * prod(graph.shape(operator.inputs[1])[1:3])


def _transposed(graph: Graph, operator: Any) -> int:
    return prod(graph.shape(operator.inputs[2])) * prod(graph.shape(operator.inputs[1])[:3])


def _fully_connected(graph: Graph, operator: Any) -> int:
    return prod(graph.shape(operator.outputs[0])) * graph.shape(operator.inputs[1])[-1]


def _matrix_product(graph: Graph, operator: Any) -> int:
    shape = graph.shape(operator.inputs[0])
    return prod(graph.shape(operator.outputs[0])) * shape[-2 if operator.builtinOptions.adjX else -1]


_MACS: dict[str, Callable[[Graph, Any], int]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _matrix_product,
}
