"""A gather of channels taken into the weights beside it, or as slices: no phone delegate takes a gather."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments, axis
from acmix.toolkit.rewrites._channels import Reordering, absorb
from acmix.toolkit.rewrites._graph import calls, constant_value, emit_before, remove_unused, replace, shape_of

ATEN = torch.ops.aten
COPIES = (
    ATEN.lift_fresh_copy.default,
    ATEN.detach.default,
    ATEN.detach_.default,
    ATEN.to.dtype_layout,
    ATEN.to.dtype,
    ATEN.to.device,
    ATEN.clone.default,
    ATEN.alias.default,
    ATEN.contiguous.default,
)
INTEGERS = (torch.int64, torch.int32)
MOST_SLICES = 16
"""A gather of more runs than this is left to the runtime's own kernel."""

MOST_GROWTH = 2
"""A layer that takes in a selection reads the channels left out too: at most so many times the products."""


@dataclass(frozen=True)
class ChannelGather:
    """Take x[:, index] into the weights of the layers after it, or of the layer before it, or make it slices.

    1. The index is a constant of one axis, on axis 1 of x; or a 1 x 1 convolution without bias whose every filter
       is a single 1, which is the same thing.
    2. Where no channel is left out for good: into the layers that read it, as in channel_shuffle; an input read
       twice adds its columns. Where some are: into the layer that it comes from, which then computes fewer.
    3. Otherwise slices, up to 16; otherwise into the layers that read it, at no more than twice the products.

        conv2d(index_select(x, 1, [2, 0, 0]), w)   becomes   conv2d(x, w'), w' of [O, C, k, k]

    ExecuTorch 1.5.1 and TFLite run index_select and index (GATHER_ND) outside their delegates.
    """

    name: str = "channel_gather"
    claim: str = "exact"
    targets: tuple[str, ...] = ()

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        gathers = calls(program, ATEN.index_select.default, ATEN.index.Tensor, ATEN.conv2d.default)
        return sum(_replace(program, node) for node in gathers)


def _replace(program: ExportedProgram, node: Node) -> bool:
    x, index = node.args[0], _index(program, node)
    shape = shape_of(x) if isinstance(x, Node) else None
    if shape is None or index is None or len(shape) < 2 or not isinstance(x, Node) or not node.users:
        return False
    order = Reordering(index % shape[1], shape[1])
    read = len(torch.unique(order.index))
    if read == order.channels and absorb(program, node, x, order, True):
        return True
    if len(index) <= order.channels and absorb(program, node, x, order, False):
        return True
    if node.target is not ATEN.conv2d.default and _slice(program, node, x, order.index):
        return True
    return order.channels <= MOST_GROWTH * len(index) and absorb(program, node, x, order, True)


def _index(program: ExportedProgram, node: Node) -> Tensor | None:
    """The constant index on axis 1; None when there is none."""
    if node.target is ATEN.conv2d.default:
        return _selection(program, node)
    index: object = None
    if node.target is ATEN.index_select.default:
        rank = len(shape_of(node) or ())
        index = node.args[2] if axis(arguments(node)["dim"], rank) == 1 else None
    elif isinstance(node.args[1], list | tuple):
        given = list(node.args[1])
        index = given[1] if len(given) >= 2 and [i for i in given if i is not None] == [given[1]] else None
    if isinstance(index, Node) and index.meta["val"].dtype not in INTEGERS:
        return None
    while isinstance(index, Node) and index.target in COPIES:
        index = index.args[0]
    value = constant_value(program, index)
    whole = value is not None and value.dim() == 1 and value.dtype in INTEGERS
    return value.long() if whole and value is not None else None


def _selection(program: ExportedProgram, conv: Node) -> Tensor | None:
    given = arguments(conv)
    weight = constant_value(program, given["weight"])
    if weight is None or given["bias"] is not None or given["groups"] != 1 or weight.shape[2:] != (1, 1):
        return None
    if len(shape_of(conv) or ()) != 4:
        return None
    if any(s != 1 for s in given["stride"]) or any(p != 0 for p in given["padding"]):
        return None
    rows = weight.flatten(1)
    is_one = bool(((rows == 0) | (rows == 1)).all()) and bool((rows.sum(1) == 1).all())
    return rows.argmax(1) if is_one else None


def _slice(program: ExportedProgram, node: Node, x: Node, index: Tensor) -> bool:
    """Every run of neighbouring channels as a slice, put together again."""
    steps = torch.cat([torch.tensor([0]), (index.diff() != 1).cumsum(0)])
    runs = [index[steps == run] for run in range(int(steps[-1]) + 1)]
    if len(runs) > MOST_SLICES:
        return False
    emit = emit_before(program, node)
    slices = [emit(ATEN.slice.Tensor, x, 1, int(run[0]), int(run[-1]) + 1) for run in runs]
    replace(program, node, slices[0] if len(slices) == 1 else emit(ATEN.cat.default, slices, 1))
    remove_unused(program)
    return True


REWRITE = ChannelGather()
