"""Batch normalisation folded into the convolution or linear layer before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from acmix.toolkit.rewrites._graph import calls, remove_unused, replace

ATEN = torch.ops.aten
LAYERS = (ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default, ATEN.linear.default)


@dataclass(frozen=True)
class FoldBatchNorm:
    """Fold `norm(layer(x))` into the layer.

    1. The norm is in evaluation mode, affine, with running statistics; its axis is the layer's output channel.
    2. It is the only reader of the layer's output, and the layer is the only reader of its parameters.
    3. scale = gamma / sqrt(var + eps): weight' = scale * weight, bias' = beta + scale * (bias - mean),
       computed in float64.

        conv2d(x, w) -> batch_norm(...)   becomes   conv2d(x, w', b')
    """

    name: str = "fold_batch_norm"
    claim: str = "exact"
    targets: tuple[str, ...] = ()

    def apply(self, program: ExportedProgram) -> int:
        """Fold wherever the precondition holds; how often it did."""
        stored = _stored_names(program)
        times = sum(_fold(program, stored, norm) for norm in calls(program, ATEN.batch_norm.default))
        if times:
            remove_unused(program)
        return times


def _stored_names(program: ExportedProgram) -> dict[str, str]:
    """Placeholder name to its name in the state dict, for parameters and persistent buffers."""
    return {
        spec.arg.name: str(spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and str(spec.target) in program.state_dict
    }


def _fold(program: ExportedProgram, stored: dict[str, str], norm: Node) -> bool:
    layer = norm.args[0]
    if not isinstance(layer, Node) or layer.target not in LAYERS or len(layer.users) != 1:
        return False
    if not _channels_are_the_norms(layer):
        return False
    *parameters, training, _, epsilon = norm.args[1:8]
    if training is True or not all(isinstance(p, Node) and p.name in stored for p in parameters):
        return False
    weight, bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    if not isinstance(weight, Node) or not _owned(weight, layer, stored):
        return False
    gamma_node, beta_node, mean_node, variance_node = (p for p in parameters if isinstance(p, Node))
    if len(beta_node.users) != 1 or not isinstance(epsilon, float):
        return False
    if bias is not None and not (isinstance(bias, Node) and bias.name in stored):
        return False

    def value(node: Node) -> Tensor:
        tensor: Tensor = program.state_dict[stored[node.name]]
        return tensor.detach().double()

    scale = value(gamma_node) / torch.sqrt(value(variance_node) + epsilon)
    before = value(bias) if isinstance(bias, Node) else torch.zeros_like(scale)
    shape = (-1, *([1] * (value(weight).dim() - 1)))
    _store(program, stored[weight.name], value(weight) * scale.reshape(shape))
    _store(program, stored[beta_node.name], value(beta_node) + scale * (before - value(mean_node)))
    layer.args = (layer.args[0], weight, beta_node, *layer.args[3:])
    replace(program, norm, layer)
    return True


def _channels_are_the_norms(layer: Node) -> bool:
    """A norm works on axis 1: that of a linear layer's rows, and of a batched convolution's channels."""
    weight = layer.args[1]
    wanted = 2 if layer.target is ATEN.linear.default else weight.meta["val"].dim() if isinstance(weight, Node) else 0
    rank: int = layer.meta["val"].dim()
    return rank == wanted


def _owned(weight: Node, layer: Node, stored: dict[str, str]) -> bool:
    return weight.name in stored and set(weight.users) == {layer}


def _store(program: ExportedProgram, name: str, value: Tensor) -> None:
    old = program.state_dict[name]
    new = value.to(old.dtype)
    program.state_dict[name] = (
        torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new
    )


REWRITE = FoldBatchNorm()
