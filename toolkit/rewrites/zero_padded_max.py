"""A padded max pooling of values that are 0 or more as zero padding and a max pooling: one delegate takes only that."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments
from acmix.toolkit.rewrites._graph import calls, emit_before, remove_unused, replace, shape_of
from acmix.toolkit.rewrites._memory import is_written_between

ATEN = torch.ops.aten
NEVER_NEGATIVE = (
    ATEN.relu.default,
    ATEN.relu_.default,
    ATEN.sigmoid.default,
    ATEN.hardsigmoid.default,
)
CLIPPED = (ATEN.hardtanh.default, ATEN.hardtanh_.default)


@dataclass(frozen=True)
class ZeroPaddedMax:
    """Pad with zeros before a max pooling that pads by itself, with -inf.

    1. x comes from an activation that gives nothing below 0, and is not written in between.
    2. The pooling has no dilation and no ceil_mode.

    litert-torch pads a max pooling by a PADV2 of -inf, which XNNPACK leaves to a slow kernel; zeros it takes.

        max_pool2d(relu(y), 3, 2, 1)   becomes   max_pool2d(pad(relu(y), [1, 1, 1, 1]), 3, 2)
    """

    name: str = "zero_padded_max"
    claim: str = "exact"
    targets: tuple[str, ...] = ("tflite",)

    def apply(self, program: ExportedProgram) -> int:
        """Pad wherever the precondition holds; how often it did."""
        times = sum(_replace(program, node) for node in calls(program, ATEN.max_pool2d.default))
        if times:
            remove_unused(program)
        return times


def _replace(program: ExportedProgram, pool: Node) -> bool:
    given = arguments(pool)
    x = given["self"]
    if not isinstance(x, Node) or not _is_never_negative(x) or shape_of(x) is None:
        return False
    kernel, stride, padding, dilation = (_pair(given[n]) for n in ("kernel_size", "stride", "padding", "dilation"))
    if padding in ((), (0, 0)) or dilation not in ((), (1, 1)) or given["ceil_mode"]:
        return False
    if is_written_between(x, x, pool):
        return False
    emit = emit_before(program, pool)
    rows, columns = padding
    padded = emit(ATEN.pad.default, x, [columns, columns, rows, rows])
    replace(program, pool, emit(ATEN.max_pool2d.default, padded, list(kernel), list(stride or kernel)))
    return True


def _is_never_negative(x: Node) -> bool:
    return x.target in NEVER_NEGATIVE or (x.target in CLIPPED and arguments(x)["min_val"] >= 0)


def _pair(sizes: object) -> tuple[int, ...]:
    """(rows, columns) of an argument that may be one number, a list of one or two, or an empty list."""
    numbers = tuple(int(str(size)) for size in (sizes if isinstance(sizes, list | tuple) else [sizes]))
    return numbers * 2 if len(numbers) == 1 else numbers


REWRITE = ZeroPaddedMax()
