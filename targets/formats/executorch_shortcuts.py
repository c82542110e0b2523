"""Work that ExecuTorch's lowering repeats and does not need: without it, it takes about half the time."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@contextlib.contextmanager
def shortcuts(program: ExportedProgram) -> Iterator[None]:
    """Skip what cannot matter for this program (MobileNetV2, seconds here: 8.7 before, 4.1 after, same bytes).

    3.3 s: two XNNPACK passes export attention and resize examples to match against; a program without a
    softmax or an upsampling has nothing to match.  0.6 s: every copy of a node copies its whole history.
    0.4 s: the garbage collector walks all of torch again and again.
    """
    with _without_pattern_examples(program), _sharing_histories(), _without_collection():
        yield


@contextlib.contextmanager
def _without_pattern_examples(program: ExportedProgram) -> Iterator[None]:
    from executorch.backends.xnnpack.partition.graphs import bilinear_2d, sdpa

    kinds = " ".join(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    attention, resize = sdpa.get_graphs, bilinear_2d.get_graphs_dict
    if "softmax" not in kinds and "attention" not in kinds:
        sdpa.get_graphs = list
    if "upsample" not in kinds and "index" not in kinds:
        bilinear_2d.get_graphs_dict = dict
    try:
        yield
    finally:
        sdpa.get_graphs, bilinear_2d.get_graphs_dict = attention, resize


@contextlib.contextmanager
def _sharing_histories() -> Iterator[None]:
    from torch.fx.traceback import NodeSource

    def shared(self: NodeSource, memo: object) -> NodeSource:
        return self

    NodeSource.__deepcopy__ = shared  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del NodeSource.__deepcopy__  # type: ignore[attr-defined]


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def fold_constants() -> Any:
    """A pass over the edge program that computes, while lowering, what depends on constants alone.

    Otherwise portable kernels compute it at every inference: the index tables of a reflection pad, the integer
    3 and 6 of a hard sigmoid cast to float.
    """
    from executorch.exir.pass_base import ExportedProgramPassBase, ExportedProgramPassResult
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    class FoldConstants(ExportedProgramPassBase):  # type: ignore[misc]
        def call(self, exported_program: ExportedProgram) -> Any:
            folded = constant_prop_pass(exported_program, _skip_dim_order=False)
            return ExportedProgramPassResult(folded, modified=True)

    return FoldConstants()
