"""Layers that know their own inference form, and the network in which each has been replaced by it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from acmix.toolkit.errors import UsageError


@runtime_checkable
class InferenceLayer(Protocol):
    """A module of one input that can be had in an equal form for a target."""

    def for_inference(self, target: str, inputs: torch.Size) -> nn.Module:
        """An equal module for inputs of this shape, which shares no parameter with this one."""


def replace_layers(module: nn.Module, target: str, example_inputs: Sequence[Tensor]) -> nn.Module:
    """A copy of the module in which every InferenceLayer is in its inference form, the outermost where they nest.

    The shapes that the layers get are found by one forward pass of the copy, at evaluation.  A layer that this pass
    does not reach stays as it is.  Raises UsageError for a layer that gets two shapes in one pass.
    """
    prepared = copy.deepcopy(module)
    shapes = _input_shapes(prepared, example_inputs)
    prepared.train(module.training)
    return _replaced(prepared, target, shapes, {})


def _input_shapes(module: nn.Module, example_inputs: Sequence[Tensor]) -> dict[nn.Module, torch.Size]:
    shapes: dict[nn.Module, torch.Size] = {}
    names = {layer: name for name, layer in module.named_modules()}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shape = inputs[0].shape
        if shapes.setdefault(layer, shape) != shape:
            raise UsageError(
                f"layer {names[layer]!r} gets both {tuple(shapes[layer])} and {tuple(shape)} in one inference.\n"
                "Its inference form is made for one shape: use two layers that share their weights."
            )

    layers = [layer for layer in module.modules() if isinstance(layer, InferenceLayer)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            module.eval()(*example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _replaced(
    module: nn.Module, target: str, shapes: dict[nn.Module, torch.Size], done: dict[nn.Module, nn.Module]
) -> nn.Module:
    if module in done:
        return done[module]
    if module in shapes and isinstance(module, InferenceLayer):
        done[module] = module.for_inference(target, shapes[module])
        return done[module]
    done[module] = module
    # Not named_children(), which leaves out the second name of a module that has two.
    for name, child in module._modules.items():
        if child is not None:
            setattr(module, name, _replaced(child, target, shapes, done))
    return module
