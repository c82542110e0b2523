"""A chain of views and permutations through rank six or more, as one through rank five or less."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._graph import calls, emit_before, remove_unused, replace, shape_of
from acmix.toolkit.rewrites._memory import is_exclusive, writers
from acmix.toolkit.rewrites._movement import MOVES, RESHAPES, Axes, axes_of, moved, steps

ATEN = torch.ops.aten
UNFOLD = ATEN.unfold.default
HIGHEST_RANK = 5
"""Core ML's limit."""


@dataclass(frozen=True)
class RankAboveFive:
    """Replace a chain of views, permutations and copies from rank <= 5 over rank > 5 to rank <= 5.

    1. Every shape is fixed, and views between permutations do not cut across the factors of an axis.
       Tensor.unfold counts when its pieces lie side by side.
    2. Factors that stay neighbours are one.  If five or fewer are left, one permutation is enough; if eight or
       fewer, blocks of them change places in the fewest swaps, each a permutation of rank 4.

    Core ML refuses rank 6, or splits a permutation of it in six; Tensor.unfold is refused by Core ML and TFLite.

        view(x, [1, 2, 4, 2, 4, C]) -> permute([0, 1, 3, 2, 4, 5]) -> view([4, 16, C])
        becomes   reshape(x, [2, 4, 2, 4 * C]) -> permute([0, 2, 1, 3]) -> reshape([4, 16, C])
    """

    name: str = "rank_above_five"
    claim: str = "exact"
    targets: tuple[str, ...] = ()

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        times = 0
        for node in reversed(calls(program, *MOVES)):
            if node.users:
                times += _replace(program, node)
            else:
                program.graph.erase_node(node)
        if times:
            remove_unused(program)
        return times


def _replace(program: ExportedProgram, last: Node) -> bool:
    chain = _chain(last)
    found = steps(chain[1], HIGHEST_RANK) if chain is not None else None
    if chain is None or found is None:
        return False
    source, _ = chain
    shape = shape_of(last)
    emit = emit_before(program, last)
    result = source
    for step in found:
        result = emit(ATEN.reshape.default, result, list(step.shape))
        result = emit(ATEN.permute.default, result, list(step.order))
    replace(program, last, emit(ATEN.reshape.default, result, list(shape or ())))
    return True


def _chain(last: Node) -> tuple[Node, Axes] | None:
    """Where the chain that ends here begins, and what it makes of the source's axes."""
    nodes, source = [last], last.args[0]
    while isinstance(source, Node) and (_rank(source) > HIGHEST_RANK or source.target is UNFOLD):
        if source.target not in MOVES:
            return None
        nodes.insert(0, source)
        source = source.args[0]
    if not isinstance(source, Node) or not _rank(source) or _are_written(source, nodes):
        return None
    if not 0 < _rank(last) <= HIGHEST_RANK or (len(nodes) == 1 and last.target is not UNFOLD):
        return None
    # What the first and the last reshape cut across does not matter: elements keep their order in both.
    start = nodes.pop(0) if nodes[0].target in RESHAPES else source
    if nodes[-1].target in RESHAPES:
        nodes.pop()
    axes: Axes | None = axes_of(shape_of(start) or ())
    for node in nodes:
        axes = moved(axes, node) if axes is not None else None
    return None if axes is None else (source, axes)


def _are_written(source: Node, nodes: list[Node]) -> bool:
    """Whether something writes into either end of the chain and another reader may see it: the chain may be a view."""
    if is_exclusive(source) and all(len(node.users) == 1 for node in nodes[:-1]):
        return False
    return any(writer > nodes[0] for end in (source, nodes[-1]) for writer in writers(end))


def _rank(node: Node) -> int:
    """0 when it has no fixed shape."""
    return len(shape_of(node) or ())


REWRITE = RankAboveFive()
