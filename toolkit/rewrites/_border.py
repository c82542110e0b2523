"""Padding with an image's own border as slices and concatenations: what the rules for it share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._graph import Emit, calls, emit_before, remove_unused, replace, shape_of

ATEN = torch.ops.aten
Mode = Literal["reflect", "replicate", "circular"]
MODES: dict[str, Mode] = {"reflect": "reflect", "replicate": "replicate", "circular": "circular"}
NAMED: dict[OpOverload, Mode] = {
    ATEN.reflection_pad1d.default: "reflect",
    ATEN.reflection_pad2d.default: "reflect",
    ATEN.replication_pad1d.default: "replicate",
    ATEN.replication_pad2d.default: "replicate",
}


@dataclass(frozen=True)
class BorderPad:
    """Replace `pad(x, widths, mode)` of these modes, axis by axis.

    1. x has a fixed shape and no width is negative.
    2. A circular border is one slice, a reflected one a slice for each row, a repeated one a slice again and again.
    """

    name: str
    modes: tuple[Mode, ...]
    targets: tuple[str, ...]
    claim: str = "exact"

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        pads = [n for n in calls(program, ATEN.pad.default, *NAMED) if _mode(n) in self.modes]
        times = sum(_replace(program, node) for node in pads)
        if times:
            remove_unused(program)
        return times


def _replace(program: ExportedProgram, node: Node) -> bool:
    x, widths, mode = node.args[0], node.args[1], _mode(node)
    if mode is None or not isinstance(x, Node) or shape_of(x) is None or not isinstance(widths, list | tuple):
        return False
    numbers = [int(str(width)) for width in widths]
    if min(numbers) < 0:
        return False
    emit = emit_before(program, node)
    rank = x.meta["val"].dim()
    padded = x
    for i, (before, after) in enumerate(zip(numbers[::2], numbers[1::2], strict=True)):
        padded = _extended(emit, padded, rank - 1 - i, (before, after), mode)
    replace(program, node, emit(ATEN.clone.default, x) if padded is x else padded)
    return True


def _mode(node: Node) -> Mode | None:
    if isinstance(node.target, OpOverload) and node.target in NAMED:
        return NAMED[node.target]
    named = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    return MODES.get(str(named))


def _extended(emit: Emit, x: Node, axis: int, widths: tuple[int, int], mode: Mode) -> Node:
    """x with its border along one axis, `widths` before and after."""
    before, after = (_border(emit, x, axis, width, mode, i == 0) for i, width in enumerate(widths))
    return emit(ATEN.cat.default, [*before, x, *after], axis) if before or after else x


def _border(emit: Emit, x: Node, axis: int, width: int, mode: Mode, leading: bool) -> list[Node]:
    """What stands before (or after) x along the axis, in order."""
    last = int(x.meta["val"].shape[axis]) - 1
    if mode == "circular":
        start = last + 1 - width if leading else 0
        return [emit(ATEN.slice.Tensor, x, axis, start, start + width)] if width else []
    if mode == "replicate":
        rows = [0 if leading else last] * width
    else:
        rows = [width - i if leading else last - 1 - i for i in range(width)]
    slices = {row: emit(ATEN.slice.Tensor, x, axis, row, row + 1) for row in dict.fromkeys(rows)}
    return [slices[row] for row in rows]
