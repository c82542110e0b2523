"""A log-softmax by maximum, exponential and mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import GETITEM, arguments, axis, is_floating
from acmix.toolkit.rewrites._graph import calls, emit_before, remove_unused, replace, shape_of

ATEN = torch.ops.aten


@dataclass(frozen=True)
class LogSoftmax:
    """Replace a log-softmax along an axis of D values by y - (log(mean(exp(y))) + log(D)), y = x - max(x).

    1. x has a fixed shape without an empty axis, and no other type is asked for.
    2. x is seen as [1, A, 1, D]; another axis than the last is brought there first.

        log_softmax(x, 1)   becomes   max, sub, exp, mean, log, add, sub

    XNNPACK in ExecuTorch 1.5.1 has no log-softmax, and takes these. y is at most 0, so nothing overflows, and a
    probability that rounds to 0 keeps its logarithm.
    """

    name: str = "log_softmax"
    claim: str = "exact"
    targets: tuple[str, ...] = ("executorch",)

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        found = [node for node in calls(program, ATEN.log_softmax.int) if _replace(program, node)]
        if found:
            remove_unused(program)
        return len(found)


def _replace(program: ExportedProgram, node: Node) -> bool:
    given = arguments(node)
    x, shape = given["self"], shape_of(node)
    if not shape or 0 in shape or not is_floating(x) or given["dtype"] not in (None, x.meta["val"].dtype):
        return False
    along = axis(given["dim"], len(shape))
    before, size, after = math.prod(shape[:along]), shape[along], math.prod(shape[along + 1 :])
    emit = emit_before(program, node)
    last = x if after == 1 else emit(ATEN.reshape.default, x, [before, size, after])
    last = last if after == 1 else emit(ATEN.permute.default, last, [0, 2, 1])
    rows = emit(ATEN.reshape.default, last, [1, before * after, 1, size])
    low = emit(ATEN.sub.Tensor, rows, emit(GETITEM, emit(ATEN.max.dim, rows, 3, True), 0))
    mean = emit(ATEN.mean.dim, emit(ATEN.exp.default, low), [2, 3], True)
    result = emit(ATEN.sub.Tensor, low, emit(ATEN.add.Tensor, emit(ATEN.log.default, mean), math.log(size)))
    if after > 1:
        result = emit(ATEN.reshape.default, result, [before, after, size])
        result = emit(ATEN.permute.default, result, [0, 2, 1])
    replace(program, node, emit(ATEN.reshape.default, result, list(shape)))
    return True


REWRITE = LogSoftmax()
