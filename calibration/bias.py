"""Bias correction: what rounding the weights adds to each channel on average, taken out of the layer's bias."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.calibration.collect import each_sample
from acmix.calibration.layers import Layer, layers, read, write
from acmix.toolkit.program import copy_program
from acmix.toolkit.quantize import graph_module
from acmix.toolkit.rewrites._calls import arguments
from acmix.toolkit.rewrites._graph import add_constant, constant_value
from acmix.toolkit.samples import Samples
from acmix.toolkit.target import Array

QuantizeWeight = Callable[[str, Tensor], Tensor]
"""quantize_weight(layer, weight): what the layer's integers stand for; the weight itself for a layer kept float."""
QuantizeValue = Callable[[str, Tensor], Tensor]
"""quantize_value(node, value): what the tensor's integers stand for; the value itself for a tensor kept float."""

SAMPLES = 16
"""A mean over all positions of so many photos is known well, and their activations fit in memory together."""


def correct_bias(
    program: ExportedProgram,
    quantize_weight: QuantizeWeight,
    samples: Samples,
    quantize_value: QuantizeValue | None = None,
    most: int = SAMPLES,
    skip: Collection[str] = (),
) -> tuple[ExportedProgram, dict[str, Tensor]]:
    """A copy of the float program with corrected biases, and what was added to each: by layer, [channels].

    Two forms run side by side over the samples, layer by layer: the float one, and one whose weights (and, where
    `quantize_value` is given, activations) are rounded and whose earlier layers are already corrected. The mean
    difference of a layer's outputs over samples and positions, for each channel, goes into its bias: empirical
    bias correction (Nagel et al. 2019, section 4.2 and appendix D). A layer without a bias gets one. The weights
    stay float: quantize them by the same callable afterwards.

    skip: layers whose bias stays as it is.  most: samples used, spread evenly over all; their activations are in
    memory at once.
    Raises UsageError as `acmix.calibration.collect.collect` does.
    """
    made = copy_program(program)
    found = [
        layer
        for layer in layers(made)
        if layer.node.name not in skip and (layer.bias or _bias_before(made, layer) is not None)
    ]
    chosen = {i * len(samples) // most for i in range(most)} if len(samples) > most else set(range(len(samples)))
    inputs = [sample for i, (_, sample) in enumerate(each_sample(program, samples)) if i in chosen]
    corrections = _Parallel(made, found, quantize_weight, quantize_value or _as_it_is).corrections(inputs)
    for layer in found:
        _add_bias(made, layer, corrections[layer.node.name])
    made.graph_module.recompile()
    made.validate()  # type: ignore[no-untyped-call]
    return made, corrections


def _as_it_is(node: str, value: Tensor) -> Tensor:
    return value


class _Parallel:
    """The program over all samples at once, node by node, in its float and in its rounded form."""

    def __init__(
        self, program: ExportedProgram, found: Sequence[Layer], weights: QuantizeWeight, values: QuantizeValue
    ) -> None:
        module = graph_module(program)
        self.graph, self.runner = module.graph, fx.Interpreter(module)
        self.layers = {layer.node.name: layer for layer in found}
        held = {name: program.state_dict[layer.weight].detach() for name, layer in self.layers.items()}
        self.weights = {name: weights(name, weight).to(weight.dtype) for name, weight in held.items()}
        self.values = values
        self.last_uses = self.runner.user_to_last_uses
        self.floats: dict[Node, list[Any]] = {}
        self.rounded: dict[Node, list[Any]] = {}
        self.found: dict[str, Tensor] = {}

    def corrections(self, inputs: Sequence[tuple[Array, ...]]) -> dict[str, Tensor]:
        """What each layer's outputs lack on average, by its node's name."""
        fed = [iter([torch.from_numpy(np.array(array)) for array in sample]) for sample in inputs]
        with torch.no_grad():
            for node in self.graph.nodes:
                if node.op == "output":
                    break
                self._step(node, fed)
                for used in self.last_uses.get(node, ()):
                    del self.floats[used], self.rounded[used]
        return self.found

    def _step(self, node: Node, fed: Sequence[Any]) -> None:
        if node.op == "placeholder":
            self.floats[node] = [next(sample) for sample in fed]
            self.rounded[node] = [self._round(node, value.clone()) for value in self.floats[node]]
        elif node.op == "get_attr":
            value = self.runner.fetch_attr(str(node.target))
            self.floats[node] = self.rounded[node] = [value] * len(fed)
        elif node.name in self.layers:
            self._layer(node, len(fed))
        else:
            self.floats[node] = [self._call(node, self.floats, i) for i in range(len(fed))]
            self.rounded[node] = [self._round(node, self._call(node, self.rounded, i)) for i in range(len(fed))]

    def _call(self, node: Node, values: dict[Node, list[Any]], sample: int, weight: Tensor | None = None) -> Any:
        own = node.args[1] if weight is not None else None
        given, named = fx.node.map_arg((node.args, node.kwargs), lambda n: weight if n is own else values[n][sample])
        return node.target(*given, **named)  # type: ignore[operator]

    def _round(self, node: Node, value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return self.values(node.name, value) if floating else value

    def _layer(self, node: Node, count: int) -> None:
        """Both forms of a layer; the rounded one corrected by the mean that it lacks, before it is read."""
        layer, weight = self.layers[node.name], self.weights[node.name]
        floats = [self._call(node, self.floats, i) for i in range(count)]
        rounded = [self._call(node, self.rounded, i, weight) for i in range(count)]
        rank = floats[0].dim()
        axis = rank - 1 if layer.is_linear else rank - weight.dim() + 1
        others = [i for i in range(rank) if i != axis]
        lacks = [(a.double() - b.double()).mean(others) for a, b in zip(floats, rounded, strict=True)]
        correction = torch.stack(lacks).mean(0)
        shape = [-1 if i == axis else 1 for i in range(rank)]
        self.found[node.name] = correction
        self.floats[node] = floats
        self.rounded[node] = [self._round(node, value + correction.reshape(shape).to(value.dtype)) for value in rounded]


def _bias_before(program: ExportedProgram, layer: Layer) -> Tensor | None:
    """The bias that the call has now, zeros where it has none; None where it is computed."""
    given = arguments(layer.node).get("bias")
    if given is None:
        return torch.zeros(read(program, layer.weight).shape[0], dtype=torch.float64)
    value = constant_value(program, given)
    return None if value is None else value.double()


def _add_bias(program: ExportedProgram, layer: Layer, correction: Tensor) -> None:
    if layer.bias:
        write(program, layer.bias, read(program, layer.bias) + correction)
        return
    # No bias, or one that other layers read too: this layer gets one of its own.
    before = _bias_before(program, layer)
    assert before is not None
    bias = add_constant(program, f"{layer.node.name}_bias", (before + correction).to(layer.node.meta["val"].dtype))
    layer.node.kwargs = {key: value for key, value in layer.node.kwargs.items() if key != "bias"}
    layer.node.args = (*layer.node.args[:2], bias, *layer.node.args[3:])
