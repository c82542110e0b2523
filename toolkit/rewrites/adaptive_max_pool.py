"""An adaptive max pool as an ordinary one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments, parts
from acmix.toolkit.rewrites._graph import calls, emit_before, remove_unused, replace, shape_of

ATEN = torch.ops.aten


@dataclass(frozen=True)
class AdaptiveMaxPool:
    """Replace an adaptive max pool whose output divides its input by a max pool with that kernel and stride.

    1. x has rank 4 and a fixed shape; nothing reads the positions of the maxima.

        adaptive_max_pool2d(x, 1)   becomes   max_pool2d(x, [H, W], [H, W])

    ExecuTorch 1.5.1 and litert-torch 0.10 refuse the whole network for it.
    """

    name: str = "adaptive_max_pool"
    claim: str = "exact"
    targets: tuple[str, ...] = ("executorch", "tflite")

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        found = [node for node in calls(program, ATEN.adaptive_max_pool2d.default) if _replace(program, node)]
        if found:
            remove_unused(program)
        return len(found)


def _replace(program: ExportedProgram, pool: Node) -> bool:
    given, readers = arguments(pool), parts(pool)
    x, size = given["self"], list(given["output_size"])
    shape = shape_of(x)
    if shape is None or len(shape) != 4 or readers is None or any(node.users for node in readers.get(1, [])):
        return False
    if any(length % wanted for length, wanted in zip(shape[2:], size, strict=True)):
        return False
    kernel = [length // wanted for length, wanted in zip(shape[2:], size, strict=True)]
    # A pool of 1 x 1 changes nothing, and delegates refuse it.
    found = x if kernel == [1, 1] else emit_before(program, pool)(ATEN.max_pool2d.default, x, kernel, kernel)
    for value in readers.get(0, []):
        replace(program, value, found)
    return bool(readers.get(0))


REWRITE = AdaptiveMaxPool()
