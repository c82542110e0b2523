"""Where pairs sit in an ONNX file and which integers they hold, so that ONNX Runtime fuses every convolution."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from acmix.targets.formats.onnx_graph import WeightType
    from acmix.toolkit.target import Array

SIGNED_TO_UNSIGNED = 128


def fit_kernels(model: onnx.ModelProto, weight_type: WeightType = "int8") -> None:
    """Change a model of pairs in place: unsigned activations, paddings inside convolutions, unshared weights.

    None changes a value: integers that become unsigned move by 128 together with their zero point, and zero is on
    every grid, so padding with it commutes with rounding.  weight_type: of weights with one reader; others are uint8.
    """
    _fold_paddings(model.graph)
    _make_unsigned(model.graph)
    _place_weights(model.graph, weight_type)


def _initializers(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    return readers


def _make_unsigned(graph: onnx.GraphProto) -> None:
    """On x86 ONNX Runtime fuses depthwise convolutions of uint8 activations only: of int8 ones it left 14 of 49."""
    stored = _initializers(graph)
    integers = {name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.output}
    moved: dict[str, str] = {}
    for node in graph.node:
        quantizes = node.op_type == "QuantizeLinear"
        if not quantizes and not (node.op_type == "DequantizeLinear" and node.input[0] in integers):
            continue
        node.input[2] = _unsigned(graph, stored, node.input[2], moved)
    # Shapes stay, types do not: the interface is float and declared apart.
    _forget(graph, integers)
    _drop_unused(graph)


def _place_weights(graph: onnx.GraphProto, weight_type: WeightType) -> None:
    """Int8 weights stay, each with a zero point of its own, or become uint8, as those with several readers always do.

    Where a processor needs it, ONNX Runtime makes weights and zero points unsigned, and fails on the second reader of
    either. What is unsigned already it leaves alone; on other processors that is the slower kind.
    """
    stored, readers = _initializers(graph), _readers(graph)
    moved: dict[str, str] = {}
    integers = {name for name, tensor in stored.items() if tensor.data_type == onnx.TensorProto.INT8}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in integers or len(node.input) < 3:
            continue
        weight, point = node.input[0], stored[node.input[2]]
        if weight_type == "int8" and len(readers[weight]) == len(readers[node.output[0]]) == 1:
            if len(readers[point.name]) > 1:
                point = numpy_helper.from_array(numpy_helper.to_array(point), f"{node.output[0]}_zero_point")
                graph.initializer.append(point)
                node.input[2] = point.name
        else:
            node.input[0], node.input[2] = (_unsigned(graph, stored, name, moved) for name in (weight, point.name))
    _drop_unused(graph)


def _unsigned(graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto], name: str, moved: dict[str, str]) -> str:
    """The name of the same integers moved by 128, stored once."""
    if name not in moved:
        shifted = (numpy_helper.to_array(stored[name]).astype(np.int32) + SIGNED_TO_UNSIGNED).astype(np.uint8)
        moved[name] = f"{name}_unsigned"
        graph.initializer.append(numpy_helper.from_array(shifted, moved[name]))
    return moved[name]


def _fold_paddings(graph: onnx.GraphProto) -> None:
    """A zero padding between two pairs of one grid becomes the padding of the convolutions that read it."""
    makers = {name: node for node in graph.node for name in node.output}
    readers, stored = _readers(graph), _initializers(graph)
    given = {value.name for value in graph.output}
    removed: list[onnx.NodeProto] = []
    smaller: set[str] = set()
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        begin = makers.get(pad.input[0])
        chain = _pair_and_convolutions(pad, readers)
        if begin is None or begin.op_type != "DequantizeLinear" or chain is None:
            continue
        amounts = _symmetric_or_not(pad, stored)
        quantize, dequantizes, convolutions = chain
        if amounts is None or [_value(n, stored) for n in begin.input[1:]] != [
            _value(n, stored) for n in quantize.input[1:]
        ]:
            continue
        for dequantize, convolution in zip(dequantizes, convolutions, strict=True):
            dequantize.input[0] = begin.input[0]
            smaller.update(dequantize.output)
            _pad_more(convolution, amounts)
        removed += [pad, quantize]
        if len(readers[begin.output[0]]) == 1 and begin.output[0] not in given:
            removed.append(begin)
    for node in removed:
        graph.node.remove(node)
    # Their shapes were those after the padding, and what was removed has none.
    _forget(graph, smaller | {name for node in removed for name in node.output})
    _drop_unused(graph)


def _pair_and_convolutions(
    pad: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]
) -> tuple[onnx.NodeProto, list[onnx.NodeProto], list[onnx.NodeProto]] | None:
    after = readers[pad.output[0]]
    if len(after) != 1 or after[0].op_type != "QuantizeLinear":
        return None
    dequantizes = readers[after[0].output[0]]
    convolutions = []
    for dequantize in dequantizes:
        last = readers[dequantize.output[0]]
        if len(last) != 1 or last[0].op_type != "Conv" or last[0].input[0] != dequantize.output[0]:
            return None
        convolutions.append(last[0])
    return after[0], list(dequantizes), convolutions


def _symmetric_or_not(pad: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> list[int] | None:
    """Top, left, bottom, right; None for what is no zero padding of the last two of four axes."""
    mode = next((a.s for a in pad.attribute if a.name == "mode"), b"constant")
    if mode != b"constant" or pad.input[1] not in stored or any(pad.input[3:]):
        return None
    amounts = [int(v) for v in numpy_helper.to_array(stored[pad.input[1]])]
    value = pad.input[2] if len(pad.input) > 2 else ""
    if value and (value not in stored or numpy_helper.to_array(stored[value]).any()):
        return None
    if len(amounts) != 8 or any(amounts[i] for i in (0, 1, 4, 5)) or min(amounts) < 0:
        return None
    return [amounts[2], amounts[3], amounts[6], amounts[7]]


def _pad_more(convolution: onnx.NodeProto, amounts: list[int]) -> None:
    old = next((list(a.ints) for a in convolution.attribute if a.name == "pads"), [0, 0, 0, 0])
    kept = [a for a in convolution.attribute if a.name not in ("pads", "auto_pad")]
    del convolution.attribute[:]
    convolution.attribute.extend(kept)
    added = [o + a for o, a in zip(old, amounts, strict=True)]
    convolution.attribute.append(helper.make_attribute("pads", added))


def _value(name: str, stored: dict[str, onnx.TensorProto]) -> bytes:
    value: Array = numpy_helper.to_array(stored[name])
    return value.tobytes()


def _forget(graph: onnx.GraphProto, values: set[str]) -> None:
    """Drop what the file says of the shapes and types of `values`: every reader infers it."""
    kept = [info for info in graph.value_info if info.name not in values]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
