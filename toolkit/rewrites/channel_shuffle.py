"""A channel shuffle taken into the weights beside it, or spelled as a transposition of rank 4."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments, axis
from acmix.toolkit.rewrites._channels import Reordering, absorb
from acmix.toolkit.rewrites._graph import emit_before, remove_unused, replace, shape_of

ATEN = torch.ops.aten
VIEWS = (ATEN.view.default, ATEN.reshape.default, ATEN.flatten.using_ints, ATEN.unflatten.int)
COPIES = (ATEN.contiguous.default, ATEN.clone.default)
SWAPS = (ATEN.transpose.int, ATEN.permute.default, ATEN.swapaxes.default)
NATIVE = (ATEN.channel_shuffle.default, ATEN.native_channel_shuffle.default)


@dataclass(frozen=True)
class ChannelShuffle:
    """Take a channel shuffle into the weights of the layers after it, else of the layer before it.

    1. It is nn.ChannelShuffle, or [N, C, ...] seen as [N, g, C / g, ...], axes 1 and 2 swapped, seen as [N, C, ...].
    2. Between it and each layer that reads it stand only operators that treat channels alike, or with constants of
       one value a channel (batch norm), which are reordered. A layer with groups takes what keeps its groups
       together; a depthwise one passes any order on.
    3. Or the same on the way back to one layer, with no other reader on it.
    4. Otherwise nn.ChannelShuffle becomes reshapes and a transposition of rank 4; the other form is left.

        conv2d(relu(shuffle(x)), w)   becomes   conv2d(relu(x), w'), the columns of w reordered

    coremltools 9 refuses nn.ChannelShuffle; litert-torch writes three transpositions for each. 64 channels of
    56 x 56 between two convolutions: 0.27 to 0.16 ms on ExecuTorch, 0.23 to 0.14 ms on ONNX Runtime.
    """

    name: str = "channel_shuffle"
    claim: str = "exact"
    targets: tuple[str, ...] = ()

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        times = 0
        for node in list(program.graph.nodes):
            found = _shuffle(node) if node.op == "call_function" and node.users else None
            if found is None:
                continue
            source, groups = found
            order = _order(int(source.meta["val"].shape[1]), groups)
            taken = absorb(program, node, source, order, True) or absorb(program, node, source, order, False)
            times += taken or _spell(program, node, source, groups)
        return times


def _order(channels: int, groups: int) -> Reordering:
    return Reordering(torch.arange(channels).reshape(groups, -1).t().flatten(), channels)


def _shuffle(node: Node) -> tuple[Node, int] | None:
    """What this node shuffles, and in how many groups; None when it is no shuffle."""
    if node.target in NATIVE and shape_of(node.args[0]) is not None:  # type: ignore[arg-type]
        return node.args[0], int(arguments(node)["groups"])  # type: ignore[return-value]
    swap = _through(node.args[0], COPIES) if node.target in VIEWS else None
    view = _through(swap.args[0], COPIES) if swap is not None and swap.target in SWAPS else None
    source = view.args[0] if view is not None and view.target in VIEWS else None
    if swap is None or view is None or not isinstance(source, Node):
        return None
    before, seen, after = shape_of(source), shape_of(view), shape_of(node)
    if before is None or seen is None or after is None or not _swaps_one_and_two(swap, len(seen)):
        return None
    fits = before == after and len(seen) >= 3 and len(before) >= 2 and seen[0] == before[0]
    return (source, seen[1]) if fits and seen[1] * seen[2] == before[1] else None


def _through(value: object, operators: tuple[object, ...]) -> Node | None:
    while isinstance(value, Node) and value.target in operators:
        value = value.args[0]
    return value if isinstance(value, Node) and value.op == "call_function" else None


def _swaps_one_and_two(swap: Node, rank: int) -> bool:
    if swap.target is ATEN.permute.default:
        order = [axis(a, rank) for a in arguments(swap)["dims"]]
        return order == [0, 2, 1, *range(3, rank)]
    return {axis(a, rank) for a in swap.args[1:3] if isinstance(a, int)} == {1, 2}


def _spell(program: ExportedProgram, node: Node, source: Node, groups: int) -> bool:
    """nn.ChannelShuffle as reshapes around a transposition."""
    if node.target not in NATIVE:
        return False
    shape = list(source.meta["val"].shape)
    emit = emit_before(program, node)
    seen = emit(ATEN.reshape.default, source, [shape[0], groups, shape[1] // groups, math.prod(shape[2:])])
    swapped = emit(ATEN.permute.default, seen, [0, 2, 1, 3])
    replace(program, node, emit(ATEN.reshape.default, swapped, shape))
    remove_unused(program)
    return True


REWRITE = ChannelShuffle()
