"""Two linear layers in a row as one, where that takes fewer products."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments
from acmix.toolkit.rewrites._graph import (
    add_constant,
    calls,
    constant_value,
    emit_before,
    remove_unused,
    replace,
    shape_of,
)
from acmix.toolkit.rewrites._memory import is_written_between

ATEN = torch.ops.aten
PRODUCTS = (ATEN.linear.default, ATEN.matmul.default)


@dataclass(frozen=True)
class Layer:
    """A layer with constant weights, [O, I, ...], and perhaps a bias."""

    node: Node
    weight: Tensor
    bias: Tensor | None

    @property
    def macs(self) -> int:
        """Products of one inference."""
        return _macs(self.weight, self.node)


@dataclass(frozen=True)
class LinearPair:
    """Replace `second(first(x))` by one layer whose weights are the product of theirs.

    1. Both are linear layers or products with a constant matrix on the right; or both are convolutions without
       groups, one of them 1 x 1 with stride 1 and no padding.
    2. Only the second reads the first. A 1 x 1 first with a bias needs a second without padding.
    3. The products do not become more, so layers of low rank stay two. Computed in float64.

        linear(linear(x, v), w)   becomes   linear(x, w v)

    A selection of features by a 0/1 matrix is such a layer, and so is a projection that training left unmerged.
    """

    name: str = "linear_pair"
    claim: str = "exact"
    targets: tuple[str, ...] = ()

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        found = [node for node in calls(program, ATEN.conv2d.default, *PRODUCTS) if _join(program, node)]
        if found:
            remove_unused(program)
        return len(found)


def _join(program: ExportedProgram, node: Node) -> bool:
    before = node.args[0]
    if not isinstance(before, Node) or before.op != "call_function" or len(before.users) != 1:
        return False
    if shape_of(node) is None or not before.args:
        return False
    x, second, first = before.args[0], _layer(program, node), _layer(program, before)
    if not isinstance(x, Node) or is_written_between(x, before, node):
        return False
    if first is None or second is None or (node.target in PRODUCTS) != (before.target in PRODUCTS):
        return False
    outer = _wide(first, second) if node.target is ATEN.conv2d.default else node
    if outer is None:
        return False
    weight, bias = _product(first, second)
    if _macs(weight, node) > first.macs + second.macs:
        return False
    weights = add_constant(program, "joined_weight", weight)
    biases = None if bias is None else add_constant(program, "joined_bias", bias)
    emit = emit_before(program, node)
    if node.target is ATEN.conv2d.default:
        options = [arguments(outer)[name] for name in ("stride", "padding", "dilation")]
        joined = emit(ATEN.conv2d.default, x, weights, biases, *options)
    else:
        joined = emit(ATEN.linear.default, x, weights, biases)
    replace(program, node, joined)
    return True


def _product(first: Layer, second: Layer) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of second(first(x)), one of them 1 x 1 where they are convolutions."""
    dtype, last = second.weight.dtype, second.weight.double()
    weight = torch.einsum("om...,mi...->oi...", last, first.weight.double())
    bias = None if second.bias is None else second.bias.double()
    if first.bias is not None:
        carried = last.reshape(*last.shape[:2], -1).sum(-1) @ first.bias.double()
        bias = carried if bias is None else carried + bias
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _layer(program: ExportedProgram, node: Node) -> Layer | None:
    if node.target is ATEN.matmul.default:
        matrix = constant_value(program, node.args[1])
        return Layer(node, matrix.t(), None) if matrix is not None and matrix.dim() == 2 else None
    if node.target is not ATEN.linear.default and node.target is not ATEN.conv2d.default:
        return None
    given = arguments(node)
    weight, bias = constant_value(program, given["weight"]), constant_value(program, given["bias"])
    known = weight is not None and (bias is not None) == (given["bias"] is not None)
    if weight is None or not known or given.get("groups", 1) != 1 or len(shape_of(node) or ()) < 2:
        return None
    return Layer(node, weight, bias)


def _wide(first: Layer, second: Layer) -> Node | None:
    """Whose stride, padding and dilation the joined convolution has; None where the two cannot join."""
    if _is_point(second):
        return first.node
    padding = arguments(second.node)["padding"]
    return second.node if _is_point(first) and (first.bias is None or not any(padding)) else None


def _is_point(layer: Layer) -> bool:
    given = arguments(layer.node)
    plain = all(s == 1 for s in given["stride"]) and not any(given["padding"])
    return plain and layer.weight.shape[2:] == (1, 1)


def _macs(weight: Tensor, result: Node) -> int:
    shape = shape_of(result) or ()
    places = math.prod(shape) // max(shape[1] if weight.dim() == 4 else shape[-1], 1)
    return places * weight.numel()


REWRITE = LinearPair()
