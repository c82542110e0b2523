"""Quantize: from a captured program and a grid to an equal program of quantize and dequantize pairs.

Written into the graph here, not by torchao's prepare and convert: their observers would find ranges again, and ours
are found once for all targets. The operators are torch's own, those that PT2E writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from acmix.toolkit.grid import SMALLEST_SCALE, Grid
from acmix.toolkit.program import quiet
from acmix.toolkit.ranges import QuantizedTensor

LARGEST_WEIGHT = 127
"""Symmetric: -127 to 127, so that no kernel meets -128 x -128."""
LARGEST_BIAS = 2**30
"""Of an int32, in units of input scale times weight scale: half of what fits."""


def graph_module(program: ExportedProgram) -> GraphModule:
    """The program as a module whose graph names its tensors: the names that Ranges and Grid use."""
    with quiet():
        module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    return module


def weight_scales(weight: Tensor, bias: Tensor | None = None, input_scale: float | None = None) -> Tensor:
    """The scale of each output channel (axis 0), symmetric int8, as float32.

    Wider for a channel whose weights are next to nothing beside its bias: an int32 has to hold the bias in units of
    input scale x weight scale.
    """
    largest = weight.detach().abs().flatten(1).amax(1) if weight.dim() > 1 else weight.detach().abs()
    scales = (largest / LARGEST_WEIGHT).clamp_min(SMALLEST_SCALE).float()
    if bias is None or input_scale is None:
        return scales
    return torch.maximum(scales, (bias.detach().abs().double() / (LARGEST_BIAS * input_scale)).float())


def integer_weight(weight: Tensor, scales: Tensor) -> Tensor:
    """The weight in units of its scales, as int8."""
    shape = (-1,) + (1,) * (weight.dim() - 1)
    rounded = torch.round(weight.detach() / scales.reshape(shape))
    return rounded.clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT).to(torch.int8)


def rounded_weight(weight: Tensor, scales: Tensor | None = None) -> Tensor:
    """What the int8 form of a weight stands for."""
    scales = weight_scales(weight) if scales is None else scales
    shape = (-1,) + (1,) * (weight.dim() - 1)
    return integer_weight(weight, scales).to(weight.dtype) * scales.reshape(shape).to(weight.dtype)


def quantize(program: ExportedProgram, grid: Grid, inputs: Sequence[Tensor]) -> ExportedProgram:
    """The program with a pair at every tensor of the grid and with int8 weights. `inputs`: of the right shapes."""
    with torch.no_grad(), quiet():
        return torch.export.export(with_pairs(program, grid), tuple(inputs))


def with_pairs(program: ExportedProgram, grid: Grid) -> GraphModule:
    """What `quantize` exports: quick to make and to run, where no file is wanted."""
    module = graph_module(program)
    named = {node.name: node for node in module.graph.nodes}
    # Before the pairs are in, a layer's first argument is still the tensor that it reads.
    scale_of = {named[name]: tensor.scale for name, tensor in grid.tensors.items()}
    input_scales = {name: scale_of.get(named[name].args[0]) for name in grid.weights}
    for name, tensor in grid.tensors.items():
        node = named[name]
        if name in grid.produced:
            readers = list(node.users)
        else:
            readers = [named[layer] for source, layer in sorted(grid.edges) if source == name]
        _insert_pair(module, node, tensor, readers)
    for name in sorted(grid.weights):
        _quantize_weight(module, named[name], input_scales[name])
    module.graph.lint()
    module.recompile()
    return module


def _insert_pair(module: GraphModule, node: Node, tensor: QuantizedTensor, readers: Sequence[Node]) -> None:
    q = torch.ops.quantized_decomposed
    half = 2 ** (tensor.bits - 1)
    dtype = torch.int8 if tensor.bits == 8 else torch.int16
    grid = (tensor.scale, tensor.zero_point, -half, half - 1, dtype)
    with module.graph.inserting_after(node):
        integer = _call(module, q.quantize_per_tensor.default, (node, *grid), node)
    # One dequantize a reader: a runtime fuses a pair only where nobody else reads its float side.
    for reader in readers:
        with module.graph.inserting_before(reader):
            back = _call(module, q.dequantize_per_tensor.default, (integer, *grid), node)
        reader.replace_input_with(node, back)


def _call(module: GraphModule, operator: Any, arguments: tuple[Any, ...], like: Node) -> Node:
    made = module.graph.call_function(operator, arguments)
    for key in ("nn_module_stack", "stack_trace"):
        if key in like.meta:
            made.meta[key] = like.meta[key]
    return made


def _quantize_weight(module: GraphModule, layer: Node, input_scale: float | None) -> None:
    source = layer.args[1]
    assert isinstance(source, Node)
    bias = layer.args[2] if len(layer.args) > 2 else None
    held = constant(module, bias) if isinstance(bias, Node) and bias.op == "get_attr" else None
    weight = constant(module, source)
    scales = weight_scales(weight, held, input_scale)
    name = f"quantized_{layer.name}"
    module.register_buffer(f"{name}_weight", integer_weight(weight, scales))
    module.register_buffer(f"{name}_scales", scales)
    module.register_buffer(f"{name}_zero_points", torch.zeros(len(scales), dtype=torch.int64))
    with module.graph.inserting_before(layer):
        parts = [module.graph.get_attr(f"{name}_{part}") for part in ("weight", "scales", "zero_points")]
        limits = (0, -LARGEST_WEIGHT, LARGEST_WEIGHT, torch.int8)
        operator = torch.ops.quantized_decomposed.dequantize_per_channel.default
        back = _call(module, operator, (*parts, *limits), layer)
    layer.replace_input_with(source, back)
    if not source.users:
        module.graph.erase_node(source)
    if input_scale is not None and isinstance(bias, Node) and held is not None:
        _round_bias(module, layer, bias, scales * input_scale)


def rounded_bias(bias: Tensor, units: Tensor) -> Tensor:
    """The bias in whole units of input scale x weight scale: every int8 kernel adds it as int32."""
    return (torch.round(bias.detach().double() / units.double()) * units.double()).float()


def _round_bias(module: GraphModule, layer: Node, bias: Node, scales: Tensor) -> None:
    name = f"quantized_{layer.name}_bias"
    module.register_buffer(name, rounded_bias(constant(module, bias), scales))
    with module.graph.inserting_before(layer):
        rounded = module.graph.get_attr(name)
    layer.replace_input_with(bias, rounded)
    if not bias.users:
        module.graph.erase_node(bias)


def constant(module: nn.Module, node: Node) -> Tensor:
    """The parameter or buffer that a get_attr node reads."""
    owner, _, name = str(node.target).rpartition(".")
    found = getattr(module.get_submodule(owner), name)
    assert isinstance(found, Tensor)
    return found.detach()
