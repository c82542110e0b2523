"""A reordering of channels moved along a graph until the weights of a convolution or linear layer take it in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites import _graph, _memory
from acmix.toolkit.rewrites._calls import arguments
from acmix.toolkit.rewrites._channel_operators import (
    BINARY,
    CONVOLUTIONS,
    NORM,
    is_channel_constant,
    is_passed_through,
    may_be_infinite,
)

ATEN = torch.ops.aten


@dataclass
class Plan:
    """What absorbing a reordering would change; nothing is changed until it is carried out."""

    edits: list[Callable[[], None]] = field(default_factory=list)
    passed: set[Node] = field(default_factory=set)


@dataclass(frozen=True)
class Reordering:
    """Channel i of the result is channel index[i] of `channels` that there are."""

    index: Tensor
    channels: int

    @property
    def is_permutation(self) -> bool:
        return len(self.index) == self.channels and self.is_injective

    @property
    def is_injective(self) -> bool:
        return len(torch.unique(self.index)) == len(self.index)

    @property
    def inverse(self) -> Tensor:
        """Which result reads a channel; 0 for a channel that none reads."""
        inverse = torch.zeros(self.channels, dtype=torch.int64)
        inverse[self.index] = torch.arange(len(self.index))
        return inverse

    def blocks(self, groups: int) -> Tensor | None:
        """The block of channels that each of the groups of results reads; None when one reads from several."""
        if not self.is_permutation:
            return None
        each = self.index.reshape(groups, -1) // (self.channels // groups)
        return each[:, 0] if bool((each == each[:, :1]).all()) else None


def absorb(program: ExportedProgram, node: Node, source: Node, order: Reordering, forward: bool) -> bool:
    """Let readers of `node` read `source`, by moving the reordering into the weights after (or before) it.

    False, and nothing changed, where some path ends in no weights.
    """
    plan = Plan()
    if forward:
        fits = _follow(program, node, order, plan)
    else:
        first = _only_path(source, node)
        fits = first is not None and _trace(program, source, first, order, plan)
    if not fits or (forward and not _memory.is_exclusive(source) and _is_written(source, node, plan)):
        return False
    for edit in plan.edits:
        edit()
    _graph.replace(program, node, source)
    _graph.remove_unused(program)
    for passed in program.graph.nodes:
        if passed in plan.passed:
            _refresh(passed)
    program.graph_module.recompile()
    return True


def _is_written(source: Node, node: Node, plan: Plan) -> bool:
    """Whether what stands at `source` may be written before the layers read it, on the way from `node` included."""
    on_the_way = any(writer in plan.passed for writer in _memory.writers(node))
    return on_the_way or any(_memory.is_written_between(source, source, passed) for passed in plan.passed)


def _only_path(source: Node, node: Node) -> Node | None:
    """The first step from `source` to `node`, when nothing else on the way is read; a shuffle is several calls."""
    steps = [source]
    while steps[-1] is not node and len(steps[-1].users) == 1:
        steps.append(next(iter(steps[-1].users)))
    return steps[1] if steps[-1] is node else None


def _refresh(node: Node) -> None:
    """Give a node the shape that follows from its changed inputs."""
    values = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    mode: Any = detect_fake_mode(torch.utils._pytree.tree_leaves(values))
    with mode:
        node.meta["val"] = node.target(*values[0], **values[1])  # type: ignore[operator]


def _follow(program: ExportedProgram, node: Node, order: Reordering, plan: Plan) -> bool:
    """Move the reordering from `node` into everything that reads it."""
    return bool(node.users) and all(_follow_into(program, user, node, order, plan) for user in node.users)


def _follow_into(program: ExportedProgram, user: Node, node: Node, order: Reordering, plan: Plan) -> bool:
    if user in plan.passed or user.op != "call_function":
        return False
    if user.target in CONVOLUTIONS or user.target is ATEN.linear.default:
        return user.args[0] is node and user.args[1] is not node and _into_inputs(program, user, order, plan)
    plan.passed.add(user)
    through = is_passed_through(user, node, order.is_permutation)
    if not through and order.is_injective and (order.is_permutation or not may_be_infinite(user, node)):
        through = _reorder_constants(program, user, node, order.inverse, plan)
    return through and _follow(program, user, order, plan)


def _into_inputs(program: ExportedProgram, layer: Node, order: Reordering, plan: Plan) -> bool:
    weight, bias, groups = _parameters(program, layer)
    if weight is None:
        return False
    plan.passed.add(layer)
    if groups == 1:
        columns = torch.zeros(weight.shape[0], order.channels, *weight.shape[2:], dtype=torch.float64)
        columns.index_add_(1, order.index, weight.double())
        _set(program, plan, layer, 1, columns.to(weight.dtype))
        return True
    blocks = order.blocks(groups)
    if blocks is None:
        return False
    # The group that reads block b becomes group b: its filters move there, their columns in the order of the block.
    group_of, width = torch.argsort(blocks), order.channels // groups
    filters = weight.reshape(groups, -1, *weight.shape[1:])[group_of]
    columns_of = (order.inverse.reshape(groups, width)) % width
    filters = torch.stack([filters[g][:, columns_of[g]] for g in range(groups)])
    _set(program, plan, layer, 1, filters.reshape(weight.shape))
    if torch.equal(blocks, torch.arange(groups)):
        return True
    rows = torch.arange(len(weight)).reshape(groups, -1)
    if bias is not None:
        _set(program, plan, layer, 2, bias[rows[group_of].flatten()])
    elif len(layer.args) > 2 and layer.args[2] is not None:
        return False
    return _follow(program, layer, Reordering(rows[blocks].flatten(), len(weight)), plan)


def _trace(program: ExportedProgram, node: Node, reader: Node, order: Reordering, plan: Plan) -> bool:
    """Move the reordering before `node`, which only `reader` reads, into the weights that it comes from."""
    if set(node.users) != {reader} or node.op != "call_function" or node in plan.passed:
        return False
    if node.target in CONVOLUTIONS or node.target is ATEN.linear.default:
        return _into_outputs(program, node, order, plan)
    plan.passed.add(node)
    before = node.args[0]
    if node.target in BINARY and is_channel_constant(program, node.args[0], node):
        before = node.args[1]
    if not isinstance(before, Node):
        return False
    through = is_passed_through(node, before, order.is_permutation)
    through = through or _reorder_constants(program, node, before, order.index, plan)
    return through and _trace(program, before, node, order, plan)


def _into_outputs(program: ExportedProgram, layer: Node, order: Reordering, plan: Plan) -> bool:
    weight, bias, groups = _parameters(program, layer)
    if weight is None or (bias is None and len(layer.args) > 2 and layer.args[2] is not None):
        return False
    plan.passed.add(layer)
    _set(program, plan, layer, 1, weight[order.index])
    if bias is not None:
        _set(program, plan, layer, 2, bias[order.index])
    if groups == 1:
        return True
    blocks, x = order.blocks(groups), layer.args[0]
    if blocks is None or not isinstance(x, Node):
        return False
    if torch.equal(blocks, torch.arange(groups)):
        return True
    channels = weight.shape[1] * groups
    inputs = torch.arange(channels).reshape(groups, -1)[blocks].flatten()
    return _trace(program, x, layer, Reordering(inputs, channels), plan)


def _parameters(program: ExportedProgram, layer: Node) -> tuple[Tensor | None, Tensor | None, int]:
    """Weight, bias and groups; no weight when it is no constant, or the channels are not on axis 1."""
    given = arguments(layer)
    weight, bias = (_graph.constant_value(program, given[name]) for name in ("weight", "bias"))
    rank = len(_graph.shape_of(layer) or ())
    if weight is None or rank != weight.dim():
        return None, None, 1
    return weight, bias, int(given.get("groups", 1))


def _reorder_constants(program: ExportedProgram, node: Node, x: Node, index: Tensor, plan: Plan) -> bool:
    """Reorder the constants that a norm, PReLU or arithmetic with one value a channel reads beside x."""
    if node.target is NORM:
        if node.args[0] is not x or arguments(node)["training"]:
            return False
        positions = [p for p in (1, 2, 3, 4) if node.args[p] is not None]
    elif node.target is ATEN.prelu.default:
        positions = [1]
    elif node.target in BINARY:
        positions = [p for p in (0, 1) if node.args[p] is not x]
    else:
        return False
    if len(positions) == 0 or not all(is_channel_constant(program, node.args[p], node) for p in positions):
        return False
    for position in positions:
        value = _graph.constant_value(program, node.args[position])
        assert value is not None
        along = 0 if value.dim() == 1 or node.target not in BINARY else value.dim() - (x.meta["val"].dim() - 1)
        _set(program, plan, node, position, value.index_select(along, index))
    return True


def _set(program: ExportedProgram, plan: Plan, node: Node, position: int, value: Tensor) -> None:
    def edit() -> None:
        old = node.args[position]
        name = old.name if isinstance(old, Node) else "weight"
        node.update_arg(position, _graph.add_constant(program, f"{name}_reordered", value.contiguous()))

    plan.edits.append(edit)
