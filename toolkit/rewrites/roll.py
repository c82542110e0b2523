"""A cyclic shift as slices and concatenations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._graph import Emit, calls, emit_before, remove_unused, replace, shape_of

ATEN = torch.ops.aten


@dataclass(frozen=True)
class Roll:
    """Replace `roll(x, shifts, dims)` by two slices and a concatenation for each axis that moves.

    1. x has a fixed shape without an empty axis.  Without dims the flattened x rolls.
    2. Shifts count modulo the size, so that some axes need nothing.

    ExecuTorch has no delegate for it, and Core ML's converter makes each axis a gather.

        roll(x, 2, 3)   becomes   cat(x[..., -2:], x[..., :-2])
    """

    name: str = "roll"
    claim: str = "exact"
    targets: tuple[str, ...] = ()

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        times = sum(_replace(program, node) for node in calls(program, ATEN.roll.default))
        if times:
            remove_unused(program)
        return times


def _replace(program: ExportedProgram, node: Node) -> bool:
    x, shape = node.args[0], shape_of(node)
    if not isinstance(x, Node) or shape is None or 0 in shape or not shape:
        return False
    shifts, axes = _numbers(node.args[1]), _numbers(node.args[2] if len(node.args) > 2 else ())
    emit = emit_before(program, node)
    if axes:
        moved = rolled(emit, x, shifts, axes)
    else:
        flat = emit(ATEN.reshape.default, x, [-1])
        moved = emit(ATEN.reshape.default, rolled(emit, flat, shifts, (0,)), list(shape))
    if moved is x:
        moved = emit(ATEN.clone.default, x)
    replace(program, node, moved)
    return True


def rolled(emit: Emit, x: Node, shifts: Sequence[int], axes: Sequence[int]) -> Node:
    """x after its axes have moved by the shifts; x itself when nothing moves."""
    for shift, axis in zip(shifts, axes, strict=True):
        size = int(x.meta["val"].shape[axis])
        if cut := -shift % size:
            parts = [emit(ATEN.slice.Tensor, x, axis, *ends) for ends in ((cut, size), (0, cut))]
            x = emit(ATEN.cat.default, parts, axis)
    return x


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(int(str(v)) for v in value) if isinstance(value, list | tuple) else (int(str(value)),)


REWRITE = Roll()
