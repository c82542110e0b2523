"""A spatial mean that drops its axes, as one that keeps them and a reshape: delegates take only the latter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

ATEN = torch.ops.aten


@dataclass(frozen=True)
class KeepMeanDims:
    """Replace `mean(x, [2, 3])` of a 4-D tensor by a mean that keeps its axes, and a reshape.

    1. x has rank 4 and a fixed shape, the axes are the last two, and no other type is asked for.

        mean(x, [2, 3])   becomes   reshape(mean(x, [2, 3], keepdim=True), [N, C])
    """

    name: str = "keep_mean_dims"
    claim: str = "exact"
    targets: tuple[str, ...] = ()

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        means = [node for node in program.graph.nodes if _fits(node)]
        for node in means:
            kept = node.meta["val"].shape
            node.args = (node.args[0], node.args[1], True)
            with program.graph.inserting_after(node):
                flat = program.graph.call_function(ATEN.reshape.default, (node, list(kept)))
            flat.meta = {**node.meta}
            node.meta["val"] = node.meta["val"].reshape(*kept, 1, 1)
            node.replace_all_uses_with(flat, delete_user_cb=lambda user, flat=flat: user is not flat)
            program.graph_signature.replace_all_uses(node.name, flat.name)
        if means:
            program.graph_module.recompile()
        return len(means)


def _fits(node: Node) -> bool:
    if node.op != "call_function" or node.target is not ATEN.mean.dim or node.kwargs:
        return False
    x, axes, *keepdim = node.args
    if not isinstance(x, Node) or not isinstance(axes, list | tuple) or any(keepdim):
        return False
    shape = x.meta["val"].shape
    fixed = all(isinstance(size, int) for size in shape)
    return len(shape) == 4 and fixed and sorted(int(str(a)) % 4 for a in axes) == [2, 3]


REWRITE = KeepMeanDims()
