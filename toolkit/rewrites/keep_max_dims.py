"""A maximum as one that keeps its axes, one at a time: one delegate takes only that and aborts on others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import GETITEM, arguments, axis, is_floating, parts
from acmix.toolkit.rewrites._graph import Emit, calls, emit_before, remove_unused, replace, shape_of

ATEN = torch.ops.aten


@dataclass(frozen=True)
class KeepMaxDims:
    """Replace `amax`, and `max` along an axis, by `max` that keeps axis 2 or 3 of rank 4.

    1. x is a floating-point tensor of fixed shape; nothing reads the positions of the maxima.
    2. Rank 4 and spatial axes: one axis after the other. Rank 4 and channels: a permutation puts them last.
       Any other run of neighbouring axes: x seen as [1, before, run, after], its axis 2.

        amax(x, [2, 3])          becomes   reshape(max(max(x, 2, True), 3, True), [N, C])
        max(x, 1, True).values   becomes   permute(max(permute(x, [0, 2, 3, 1]), 3, True), [0, 3, 1, 2])

    XNNPACK in ExecuTorch 1.5.1 takes a `max` that keeps axis 2 or 3 of rank 4, aborts the whole lowering on any
    other `max`, and leaves `amax` out.
    """

    name: str = "keep_max_dims"
    claim: str = "exact"
    targets: tuple[str, ...] = ("executorch",)

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        times = sum(_replace_amax(program, node) for node in calls(program, ATEN.amax.default))
        times += sum(_replace_max(program, node) for node in calls(program, ATEN.max.dim))
        if times:
            remove_unused(program)
        return times


def _replace_amax(program: ExportedProgram, amax: Node) -> bool:
    given = arguments(amax)
    x = given["self"]
    shape = shape_of(x)
    if not shape or not is_floating(x):
        return False
    axes = sorted({axis(a, len(shape)) for a in given["dim"] or range(len(shape))})
    found = _maximum(emit_before(program, amax), x, axes, list(amax.meta["val"].shape))
    if found is not None:
        replace(program, amax, found)
    return found is not None


def _replace_max(program: ExportedProgram, maximum: Node) -> bool:
    given = arguments(maximum)
    x = given["self"]
    shape = shape_of(x)
    if not shape or not is_floating(x) or not _only_values(maximum):
        return False
    along = axis(given["dim"], len(shape))
    if len(shape) == 4 and along in (2, 3) and given["keepdim"]:
        return False
    return _replace_values(program, maximum, x, [along])


def _only_values(node: Node) -> bool:
    readers = parts(node)
    return readers is not None and not any(reader.users for reader in readers.get(1, []))


def _replace_values(program: ExportedProgram, node: Node, x: Node, axes: list[int]) -> bool:
    values = (parts(node) or {}).get(0, [])
    shape = list(node.meta["val"][0].shape)
    found = _maximum(emit_before(program, node), x, axes, shape) if values else None
    if found is not None:
        for value in values:
            replace(program, value, found)
    return found is not None


def _maximum(emit: Emit, x: Node, axes: list[int], shape: list[int]) -> Node | None:
    """The maximum of x over the axes, shaped as wanted; None when the axes are not neighbours."""
    sizes, result = list(x.meta["val"].shape), x
    if len(sizes) == 4 and axes == [1]:
        last = emit(GETITEM, emit(ATEN.max.dim, emit(ATEN.permute.default, x, [0, 2, 3, 1]), 3, True), 0)
        result, axes = emit(ATEN.permute.default, last, [0, 3, 1, 2]), []
    elif axes == list(range(axes[0], axes[-1] + 1)) and not (len(sizes) == 4 and axes[0] >= 2):
        run = [math.prod(sizes[: axes[0]]), math.prod(sizes[a] for a in axes), math.prod(sizes[axes[-1] + 1 :])]
        result, axes = emit(ATEN.reshape.default, x, [1, *run]), [2]
    elif len(sizes) != 4 or axes[0] < 2:
        return None
    for along in axes:
        result = emit(GETITEM, emit(ATEN.max.dim, result, along, True), 0)
    kept = list(result.meta["val"].shape)
    return result if kept == shape else emit(ATEN.reshape.default, result, shape)


REWRITE = KeepMaxDims()
