"""Layers that know their own inference form, and the network in which each has been replaced by it."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from acmix.toolkit.errors import UsageError

Shapes = dict[str, torch.Size]
"""What layers get, by their names."""
_Known = WeakKeyDictionary[nn.Module, dict[object, Shapes]]
_KNOWN: ContextVar[_Known | None] = ContextVar("_KNOWN", default=None)


@runtime_checkable
class InferenceLayer(Protocol):
    """A module of one input that can be had in an equal form for a target."""

    def for_inference(self, target: str, inputs: torch.Size) -> nn.Module:
        """An equal module for inputs of this shape, which shares no parameter with this one."""


def replace_layers(
    module: nn.Module, target: str, example_inputs: Sequence[Tensor], computes: bool = True
) -> nn.Module:
    """A copy of the module in which every InferenceLayer is in its inference form, the outermost where they nest.

    The shapes that the layers get are found by one forward pass of another copy, at evaluation.  A layer that this
    pass does not reach stays as it is.  computes: whether that pass computes; without, it takes no time, and the
    network's code may neither ask for a number nor keep a tensor in a class, a module or a cache.  Raises UsageError
    for a layer that gets two shapes in one pass.
    """
    shapes = _known_shapes(module, example_inputs, computes)
    prepared = copy.deepcopy(module)
    layers = {layer: shapes[name] for name, layer in prepared.named_modules() if name in shapes}
    return _replaced(prepared, target, layers, {})


@contextlib.contextmanager
def shapes_found_once() -> Iterator[None]:
    """In this block the shapes in a network are found for its first target only; the network must not change in it."""
    token = _KNOWN.set(WeakKeyDictionary())
    try:
        yield
    finally:
        _KNOWN.reset(token)


def _known_shapes(module: nn.Module, example_inputs: Sequence[Tensor], computes: bool) -> Shapes:
    known = _KNOWN.get()
    of_module = {} if known is None else known.setdefault(module, {})
    key = (tuple((one.shape, one.dtype) for one in example_inputs), computes)
    if key not in of_module:
        of_module[key] = _input_shapes(copy.deepcopy(module), example_inputs, computes)
    return of_module[key]


def _input_shapes(module: nn.Module, example_inputs: Sequence[Tensor], computes: bool) -> Shapes:
    if computes:
        return _noted_shapes(module, example_inputs)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        return _noted_shapes(module, [fake.from_tensor(one) for one in example_inputs])


def _noted_shapes(module: nn.Module, inputs: Sequence[Tensor]) -> Shapes:
    shapes: Shapes = {}
    names = {layer: name for name, layer in module.named_modules()}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        name, shape = names[layer], inputs[0].shape
        if shapes.setdefault(name, shape) != shape:
            raise UsageError(
                f"layer {name!r} gets both {tuple(shapes[name])} and {tuple(shape)} in one inference.\n"
                "Its inference form is made for one shape: use two layers that share their weights."
            )

    known = [isinstance(layer, InferenceLayer) for layer in names]
    for layer in itertools.compress(names, known):
        layer.register_forward_pre_hook(note)
    with torch.no_grad():
        module.eval()(*inputs)
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
