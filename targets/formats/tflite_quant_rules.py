"""Which operators of a TFLite file compute on integers, and which of their tensors share one scale.

The rule keeps everything inside one XNNPACK partition, measured on ai-edge-litert 2.3:

1. Convolutions and fully connected layers with constant weights become integers.
2. What moves, joins, averages or scales their results follows, where XNNPACK has an int8 kernel, everything that it
   reads is integers already and somebody reads its result as integers.
3. All else stays float. XNNPACK has no int8 kernel for HARD_SWISH, SOFTMAX, RSQRT, AVERAGE_POOL_2D, a RELU of its own
   or a product of two activations (BATCH_MATMUL): one such operator would end the partition. A MUL of two full
   activations (LSNet's predicted taps) has one, but no range that calibration could fix; a gate, one number a channel
   or one constant, has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

from ai_edge_litert import schema_py_generated as schema

from acmix.targets.formats.tflite_placement import Graph
from acmix.toolkit.ranges import Range

COMPUTE = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 0, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 2}
"""Read constant weights as their second input. Value: which input is the activation."""
MOVES = frozenset({"RESHAPE", "TRANSPOSE", "PAD", "SLICE", "STRIDED_SLICE", "SPLIT", "MAX_POOL_2D", "RESIZE_BILINEAR"})
"""Give back values that they were given: kernels want one scale before and after."""
JOINS = frozenset({"ADD", "CONCATENATION"})
SHARED = MOVES | {"CONCATENATION"}
FIXED = {"LOGISTIC": Range(0.0, 255 / 256)}
"""Kernels have this output range built in: scale 1 / 256."""
FOLLOW = MOVES | JOINS | FIXED.keys() | {"MEAN", "MUL"}

WITHOUT_KERNEL = frozenset({"AVERAGE_POOL_2D", "BATCH_MATMUL", "HARD_SWISH", "RELU", "RSQRT", "SOFTMAX"})
"""Measured: their int8 forms run outside XNNPACK, their float forms inside."""

NO_KERNEL = "XNNPACK has no int8 kernel for it"
NOT_CARRYING = "only layers with weights, and what moves, joins, averages or gates their results, become integers"
NOT_INTEGER = "something that it reads is float"
NOT_READ = "nobody reads its result as integers"
KEPT = "the recipe keeps it float"
DYNAMIC = "its weights are computed at run time"
FREE = "both operands are activations of full size, whose product has no range that calibration could fix"
VECTOR = "it has a constant for each channel, and XNNPACK takes one scale for all of them"


@dataclass(frozen=True)
class Plan:
    """The operators that compute on integers, and why each other one that could have does not."""

    operators: frozenset[int]
    reasons: Mapping[int, str] = field(default_factory=dict)

    def tensors(self, graph: Graph) -> list[int]:
        """Every activation that an integer operator reads or makes."""
        return list(dict.fromkeys(t for i in sorted(self.operators) for t in _activations(graph, i)))


def layers(graph: Graph, kept: Iterable[int]) -> Plan:
    """The operators whose weights become integers while the arithmetic stays float."""
    kept = set(kept)
    chosen: set[int] = set()
    reasons: dict[int, str] = {}
    for index, kind in enumerate(graph.kinds):
        if kind in COMPUTE:
            reason = KEPT if index in kept else ("" if _has_constant_weights(graph, index) else DYNAMIC)
            chosen.update(() if reason else (index,))
            reasons.update({index: reason} if reason else {})
    return Plan(frozenset(chosen), reasons)


def plan(graph: Graph, kept: Iterable[int]) -> Plan:
    """The rule above. kept: the operators that stay float whatever they are."""
    kept = frozenset(kept)
    found = layers(graph, kept)
    chosen, reasons = set(found.operators), dict(found.reasons)
    made = {t for operator in graph.operators for t in operator.outputs}
    read = {t for operator in graph.operators for t in operator.inputs if t >= 0}
    integers = {t for t in read - made - graph.constants if graph.tensors[t].type == schema.TensorType.FLOAT32}
    for index in range(len(graph.operators)):
        if index not in chosen and index not in reasons:
            reason = KEPT if index in kept else _refusal(graph, index, integers)
            if reason:
                reasons[index] = reason
            else:
                chosen.add(index)
        if index in chosen:
            integers.update(graph.operators[index].outputs)
    for index in reversed(range(len(graph.operators))):
        if index in chosen and graph.kinds[index] not in COMPUTE and not _is_read(graph, index, chosen):
            chosen.discard(index)
            reasons[index] = NOT_READ
    return Plan(frozenset(chosen), reasons)


def _refusal(graph: Graph, index: int, integers: set[int]) -> str:
    kind, operator = graph.kinds[index], graph.operators[index]
    if kind not in FOLLOW:
        return NO_KERNEL if kind in WITHOUT_KERNEL else NOT_CARRYING
    if any(t not in integers for t in _sources(graph, index)):
        return NOT_INTEGER
    if kind not in ("MUL", "ADD"):
        return ""
    constants = [t for t in operator.inputs if t in graph.constants]
    if any(prod(graph.shape(t)) > 1 for t in constants):
        return VECTOR
    return "" if constants or kind == "ADD" or _has_gate(graph, index) else FREE


def _has_gate(graph: Graph, index: int) -> bool:
    shapes = [graph.shape(t) for t in graph.operators[index].inputs]
    channels = max(shape[-1] if shape else 1 for shape in shapes)
    return min(prod(shape) for shape in shapes) <= channels


def _is_read(graph: Graph, index: int, chosen: set[int]) -> bool:
    outputs = set(graph.operators[index].outputs)
    return any(outputs & set(_sources(graph, reader)) for reader in chosen)


def _has_constant_weights(graph: Graph, index: int) -> bool:
    return graph.operators[index].inputs[1] in graph.constants


def _sources(graph: Graph, index: int) -> list[int]:
    """The activations that an operator reads."""
    inputs = graph.operators[index].inputs
    return [
        t for t in inputs if t >= 0 and t not in graph.constants and graph.tensors[t].type == schema.TensorType.FLOAT32
    ]


def _activations(graph: Graph, index: int) -> list[int]:
    return [*_sources(graph, index), *graph.operators[index].outputs]


def shared_ranges(graph: Graph, chosen: Plan, ranges: Mapping[int, Range]) -> dict[int, Range]:
    """The ranges with those of one group made equal: what a move reads and makes, a concatenation's parts and whole.

    A group whose scale is built into a kernel keeps that; XNNPACK converts between scales where two such groups meet.
    """
    group = {tensor: [tensor] for tensor in ranges}
    fixed: dict[int, Range] = {}
    for index in sorted(chosen.operators):
        kind = graph.kinds[index]
        if kind in FIXED:
            fixed[graph.operators[index].outputs[0]] = FIXED[kind]
        first, *others = _activations(graph, index)
        for other in others if kind in SHARED else ():
            if group[first] is not group[other]:
                merged = group[first] + group[other]
                group.update(dict.fromkeys(merged, merged))
    return {tensor: _range_of(members, ranges, fixed) for tensor, members in group.items()} | fixed


def _range_of(members: Iterable[int], ranges: Mapping[int, Range], fixed: Mapping[int, Range]) -> Range:
    members = list(members)
    built_in = next((fixed[m] for m in members if m in fixed), None)
    whole = _union(ranges[m] for m in members)
    inside = built_in is not None and whole.low >= built_in.low and whole.high <= 1.0
    return built_in if built_in is not None and inside else whole


def _union(ranges: Iterable[Range]) -> Range:
    ranges = list(ranges)
    return Range(min(r.low for r in ranges), max(r.high for r in ranges))
