"""Layer norm over the last axis, or over the channels of a map, by means that stay in the delegate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments, axis, is_floating
from acmix.toolkit.rewrites._graph import Emit, add_constant, calls, emit_before, remove_unused, replace, shape_of
from acmix.toolkit.rewrites._norms import emit_norm, shaped_parameters

ATEN = torch.ops.aten


@dataclass(frozen=True)
class LayerNorm:
    """Replace a layer norm over one axis of C values by its formula, the mean being a layer with weights 1 / C.

    1. x has a fixed shape and the norm is over its last axis.
    2. Between permute(x, [0, 2, 3, 1]) and permute([0, 3, 1, 2]) alone, it is over the channels of a map: the mean
       is a 1 x 1 convolution to one channel, and both permutations go.
    3. Otherwise the mean is a linear layer to one value; of rank 4 and more by way of rank 2.
       d = x - mean(x), y = d / sqrt(mean(d d) + eps) gamma + beta: centred first, so float16 keeps its digits.

        layer_norm(x, [C], gamma, beta)   becomes   linear, sub, mul, linear, add, rsqrt, mul, mul, add

    XNNPACK in ExecuTorch 1.5.1 has no layer norm, so each cut its delegate: 64 channels of 56 x 56 between two
    convolutions 0.84 to 0.49 ms, 784 tokens of 192 between two linear layers 1.06 to 0.89 ms. The others have one.
    """

    name: str = "layer_norm"
    claim: str = "exact"
    targets: tuple[str, ...] = ("executorch",)

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        found = [node for node in calls(program, ATEN.layer_norm.default) if _replace(program, node)]
        if found:
            remove_unused(program)
        return len(found)


def _replace(program: ExportedProgram, norm: Node) -> bool:
    given = arguments(norm)
    x = given["input"]
    shape = shape_of(x)
    if shape is None or len(given["normalized_shape"]) != 1 or len(shape) < 2 or not is_floating(x):
        return False
    if not _replace_on_map(program, norm):
        emit = emit_before(program, norm)
        flat = x if len(shape) <= 3 else emit(ATEN.reshape.default, x, [math.prod(shape[:-1]), shape[-1]])
        result = _normed(program, emit, norm, flat, is_map=False)
        replace(program, norm, result if flat is x else emit(ATEN.reshape.default, result, list(shape)))
    return True


def _replace_on_map(program: ExportedProgram, norm: Node) -> bool:
    x = norm.args[0]
    if not isinstance(x, Node) or _order(x) != [0, 2, 3, 1] or not norm.users:
        return False
    readers, source = list(norm.users), x.args[0]
    if any(_order(reader) != [0, 3, 1, 2] for reader in readers) or not isinstance(source, Node):
        return False
    result = _normed(program, emit_before(program, norm), norm, source, is_map=True)
    for reader in readers:
        replace(program, reader, result)
    return True


def _order(node: Node) -> list[int]:
    if node.target is not ATEN.permute.default:
        return []
    order = arguments(node)["dims"]
    return [axis(a, len(order)) for a in order]


def _normed(program: ExportedProgram, emit: Emit, norm: Node, x: Node, is_map: bool) -> Node:
    given = arguments(norm)
    size = given["normalized_shape"][0]
    spread = (1, size, 1, 1) if is_map else (1, size)
    dtype = x.meta["val"].dtype
    share = add_constant(program, "layer_share", torch.full(spread, 1 / size, dtype=dtype))
    operator = ATEN.conv2d.default if is_map else ATEN.linear.default

    def mean(t: Node) -> Node:
        return emit(operator, t, share)

    parameters = shaped_parameters(program, emit, norm, (1, size, 1, 1) if is_map else (size,))
    return emit_norm(emit, x, mean, given["eps"], parameters, scale_first=False)


REWRITE = LayerNorm()
