"""A max pooling that leaves its stride out, with the stride that it means: coremltools needs to read one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.export import ExportedProgram

from acmix.toolkit.rewrites._graph import calls

ATEN = torch.ops.aten


@dataclass(frozen=True)
class MaxPoolStride:
    """Write the stride of `max_pool2d(x, kernel)` out: the kernel itself, as PyTorch defines it.

        max_pool2d(x, [2, 2])   becomes   max_pool2d(x, [2, 2], [2, 2])

    coremltools 9 fails on the short form: "got 2 input(s), expected minimum 3".
    """

    name: str = "max_pool_stride"
    claim: str = "exact"
    targets: tuple[str, ...] = ("coreml",)

    def apply(self, program: ExportedProgram) -> int:
        """Write the stride out wherever it is missing; how often it was."""
        short = [n for n in calls(program, ATEN.max_pool2d.default) if len(n.args) == 2 or n.args[2] == []]
        for node in short:
            node.args = (*node.args[:2], node.args[1], *node.args[3:])
        if short:
            program.graph_module.recompile()
        return len(short)


REWRITE = MaxPoolStride()
