"""Which operators treat every channel of [N, C, ...] alike, and which have one constant a channel."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments, axis
from acmix.toolkit.rewrites._graph import constant_value, shape_of

ATEN = torch.ops.aten
CONVOLUTIONS = (ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default, ATEN.conv2d.padding, ATEN.conv1d.padding)
NORM = ATEN.batch_norm.default
BINARY = (ATEN.add.Tensor, ATEN.sub.Tensor, ATEN.mul.Tensor, ATEN.div.Tensor)

IN_PLACE = (
    ATEN.relu_.default,
    ATEN.relu6_.default,
    ATEN.hardtanh_.default,
    ATEN.clamp_.default,
    ATEN.hardswish_.default,
    ATEN.hardsigmoid_.default,
    ATEN.silu_.default,
    ATEN.elu_.default,
    ATEN.leaky_relu_.default,
)
ELEMENTWISE = (
    *IN_PLACE,
    ATEN.relu.default,
    ATEN.relu6.default,
    ATEN.hardtanh.default,
    ATEN.clamp.default,
    ATEN.hardswish.default,
    ATEN.hardsigmoid.default,
    ATEN.sigmoid.default,
    ATEN.tanh.default,
    ATEN.silu.default,
    ATEN.mish.default,
    ATEN.gelu.default,
    ATEN.elu.default,
    ATEN.leaky_relu.default,
    ATEN.softplus.default,
    ATEN.abs.default,
    ATEN.neg.default,
    ATEN.square.default,
    ATEN.pow.Tensor_Scalar,
    ATEN.dropout.default,
    ATEN.contiguous.default,
    ATEN.clone.default,
    ATEN.detach.default,
    ATEN.alias.default,
)
SPATIAL = (
    ATEN.avg_pool2d.default,
    ATEN.max_pool2d.default,
    ATEN.adaptive_avg_pool2d.default,
    ATEN.upsample_nearest2d.vec,
    ATEN.upsample_bilinear2d.vec,
)
RESHAPES = (ATEN.flatten.using_ints, ATEN.reshape.default, ATEN.view.default)


def is_passed_through(node: Node, x: Node, same_count: bool) -> bool:
    """Whether reordering the channels of x only reorders the channels of the result.

    same_count: as many channels as before. A reshape names their number; and where some are left out, what the
    operator makes of those is still read, times zero: it has to be finite.
    """
    if node.args[0] is not x and not (node.target in BINARY and node.args[1] is x):
        return False
    if node.target in SPATIAL and len(shape_of(x) or ()) != 4:
        return False
    if not same_count and may_be_infinite(node, x):
        return False
    if node.target in ELEMENTWISE or node.target in SPATIAL:
        return len(node.all_input_nodes) == 1
    if node.target in BINARY:
        return len(node.all_input_nodes) == 1 and node.args[0] is not node.args[1]
    shape, after = shape_of(x) or (), shape_of(node) or ()
    if node.target is ATEN.mean.dim:
        axes = arguments(node)["dim"] or [0]
        return all(axis(a, len(shape)) >= 2 for a in axes)
    if node.target is ATEN.pad.default:
        return len(node.args[1]) <= 2 * (len(shape) - 2)  # type: ignore[arg-type]
    if node.target in RESHAPES and same_count:
        return after[:2] == shape[:2] and len(shape) >= 2
    return False


def may_be_infinite(node: Node, x: Node) -> bool:
    """Whether the operator makes some finite x infinite, or no number."""
    return node.target is ATEN.pow.Tensor_Scalar or (node.target is ATEN.div.Tensor and node.args[1] is x)


def is_channel_constant(program: ExportedProgram, value: object, node: Node) -> bool:
    """Whether this is a constant with one value a channel of the node's result, and nothing else varies."""
    constant = constant_value(program, value)
    shape = shape_of(node)
    if constant is None or shape is None or len(shape) < 2:
        return False
    if node.target not in BINARY:
        return constant.shape == shape[1:2]
    along = constant.dim() - (len(shape) - 1)
    return along >= 0 and constant.shape[along] == shape[1] == constant.numel()
