"""Which node of a graph each XNNPACK operator came from: by kind and order, where only one answer is possible.

XNNPACK's profile lists its operators in order by name alone. It makes them from the nodes of the graph in order, fuses
activations and padding into convolutions, and adds copies and transposes of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

PRODUCTS = frozenset({"conv2d", "fullyconnected"})
NAMES: dict[str, frozenset[str]] = {
    "convolution": frozenset({"conv2d", "depthwiseconv2d"}),
    "fullyconnected": PRODUCTS,
    "dynamicfullyconnected": PRODUCTS | {"batchmatmul", "batchmatrixmultiply"},
    "deconvolution": frozenset({"transposeconv", "convtranspose2d"}),
    "batchmatrixmultiply": frozenset({"batchmatmul", "batchmatrixmultiply"}),
    "subtract": frozenset({"sub", "subtract"}),
    "multiply": frozenset({"mul", "multiply"}),
    "divide": frozenset({"div"}),
    "clamp": frozenset({"relu", "relu6", "relun1to1", "clamp"}),
    "constantpad": frozenset({"pad", "padv2", "constantpad"}),
    "sigmoid": frozenset({"logistic", "sigmoid"}),
    "resizebilinear": frozenset({"resizebilinear", "resizebilinear2d"}),
    "reshape": frozenset({"reshape", "squeeze", "expanddims"}),
    "copy": frozenset({"concatenation", "concatenate", "split", "copy", "reshape"}),
    "slice": frozenset({"slice", "stridedslice", "split"}),
    "maxpooling": frozenset({"maxpool2d", "maxpooling2d"}),
    "averagepooling": frozenset({"averagepool2d", "avgpooling2d", "globalavgpooling2d"}),
    "mean": frozenset({"mean", "globalavgpooling2d"}),
    "negate": frozenset({"neg", "negate"}),
    "squareroot": frozenset({"sqrt", "squareroot"}),
    "reciprocalsquareroot": frozenset({"rsqrt", "reciprocalsquareroot"}),
    "ceiling": frozenset({"ceil", "ceiling"}),
    "approxgelu": frozenset({"gelu"}),
    "sine": frozenset({"sin"}),
    "cosine": frozenset({"cos"}),
    "convert": frozenset({"quantize", "dequantize", "convert"}),
}
"""An operator of XNNPACK, and the nodes of TFLite and ExecuTorch that become it; others have one name everywhere."""


@dataclass(frozen=True)
class GraphNode:
    """A node of a delegate's graph: its format's kind, and of how many XNNPACK operators it may consist."""

    kind: str
    operators: int = 1


def align(events: Sequence[str], nodes: Sequence[GraphNode]) -> list[int | None]:
    """The node of each event (XNNPACK's name of an operator), None where more than one answer is possible.

    The longest alignments that keep both orders are looked at, all of them: an event is given a node when every one of
    them gives it that node.
    """
    slots = [(index, _kind(node.kind)) for index, node in enumerate(nodes) for _ in range(node.operators)]
    wanted = [_names(event) for event in events]
    fits = [[kind in names for _, kind in slots] for names in wanted]
    before = _longest(fits, len(slots))
    after = [row[::-1] for row in _longest([row[::-1] for row in fits[::-1]], len(slots))][::-1]
    total = before[-1][-1]
    found: list[int | None] = []
    for i, row in enumerate(fits):
        on_path = {slots[j][0] for j, fit in enumerate(row) if fit and before[i][j] + 1 + after[i + 1][j + 1] == total}
        skipped = any(before[i][j] + after[i + 1][j] == total for j in range(len(slots) + 1))
        found.append(on_path.pop() if len(on_path) == 1 and not skipped else None)
    return found


def _longest(fits: Sequence[Sequence[bool]], width: int) -> list[list[int]]:
    """The length of the longest alignment of the first i events with the first j slots, for every i and j."""
    table = [[0] * (width + 1)]
    for row in fits:
        above, current = table[-1], [0]
        for j, fit in enumerate(row):
            current.append(max(above[j + 1], current[j], above[j] + fit))
        table.append(current)
    return table


def _kind(kind: str) -> str:
    plain = re.sub(r"_", "", kind.removeprefix("XNN")).lower().removeprefix("static")
    return re.sub(r"^concatenate\d$", "concatenate", plain)


def _names(event: str) -> frozenset[str]:
    plain = event.partition(" (")[0].replace(" ", "").lower().removeprefix("static")
    return NAMES.get(plain, frozenset({plain}))
