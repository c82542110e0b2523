"""A softmax along the last axis of rank 2 or 3: one runtime takes no other, or gets it wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments, axis, is_floating
from acmix.toolkit.rewrites._graph import calls, emit_before, remove_unused, replace, shape_of

ATEN = torch.ops.aten


@dataclass(frozen=True)
class SoftmaxLastAxis:
    """Replace a softmax along a middle axis, or of rank 4 and more, by one along the last axis of rank 2 or 3.

    1. x has a fixed shape and no other type is asked for.
    2. x is seen as [A, D, B] around its axis of D; where B is 1, as [A, D].

        softmax(x, 1)   becomes   reshape(softmax(reshape(x, [A, D, B])^T, 2)^T, [N, C, H, W])

    XNNPACK in ExecuTorch 1.5.1 takes a softmax along the last axis only. Of rank 4, where a convolution came before,
    it normalises the wrong axis without a word: its map is channel-last there. A reshape puts it back.
    """

    name: str = "softmax_last_axis"
    claim: str = "exact"
    targets: tuple[str, ...] = ("executorch",)

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        found = [node for node in calls(program, ATEN.softmax.int) if _move(program, node)]
        if found:
            remove_unused(program)
        return len(found)


def _move(program: ExportedProgram, softmax: Node) -> bool:
    given = arguments(softmax)
    x, shape = given["self"], shape_of(softmax)
    if not shape or not is_floating(x) or given["dtype"] not in (None, x.meta["val"].dtype):
        return False
    along = axis(given["dim"], len(shape))
    if along == len(shape) - 1 and len(shape) <= 3:
        return False
    before, size, after = math.prod(shape[:along]), shape[along], math.prod(shape[along + 1 :])
    emit = emit_before(program, softmax)
    if after == 1:
        last = emit(ATEN.softmax.int, emit(ATEN.reshape.default, x, [before, size]), 1)
    else:
        turned = emit(ATEN.permute.default, emit(ATEN.reshape.default, x, [before, size, after]), [0, 2, 1])
        last = emit(ATEN.permute.default, emit(ATEN.softmax.int, turned, 2), [0, 2, 1])
    replace(program, softmax, emit(ATEN.reshape.default, last, list(shape)))
    return True


REWRITE = SoftmaxLastAxis()
