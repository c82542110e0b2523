"""nn.Unfold as a zero padding, slices and concatenations, or, under weights, as slices, products and sums."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites import _weighted_taps
from acmix.toolkit.rewrites._graph import Emit, calls, emit_before, remove_unused, replace, shape_of
from acmix.toolkit.rewrites._taps import Window, joined, padded, taps

ATEN = torch.ops.aten


@dataclass(frozen=True)
class Unfold:
    """Replace im2col, whose result is [N, C * kh * kw, L] with the channel outermost.

    1. x has a fixed shape, [N, C, H, W] or [C, H, W].
    2. Windows that lie side by side (kernel = stride) are two permutations.
    3. `sum(view(unfold(x), [N, ..., kh * kw, ...]) * weights, taps)` is a sum over the taps of slices times
       weights: involution, LSNet's convolution.  Nobody else may read what is between.
    4. Otherwise the taps along the rows, then along the columns, are concatenated.

    XNNPACK and ONNX Runtime know no im2col: gathers take its place, outside the delegates (an involution of 32
    channels, 56 x 56, on ExecuTorch: 42 ms, here 0.9).  Core ML's converter makes it a dense one-hot convolution.
    """

    name: str = "unfold"
    claim: str = "exact"
    targets: tuple[str, ...] = ()

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        times = sum(_replace(program, node) for node in calls(program, ATEN.im2col.default))
        if times:
            remove_unused(program)
        return times


def _replace(program: ExportedProgram, node: Node) -> bool:
    x = node.args[0]
    shape = shape_of(x) if isinstance(x, Node) else None
    if not isinstance(x, Node) or shape is None or 0 in shape or shape_of(node) is None:
        return False
    rows, columns = (
        Window(length, *(int(str(values[i])) for values in node.args[1:5]))  # type: ignore[index]
        for i, length in enumerate(shape[-2:])
    )
    if (weighted := _weighted_taps.find(node, rows.size * columns.size)) is not None:
        emit = emit_before(program, weighted.total)
        maps = _maps(emit, x, shape, rows, columns)
        replace(program, weighted.total, _weighted_taps.emit_sum(emit, weighted, maps))
        return True
    emit = emit_before(program, node)
    unfolded = _patches if rows.lies_side_by_side and columns.lies_side_by_side else _unfolded
    result = unfolded(emit, x, math.prod(shape[:-2]), rows, columns)
    replace(program, node, emit(ATEN.reshape.default, result, list(shape_of(node) or ())))
    return True


def _maps(emit: Emit, x: Node, shape: tuple[int, ...], rows: Window, columns: Window) -> list[Node]:
    """x at each of the taps, [N * C, places, places]."""
    flat = emit(ATEN.reshape.default, x, [math.prod(shape[:-2]), *shape[-2:]])
    x = padded(emit, flat, rows, columns)
    return [tap for row in taps(emit, x, rows, 1) for tap in taps(emit, row, columns, 2)]


def _unfolded(emit: Emit, x: Node, images: int, rows: Window, columns: Window) -> Node:
    """[images, kh * kw, places, places] in the order of the elements."""
    flat = emit(ATEN.reshape.default, x, [images, rows.length, columns.length])
    x = padded(emit, flat, rows, columns)
    width = int(x.meta["val"].shape[2])
    x = emit(ATEN.reshape.default, x, [images, 1, -1, width])
    x = joined(emit, taps(emit, x, rows, 2), 1)
    x = emit(ATEN.reshape.default, x, [images * rows.size, 1, rows.places, width])
    return joined(emit, taps(emit, x, columns, 3), 1)


def _patches(emit: Emit, x: Node, images: int, rows: Window, columns: Window) -> Node:
    """The same for windows side by side: the columns inside a patch go before the patches, then the rows do."""
    flat = emit(ATEN.reshape.default, x, [images, rows.length, columns.length])
    x = padded(emit, flat, rows, columns)
    x = emit(ATEN.reshape.default, x, [images * rows.places, rows.size, columns.places, columns.size])
    x = emit(ATEN.permute.default, x, [0, 1, 3, 2])
    x = emit(ATEN.reshape.default, x, [images, rows.places, rows.size * columns.size, columns.places])
    return emit(ATEN.permute.default, x, [0, 2, 1, 3])


REWRITE = Unfold()
