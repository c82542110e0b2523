"""A float TFLite file with its weights, or its weights and activations, as int8; ai-edge-quantizer writes it.

The ranges are ours, found once on the captured program for every target. ai-edge-quantizer's own calibrator knows one
observer and takes no ranges from elsewhere by name of a node, so that tensors are recognised by their values here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from acmix.targets.formats import tflite_flatbuffer, tflite_own_scales, tflite_quant_rules
from acmix.targets.formats.tflite_placement import Graph, read_graph
from acmix.targets.formats.tflite_quant_rules import COMPUTE, Plan
from acmix.targets.formats.tflite_quant_values import Watch, activated, moving, observed, recognise
from acmix.toolkit.errors import UsageError
from acmix.toolkit.grid import integers
from acmix.toolkit.pairs import are_own, check_untouched
from acmix.toolkit.quantize import LARGEST_BIAS
from acmix.toolkit.ranges import QuantizedTensor, Range
from acmix.toolkit.target import Array, LoweringJob

if TYPE_CHECKING:
    from torch.fx import Graph as ProgramGraph

NO_LAYERS = "recipe {name!r} leaves no layer as int8: the file would be a float one.\nUse the recipe float32."
_OPERATION = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}
_DEPTHWISE_AXIS = 3
_WEIGHTS = {"num_bits": 8, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}
_ACTIVATIONS = {"num_bits": 8, "symmetric": False, "granularity": "TENSORWISE", "dtype": "INT"}
WEIGHTS_ONLY = {"weight_tensor_config": _WEIGHTS, "compute_precision": "FLOAT", "explicit_dequantize": True}
INTEGER = {
    "weight_tensor_config": _WEIGHTS,
    "activation_tensor_config": _ACTIVATIONS,
    "compute_precision": "INTEGER",
    "explicit_dequantize": False,
}
MinMax = dict[str, Array]


@dataclass(frozen=True)
class Quantized:
    """A quantized file, what was decided, and the activations that it holds as integers."""

    content: bytes
    notes: tuple[str, ...]
    tensors: tuple[QuantizedTensor, ...] = ()


def quantize_weights(content: bytes, job: LoweringJob) -> Quantized:
    """Weights of convolutions and fully connected layers as int8 for each output channel; arithmetic float32.

    XNNPACK unpacks them once, at load, so that the file is small and as fast as a float one. (The dynamic form, whose
    activations are rounded at run time, leaves XNNPACK at every depthwise convolution: 17 partitions for 1.)
    Raises UsageError for layers to keep float, which only ranges can find, and where there is no layer.
    """
    name = job.recipe.name
    if job.kept_float:
        raise UsageError(f"recipe {name!r} keeps no layer float, and {job.kept_float[0]!r} was to be.\nUse mixed.")
    graph = read_graph(content)
    chosen = tflite_quant_rules.layers(graph, ())
    if not chosen.operators:
        raise UsageError(NO_LAYERS.format(name=name))
    written, _ = _write(content, graph, chosen, WEIGHTS_ONLY, {})
    note = f"{name}: the weights of {len(chosen.operators)} layers are int8, one scale a channel; arithmetic is float32"
    return Quantized(written, (note, *_float_notes(graph, chosen, name)))


def quantize(content: bytes, job: LoweringJob, watch: Watch, program: ProgramGraph) -> Quantized:
    """Weights and activations as int8 by the rule of tflite_quant_rules, with the ranges of the job.

    program: the graph whose nodes the ranges name.  Raises UsageError without ranges, for a kept node that the
    program does not have, and where no layer becomes int8.
    """
    ranges = job.ranges
    if ranges is None:
        raise UsageError(f"recipe {job.recipe.name!r} needs ranges, and there are none.\nGive --calibration photos/.")
    graph = read_graph(content)
    values = next(watch.run([ranges.sample], moving(graph)))
    nodes = activated(graph, program, recognise(values, ranges))
    kept, lost = _kept_operators(graph, program, nodes, job.kept_float)
    chosen = tflite_quant_rules.plan(graph, kept)
    if not chosen.operators:
        raise UsageError(NO_LAYERS.format(name=job.recipe.name))
    wanted = chosen.tensors(graph)
    known = {t: ranges.tensors[nodes[t]] for t in wanted if nodes.get(t) in ranges.tensors}
    unknown = [t for t in wanted if t not in known]
    own = program if are_own(ranges) else None
    # With ranges of the program's own nothing is measured: what is left must move values whose range is known.
    seen, count = observed(watch, ranges, job.samples_file, unknown) if own is None else (_no_range(unknown), 0)
    shared = tflite_quant_rules.shared_ranges(graph, chosen, known | seen)
    written, tensors = _write(content, graph, chosen, INTEGER, shared, nodes, own)
    if own is not None:
        check_untouched(ranges, tensors, "tflite")
    name = job.recipe.name
    notes = [
        f"{name}: {len(chosen.operators)} of {len(graph.operators)} operators compute on int8; "
        f"{len(known)} of their activations have the range of a node of the program"
    ]
    if unknown and own is None:
        how = f"{count} calibration samples" if job.samples_file else "one sample, widened by a quarter"
        notes.append(f"{name}: {len(unknown)} activations are the converter's own; their ranges are from {how}")
    if lost:
        notes.append(f"{name}: kept float, but no operator of the file's own: {', '.join(lost)}")
    return Quantized(written, (*notes, *_float_notes(graph, chosen, name)), tensors)


def _no_range(tensors: Sequence[int]) -> dict[int, Range]:
    return dict.fromkeys(tensors, Range(0.0, 0.0))


def _float_notes(graph: Graph, chosen: Plan, name: str) -> tuple[str, ...]:
    counts = Counter((chosen.reasons[i], graph.kinds[i]) for i in sorted(chosen.reasons))
    reasons = dict.fromkeys(reason for reason, _ in counts)
    return tuple(
        f"{name}: float: {', '.join(f'{n} {kind}' for (r, kind), n in sorted(counts.items()) if r == reason)}: {reason}"
        for reason in reasons
    )


def _kept_operators(
    graph: Graph, program: ProgramGraph, nodes: Mapping[int, str], kept: Sequence[str]
) -> tuple[set[int], list[str]]:
    """The operators that compute the kept nodes, and the kept nodes that no operator computes by itself.

    A layer's own result is not in the file where an activation is fused into it: then the first reader's result is.
    """
    tensor_of = {node: tensor for tensor, node in reversed(list(nodes.items()))}
    producer = {t: i for i, operator in enumerate(graph.operators) for t in operator.outputs}
    named = {node.name: node for node in program.nodes}
    found, lost = set(), []
    for name in kept:
        if name not in named:
            raise UsageError(f"kept_float names {name!r}, and the program has no such node.")
        node = named[name]
        while node.name not in tensor_of and len(node.users) == 1:
            node = next(iter(node.users))
        if (tensor := tensor_of.get(node.name)) in producer:
            found.add(producer[tensor])
        else:
            lost.append(name)
    return found, lost


def _write(
    content: bytes,
    graph: Graph,
    chosen: Plan,
    config: Mapping[str, Any],
    ranges: Mapping[int, Range],
    nodes: Mapping[int, str] | None = None,
    own: ProgramGraph | None = None,
) -> tuple[bytes, tuple[QuantizedTensor, ...]]:
    from ai_edge_quantizer.quantizer import Quantizer

    model = tflite_flatbuffer.read_model(content)
    tensors = model.subgraphs[0].tensors
    names = [tensor.name for tensor in tensors]
    # The quantizer addresses operators by patterns on names, and appends to the names of tensors that it adds.
    for index, tensor in enumerate(tensors):
        tensor.name = _name(index).encode()
    quantizer = Quantizer(tflite_flatbuffer.write_model(model), _recipe(graph, chosen, config))
    calibrated: dict[str, MinMax] = {_name(i): _as_min_max(r, len(graph.shape(i))) for i, r in ranges.items()}
    room = _room_for_biases(model, graph, chosen, ranges)
    calibrated |= room
    if own is not None:
        calibrated |= tflite_own_scales.weight_ranges(_weights(model, graph, chosen), own, room)
    made = quantizer.quantize(calibrated or None, enable_progress_bar=False, enable_progress_report=False)
    assert made.quantized_model is not None
    result = tflite_flatbuffer.read_model(bytes(made.quantized_model))
    placed = _placed(result, nodes or {})
    for tensor in result.subgraphs[0].tensors:
        index, added = _index(tensor)
        tensor.name = names[index] + added
    return tflite_flatbuffer.write_model(result), placed


def _name(index: int) -> str:
    return f"t{index}"


def _index(tensor: Any) -> tuple[int, bytes]:
    """Which tensor of the float file this was or was made for, and what was appended to its name."""
    number, _, added = tensor.name[1:].partition(b"_")
    return int(number), b"_" + added if added else b""


def _recipe(graph: Graph, chosen: Plan, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    by_kind: dict[str, list[str]] = {}
    for index in sorted(chosen.operators):
        by_kind.setdefault(graph.kinds[index], []).append(_name(graph.operators[index].outputs[0]))
    return [
        {
            "regex": f"^(?:{'|'.join(map(re.escape, outputs))});",
            "operation": _OPERATION.get(kind, kind),
            "algorithm_key": "min_max_uniform_quantize",
            "op_config": dict(config),
        }
        for kind, outputs in by_kind.items()
    ]


def _as_min_max(values: Range, rank: int) -> MinMax:
    shape = (1,) * rank
    return {"min": np.full(shape, values.low), "max": np.full(shape, values.high)}


def _room_for_biases(model: Any, graph: Graph, chosen: Plan, ranges: Mapping[int, Range]) -> dict[str, MinMax]:
    """Wider weight ranges for channels whose weights are next to nothing beside their bias.

    A bias is an int32 in units of input scale times weight scale: with a vanishing weight scale it would not fit.
    """
    widened: dict[str, MinMax] = {}
    for index in sorted(chosen.operators) if ranges else ():
        kind, operator = graph.kinds[index], graph.operators[index]
        bias = COMPUTE[kind] + 1 if kind == "TRANSPOSE_CONV" else 2
        if kind not in COMPUTE or len(operator.inputs) <= bias or operator.inputs[bias] < 0:
            continue
        weights, biases = (_constant(model, graph, operator.inputs[i]) for i in (1, bias))
        axis = _DEPTHWISE_AXIS if kind == "DEPTHWISE_CONV_2D" else 0
        values = ranges[operator.inputs[COMPUTE[kind]]]
        bounds = np.abs(weights).max(tuple(a for a in range(weights.ndim) if a != axis), keepdims=True)
        needed = 127 * np.abs(biases) / (integers(values, "").scale * LARGEST_BIAS)
        if np.any(needed.reshape(bounds.shape) > bounds):
            name = _name(operator.inputs[1])
            wide = np.maximum(bounds, needed.reshape(bounds.shape))
            if name in widened:  # a weight that two layers read
                wide = np.maximum(wide, widened[name]["max"])
            widened[name] = {"min": -wide, "max": wide}
    return widened


def _weights(model: Any, graph: Graph, chosen: Plan) -> dict[str, tuple[Array, int]]:
    """The weights of every chosen layer, with the axis of their channels."""
    found = {}
    for index in sorted(chosen.operators):
        if (kind := graph.kinds[index]) in COMPUTE:
            tensor = graph.operators[index].inputs[1]
            axis = _DEPTHWISE_AXIS if kind == "DEPTHWISE_CONV_2D" else 0
            found[_name(tensor)] = (_constant(model, graph, tensor), axis)
    return found


def _constant(model: Any, graph: Graph, index: int) -> Array:
    data = np.frombuffer(bytes(model.buffers[graph.tensors[index].buffer].data), np.float32)
    return data.reshape(graph.shape(index)).astype(np.float64)


def _placed(model: Any, nodes: Mapping[int, str]) -> tuple[QuantizedTensor, ...]:
    """The int8 activations of a file; what a node's value appears as more than once is told once."""
    subgraph = model.subgraphs[0]
    codes = [code.builtinCode for code in model.operatorCodes]
    rounded = {
        output
        for operator in subgraph.operators
        if codes[operator.opcodeIndex] == schema.BuiltinOperator.QUANTIZE
        and subgraph.tensors[operator.inputs[0]].type == schema.TensorType.FLOAT32
        for output in operator.outputs
    }
    padded = {
        _index(subgraph.tensors[operator.outputs[0]])[0]: _index(subgraph.tensors[operator.inputs[0]])[0]
        for operator in subgraph.operators
        if codes[operator.opcodeIndex] == schema.BuiltinOperator.PAD
    }
    found: dict[tuple[str, float, int, bool], None] = {}
    for index, tensor in enumerate(subgraph.tensors):
        if tensor.type == schema.TensorType.INT8 and model.buffers[tensor.buffer].data is None:
            q, source, made = tensor.quantization, _index(tensor)[0], index not in rounded
            # A float padding before a layer is inside the program's layer: what is rounded there is its source.
            node = nodes.get(source, "") or ("" if made else nodes.get(padded.get(source, -1), ""))
            found[node, float(q.scale[0]), int(q.zeroPoint[0]), made] = None
    return tuple(QuantizedTensor(node, scale, zero, for_all=made) for node, scale, zero, made in found)
