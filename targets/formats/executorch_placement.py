"""Where each operator of an ExecuTorch program runs: as its lowering knows it, and as its file shows it."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acmix.targets.formats.executorch_pte import DelegateCall, KernelCall, read_instructions
from acmix.toolkit.target import Operator, Placement

if TYPE_CHECKING:
    from torch import fx

BACKENDS = {"XnnpackBackend": "XNNPACK", "CoreMLBackend": "Core ML", "VulkanBackend": "Vulkan"}
LAYOUT_KINDS = ("permute_copy", "transpose_copy", "_clone_dim_order", "_to_dim_order_copy", "StaticTranspose")
REASON_UNKNOWN = "the partitioner left it out; its reason is known while lowering only"
PLACED = "acmix_operator"


class Reasons(logging.Handler):
    """Collects, by node name, why a partitioner refuses a node (executorch.exir.backend.utils.WhyNoPartition)."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.by_node: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        # The record holds one object that its logger changes for every message: read it at once.
        node, reason = getattr(record.msg, "node", None), getattr(record.msg, "reason", "")
        if node is not None and reason:
            self.by_node[node.name] = _explained(node, reason)


def _explained(node: fx.Node, reason: str) -> str:
    if reason != "invalid dtype":
        return reason
    values: list[Any] = [argument.meta.get("val") for argument in node.all_input_nodes]
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in values if hasattr(value, "dtype")})
    return f"XNNPACK does not take {' with '.join(dtypes)} tensors"


@contextlib.contextmanager
def recorded_reasons() -> Iterator[Reasons]:
    """Listen to XNNPACK's partitioner while this is open."""
    reasons = Reasons()
    logger = logging.getLogger("executorch.backends.xnnpack.partition.config")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(reasons)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield reasons
    finally:
        logger.removeHandler(reasons)
        logger.setLevel(level)
        logger.propagate = propagate


def tag_operators(graph_module: fx.GraphModule, reasons: Reasons, backend: str) -> None:
    """Note on every node of the partitioned program what it is and why it is where it is.

    The notes go through the rest of the lowering, which renames nodes and drops some.
    """
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and _is_operator(node):
            no_kernel = f"no {backend} kernel for this operator"
            reason = reasons.by_node.get(node.name, no_kernel)
            node.meta[PLACED] = _operator(node, "portable", False, reason)


def lowered_placement(graph_module: fx.GraphModule, backend: str) -> Placement:
    """The operators of the finished program: the portable ones, and those inside each delegate, in order."""
    operators: list[Operator] = []
    partitions = 0
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        if _kind(node) == "executorch_call_delegate":
            partitions += 1
            inside = getattr(graph_module, node.args[0].target).original_module.graph.nodes
            calls = (inner for inner in inside if inner.op == "call_function" and _is_operator(inner))
            operators.extend(_operator(inner, backend, True) for inner in calls)
        elif _is_operator(node):
            added = "ExecuTorch adds it after partitioning"
            operators.append(node.meta.get(PLACED) or _operator(node, "portable", False, added))
    return Placement(tuple(operators), partitions, determined_by="the partitioner, while lowering")


def file_placement(file: Path) -> Placement:
    """The same, read from the saved file alone; its delegates name XNNPACK's nodes, not the model's operators."""
    operators: list[Operator] = []
    partitions = 0
    for instruction in read_instructions(file):
        if isinstance(instruction, KernelCall):
            operators.append(_kernel(instruction, len(operators)))
            continue
        operators.extend(_delegated(instruction, partitions))
        partitions += 1
    return Placement(tuple(operators), partitions, determined_by="the instructions of the .pte file")


def _delegated(call: DelegateCall, partition: int) -> list[Operator]:
    backend = BACKENDS.get(call.backend, call.backend)
    if not call.nodes:
        return [Operator(call.backend, f"partition {partition}", backend, True)]
    return [
        Operator(
            node.kind,
            f"partition {partition}, node {number}",
            backend,
            delegated=True,
            macs=node.macs,
            changes_layout=node.kind.endswith(LAYOUT_KINDS),
        )
        for number, node in enumerate(call.nodes)
    ]


def _kernel(call: KernelCall, index: int) -> Operator:
    base = call.operator.partition(".")[0]
    is_cast = len(call.tensors) > 1 and call.tensors[0].scalar_type != call.tensors[-1].scalar_type
    return Operator(
        call.operator,
        f"instruction {index}",
        "portable",
        delegated=False,
        reason=REASON_UNKNOWN,
        macs=_macs(base.rpartition("::")[2], [tensor.shape for tensor in call.tensors], call.tensors[-1].shape)
        if call.tensors
        else 0,
        changes_layout=base.endswith(LAYOUT_KINDS) and not is_cast,
    )


def _kind(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _is_operator(node: fx.Node) -> bool:
    # Everything else is bookkeeping that the file does not run: getitem, memory planning's alloc and view.
    return "." in _kind(node)


def _operator(node: fx.Node, runs_on: str, delegated: bool, reason: str = "") -> Operator:
    kind = _kind(node)
    base = kind.split(".")[-2]
    inputs: list[Any] = [argument.meta.get("val") for argument in node.all_input_nodes]
    shapes = [tuple(value.shape) for value in inputs if hasattr(value, "shape")]
    value: Any = node.meta.get("val")
    is_cast = bool(inputs) and getattr(inputs[0], "dtype", None) != getattr(value, "dtype", None)
    return Operator(
        kind,
        node.name,
        runs_on,
        delegated,
        reason,
        macs=_macs(base, shapes, tuple(value.shape), node.args) if hasattr(value, "shape") else 0,
        changes_layout=base.endswith(LAYOUT_KINDS) and not is_cast,
    )


def _macs(base: str, inputs: list[tuple[int, ...]], output: tuple[int, ...], arguments: tuple[Any, ...] = ()) -> int:
    """inputs: the shapes of the tensor arguments in order; a convolution's filter is [out, in / groups, h, w]."""
    if base in ("convolution", "conv1d", "conv2d", "conv_transpose2d"):
        transposed = base == "conv_transpose2d" or (base == "convolution" and len(arguments) > 6 and arguments[6])
        return math.prod(inputs[0] if transposed else output) * math.prod(inputs[1][1:])
    if base in ("linear", "mm", "bmm", "matmul"):
        return math.prod(output) * inputs[0][-1]
    if base == "addmm":
        return math.prod(output) * inputs[1][-1]
    if base == "scaled_dot_product_attention":
        query, key, value = inputs[:3]
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return 0
