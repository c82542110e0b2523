"""The convolutions and linear layers of a captured program: their weights and biases, read and written in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments

ATEN = torch.ops.aten
CONVOLUTIONS = (
    ATEN.conv1d.default,
    ATEN.conv2d.default,
    ATEN.conv3d.default,
    ATEN.conv1d.padding,
    ATEN.conv2d.padding,
    ATEN.conv3d.padding,
)
LINEARS = (ATEN.linear.default,)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer whose weight nothing else reads; output channels are the weight's first axis.

    weight, bias: their names in the state dict; bias is '' without, or when something else reads it too.
    has_bias: whether the call has one, its own or not.
    """

    node: Node
    source: Node
    weight: str
    bias: str
    has_bias: bool
    groups: int

    @property
    def is_linear(self) -> bool:
        return self.node.target in LINEARS


def layers(program: ExportedProgram) -> Iterator[Layer]:
    """Every layer with a floating weight of its own in the state dict, in the order of execution."""
    stored = _own_names(program)
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target not in (*CONVOLUTIONS, *LINEARS):
            continue
        given = arguments(node)
        source, weight, bias = given["input"], given["weight"], given.get("bias")
        name = _owned(weight, stored)
        if name and isinstance(source, Node) and program.state_dict[name].is_floating_point():
            yield Layer(node, source, name, _owned(bias, stored), bias is not None, given.get("groups", 1))


def _own_names(program: ExportedProgram) -> dict[str, str]:
    """Placeholder to state dict name, of weights that have one placeholder and that the program does not change."""
    specs = program.graph_signature.input_specs
    targets = [str(spec.target) for spec in specs]
    changed = set(program.graph_signature.buffers_to_mutate.values())
    return {
        spec.arg.name: str(spec.target)
        for spec in specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
        and str(spec.target) in program.state_dict
        and targets.count(str(spec.target)) == 1
        and str(spec.target) not in changed
    }


def _owned(node: object, stored: dict[str, str]) -> str:
    return stored.get(node.name, "") if isinstance(node, Node) and len(node.users) == 1 else ""


def read(program: ExportedProgram, name: str) -> Tensor:
    """A weight in float64."""
    tensor: Tensor = program.state_dict[name]
    return tensor.detach().double()


def write(program: ExportedProgram, name: str, value: Tensor) -> None:
    """Put a weight in the place of one of the same name, in its own dtype."""
    old = program.state_dict[name]
    new = value.to(old.dtype).contiguous()
    program.state_dict[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
