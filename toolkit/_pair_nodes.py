"""The pairs of a graph that was quantized elsewhere: refused where no runtime takes them, else all written alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from acmix.toolkit.errors import UsageError
from acmix.toolkit.grid import COMPUTE
from acmix.toolkit.quantize import constant

QUANTIZE, DEQUANTIZE = "quantize_per_tensor", "dequantize_per_tensor"
TO_INT8 = {(torch.int8, -128, 127): 0, (torch.uint8, 0, 255): -128}
"""Activations that become int8 without changing: what is added to integers and zero point."""


def pair_kind(node: Any) -> str:
    """'quantize_per_tensor' and the like for an operator of a quantized program; '' for all else."""
    if not isinstance(node, Node) or node.op != "call_function":
        return ""
    namespace, _, name = str(node.target).partition(".")
    fake = "fake_quant" in name or "fq_helper" in name or "choose_qparams" in name
    return name.partition(".")[0] if namespace in ("quantized_decomposed", "torchao") or fake else ""


def check_pairs(graph: fx.Graph) -> None:
    """Raise UsageError for operators that no runtime here takes, naming the node."""
    for node in graph.nodes:
        kind = pair_kind(node)
        if "choose_qparams" in kind:
            raise UsageError(
                f"{node.name!r} finds a range at run time: dynamic quantization, which has no int8 convolution here.\n"
                "Train with static activations: is_dynamic=False."
            )
        if "fake_quant" in kind or "fq_helper" in kind:
            raise UsageError(f"{node.name!r} only pretends to quantize.\nCall convert_pt2e before torch.export.export.")
        known = (QUANTIZE, DEQUANTIZE, "quantize_per_channel", "dequantize_per_channel")
        if kind and (kind not in known or not str(node.target).endswith(".default")):
            raise UsageError(
                f"{node.name!r} is {node.target}, which no runtime here takes.\nQuantize with per-tensor activations "
                "and per-channel weights: torchao's quantizers of PT2E write such pairs."
            )
        if kind == DEQUANTIZE and not _is_constant(node.args[0]):
            _check_pair(node)


def _check_pair(node: Node) -> None:
    source = node.args[0]
    if pair_kind(source) != QUANTIZE or source.args[1:] != node.args[1:]:  # type: ignore[union-attr]
        raise UsageError(
            f"{node.name!r} gives back other integers than a quantize operator before it made.\n"
            "Convert with convert_pt2e(..., use_reference_representation=False)."
        )
    scale, _, low, high, dtype = node.args[1:]
    if (dtype, low, high) not in TO_INT8 or float(np.float32(scale)) != scale:  # type: ignore[arg-type]
        raise UsageError(
            f"{node.name!r} has integers from {low} to {high} of {dtype} with scale {scale}.\n"
            "Activations are int8 from -128 to 127, or uint8 from 0 to 255, with a scale in float32."
        )


def _is_constant(node: Any) -> bool:
    return isinstance(node, Node) and (node.op == "get_attr" or (pair_kind(node) != "" and _is_constant(node.args[0])))


def write_weights(module: GraphModule) -> dict[str, tuple[Tensor, Tensor]]:
    """Every weight of a layer as int8 with scales, a channel each, written so into the graph; by the layer's name."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    dequantizes = [n for n in module.graph.nodes if pair_kind(n).startswith("dequantize") and _is_constant(n.args[0])]
    for node in dequantizes:
        integer = _evaluated(module, node.args[0])
        if integer.dtype == torch.int32:
            _replace(module, node, f"bias_of_{node.name}", _evaluated(module, node))
            continue
        readers = [user for user in node.users if user.target in COMPUTE and user.args[1] is node]
        if len(readers) != len(node.users):
            raise UsageError(
                f"{node.name!r} holds integer constants, and {next(u for u in node.users if u not in readers).name!r} "
                "reads them: int8 weights are for conv2d and linear.\nLeave that layer out of the quantizer."
            )
        scales = _channel_scales(module, node, integer)
        _write_weight(module, node, integer, scales)
        found.update({reader.name: (integer, scales) for reader in readers})
    return found


def _channel_scales(module: GraphModule, node: Node, integer: Tensor) -> Tensor:
    per_channel = pair_kind(node) == "dequantize_per_channel"
    scales, zeros = (
        _evaluated(module, a).flatten() if isinstance(a, Node) else torch.tensor([a]) for a in node.args[1:3]
    )
    axis = node.args[3] if per_channel else 0
    if integer.dtype != torch.int8 or bool(zeros.any()) or axis != 0:
        raise UsageError(
            f"{node.name!r} holds weights of {integer.dtype}, zero points {zeros.tolist()[:4]}, axis {axis}.\n"
            "Weights are int8, symmetric, and have one scale for each output channel or one for all."
        )
    return scales.float().expand(len(integer)).contiguous()


def _write_weight(module: GraphModule, node: Node, integer: Tensor, scales: Tensor) -> None:
    parts = {"integers": integer, "scales": scales, "zero_points": torch.zeros(len(scales), dtype=torch.int64)}
    with module.graph.inserting_before(node):
        read = []
        for part, tensor in parts.items():
            module.register_buffer(f"{part}_of_{node.name}", tensor.clone())
            read.append(module.graph.get_attr(f"{part}_of_{node.name}"))
        target = torch.ops.quantized_decomposed.dequantize_per_channel.default
        lowest = -128 if int(integer.min()) < -127 else -127
        made = module.graph.call_function(target, (*read, 0, lowest, 127, torch.int8))
    made.meta.update({k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace")})
    node.replace_all_uses_with(made)
    module.graph.erase_node(node)


def _replace(module: GraphModule, node: Node, name: str, value: Tensor) -> None:
    module.register_buffer(name, value)
    with module.graph.inserting_before(node):
        read = module.graph.get_attr(name)
    node.replace_all_uses_with(read)
    module.graph.erase_node(node)


def _evaluated(module: GraphModule, node: Any) -> Tensor:
    """The value of a constant, or of the operators that quantize one (convert_pt2e without folding)."""
    if node.op == "get_attr":
        return constant(module, node)
    arguments = [_evaluated(module, a) if isinstance(a, Node) else a for a in node.args]
    with torch.no_grad():
        result = node.target(*arguments)
    assert isinstance(result, Tensor)
    return result


def make_signed(node: Node) -> None:
    """Write one operator of a uint8 pair as int8: integers and zero point move together."""
    scale, zero_point, low, high, dtype = node.args[1:]
    assert isinstance(zero_point, int)
    moved = TO_INT8[dtype, low, high]  # type: ignore[index]
    node.args = (node.args[0], scale, zero_point + moved, -128, 127, torch.int8)
