"""A zero padding before a convolution, or one of -inf before a maximum, as that layer's own padding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._graph import calls, remove_unused
from acmix.toolkit.rewrites._memory import is_written_between

ATEN = torch.ops.aten
ON_LINES = (ATEN.conv1d.default, ATEN.conv1d.padding)
ON_IMAGES = (ATEN.conv2d.default, ATEN.conv2d.padding)


@dataclass(frozen=True)
class Padding:
    """A constant border: the value, and the width on both sides of each of the last axes."""

    value: float
    widths: tuple[int, ...]


@dataclass(frozen=True)
class PadIntoConvolution:
    """Let `layer(pad(x))` pad by itself.

    1. The padding is constant, not negative and as wide before as after, on the layer's spatial axes only.
    2. A convolution takes zeros.
    3. max_pool2d takes -inf, without ceil_mode, as long as both paddings together are at most half a kernel.
    An average pooling keeps its padding outside: XNNPACK has none that counts the border.

    A padding of its own is one more copy of the image on XNNPACK and in Core ML; ONNX's exporter folds it too.

        conv2d(pad(x, [1, 1, 1, 1]), w, b, 2)   becomes   conv2d(x, w, b, 2, [1, 1])
    """

    name: str = "pad_into_convolution"
    claim: str = "exact"
    targets: tuple[str, ...] = ()

    def apply(self, program: ExportedProgram) -> int:
        """Fold wherever the precondition holds; how often it did."""
        times = sum(_fold(node) for node in calls(program, *ON_LINES, *ON_IMAGES))
        times += sum(_fold_maximum(node) for node in calls(program, ATEN.max_pool2d.default))
        if times:
            remove_unused(program)
        return times


def padding_of(layer: Node) -> tuple[Node, Padding] | None:
    """What the padding before a layer pads, and how; None when none is there that is constant and symmetric."""
    node = layer.args[0]
    if not isinstance(node, Node) or node.target not in (ATEN.pad.default, ATEN.constant_pad_nd.default):
        return None
    x, widths, *rest = node.args
    if node.target is ATEN.pad.default:
        mode, *rest = rest or [node.kwargs.get("mode", "constant")]
        if mode != "constant":
            return None
    value = rest[0] if rest else node.kwargs.get("value")
    if not isinstance(x, Node) or not isinstance(widths, list | tuple):
        return None
    if any(is_written_between(held, node, layer) for held in (x, node)):
        return None
    numbers = tuple(int(str(width)) for width in widths)
    if min(numbers) < 0 or numbers[::2] != numbers[1::2]:
        return None
    return x, Padding(float(str(value)) if value is not None else 0.0, numbers[::2][::-1])


def _fold(layer: Node) -> bool:
    found = padding_of(layer)
    if found is None:
        return False
    x, padding = found
    axes = 1 if layer.target in ON_LINES else 2
    _, weight, bias, stride, own, dilation, groups = _arguments(layer, (None, None, None, 1, 0, 1, 1))
    if own == "same" or padding.value != 0 or len(padding.widths) > axes:
        return False
    total = _sum(padding, (0,) * axes if own == "valid" else _each(own, axes))
    layer.target = ATEN.conv1d.default if axes == 1 else ATEN.conv2d.default
    layer.args = (x, weight, bias, _list(stride, axes), total, _list(dilation, axes), groups)  # type: ignore[assignment]
    layer.kwargs = {}
    return True


def _fold_maximum(layer: Node) -> bool:
    found = padding_of(layer)
    if found is None:
        return False
    x, padding = found
    _, kernel, stride, own, dilation, ceil_mode = _arguments(layer, (None, None, [], 0, 1, False))
    total = _sum(padding, _each(own, 2)) if len(padding.widths) <= 2 else []
    fits = all(2 * width <= size for width, size in zip(total, _each(kernel, 2), strict=False))
    if not total or not fits or ceil_mode or padding.value != -math.inf:
        return False
    layer.args = (x, _list(kernel, 2), _list(stride or kernel, 2), total, _list(dilation, 2))
    layer.kwargs = {}
    return True


def _arguments(node: Node, defaults: tuple[object, ...]) -> list[object]:
    """All arguments in the order of the schema, the defaults for those that the call leaves out."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = [*node.args, *defaults[len(node.args) :]]
    return [node.kwargs.get(name, value) for name, value in zip(names, given, strict=False)]


def _each(value: object, axes: int) -> tuple[int, ...]:
    numbers = [int(str(v)) for v in value] if isinstance(value, list | tuple) else [int(str(value))]
    return tuple(numbers * axes if len(numbers) == 1 else numbers)


def _list(value: object, axes: int) -> list[int]:
    return list(_each(value, axes))


def _sum(padding: Padding, own: tuple[int, ...]) -> list[int]:
    missing = len(own) - len(padding.widths)
    return [a + b for a, b in zip((*[0] * missing, *padding.widths), own, strict=True)]


REWRITE = PadIntoConvolution()
