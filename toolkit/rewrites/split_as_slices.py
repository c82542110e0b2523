"""split, chunk, unbind and a selected index as slices: ExecuTorch's XNNPACK takes slices only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments, axis, parts
from acmix.toolkit.rewrites._graph import calls, emit_before, remove_unused, replace, shape_of

ATEN = torch.ops.aten
SPLITS = (
    ATEN.split.Tensor,
    ATEN.split.sizes,
    ATEN.split_with_sizes.default,
    ATEN.chunk.default,
    ATEN.unsafe_split.Tensor,
    ATEN.unsafe_chunk.default,
    ATEN.tensor_split.sections,
    ATEN.tensor_split.indices,
)


@dataclass(frozen=True)
class SplitAsSlices:
    """Replace the parts of a split by slices.

    1. x has a fixed shape and every reader of the split takes one part of it.
    2. unbind and select drop their axis: a slice of one, then a reshape.

        split(x, [a, b], 1)   becomes   slice(x, 1, 0, a), slice(x, 1, a, a + b)
        select(x, 1, i)       becomes   reshape(slice(x, 1, i, i + 1), ...)

    ExecuTorch 1.5.1 lowers a split to split_with_sizes_copy and an unbind to squeeze_copy, neither of which its
    XNNPACK delegate takes; TFLite, Core ML and ONNX have a split of their own.
    """

    name: str = "split_as_slices"
    claim: str = "exact"
    targets: tuple[str, ...] = ("executorch",)

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        splits = [node for node in calls(program, *SPLITS) if _slice_parts(program, node)]
        unbound = [node for node in calls(program, ATEN.unbind.int) if _slice_indices(program, node)]
        selected = [node for node in calls(program, ATEN.select.int) if _slice_index(program, node)]
        times = len(splits) + len(unbound) + len(selected)
        if times:
            remove_unused(program)
        return times


def _slice_parts(program: ExportedProgram, split: Node) -> bool:
    x, readers = split.args[0], parts(split)
    shape = shape_of(x) if isinstance(x, Node) else None
    if shape is None or readers is None:
        return False
    along = axis(arguments(split)["dim"], len(shape))
    sizes = [int(value.shape[along]) for value in split.meta["val"]]
    for part, nodes in readers.items():
        start = sum(sizes[: part % len(sizes)])
        for node in nodes:
            emit = emit_before(program, node)
            replace(program, node, emit(ATEN.slice.Tensor, x, along, start, start + sizes[part % len(sizes)]))
    return True


def _slice_indices(program: ExportedProgram, unbind: Node) -> bool:
    x, readers = unbind.args[0], parts(unbind)
    shape = shape_of(x) if isinstance(x, Node) else None
    if not isinstance(x, Node) or shape is None or readers is None:
        return False
    along = axis(arguments(unbind)["dim"], len(shape))
    for part, nodes in readers.items():
        for node in nodes:
            replace(program, node, _one_index(program, node, x, along, part % shape[along]))
    return True


def _slice_index(program: ExportedProgram, select: Node) -> bool:
    x = select.args[0]
    shape = shape_of(x) if isinstance(x, Node) else None
    index = arguments(select)["index"]
    if not isinstance(x, Node) or shape is None or len(shape) < 2 or not isinstance(index, int):
        return False
    along = axis(arguments(select)["dim"], len(shape))
    replace(program, select, _one_index(program, select, x, along, index % shape[along]))
    return True


def _one_index(program: ExportedProgram, place: Node, x: Node, along: int, index: int) -> Node:
    emit = emit_before(program, place)
    shape = list(x.meta["val"].shape)
    part = emit(ATEN.slice.Tensor, x, along, index, index + 1)
    return emit(ATEN.reshape.default, part, shape[:along] + shape[along + 1 :])


REWRITE = SplitAsSlices()
