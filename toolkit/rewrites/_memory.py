"""Which nodes of a graph may share memory, and which calls write into it: captured programs keep in-place calls."""

from __future__ import annotations

import operator

import torch
from torch._ops import OpOverload
from torch.fx import Node

ATEN = torch.ops.aten
UNDECLARED = (ATEN.dropout.default, ATEN.feature_dropout.default, ATEN.type_as.default, operator.getitem)
"""These may give back their argument, and no schema says so."""


def is_in_place(node: Node) -> bool:
    """Whether the call writes into its first argument."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def may_alias(node: Node) -> bool:
    """Whether the call may give back memory of its first argument: a view, a reshape, an in-place operator."""
    if node.target in UNDECLARED:
        return True
    return isinstance(node.target, OpOverload) and any(r.alias_info is not None for r in node.target._schema.returns)


def writers(node: Node) -> list[Node]:
    """The in-place calls, anywhere in the graph, that may change what this node holds."""
    return [user for shared in _sharing(node) for user in shared.users if is_in_place(user) and user.args[0] is shared]


def is_written_between(node: Node, first: Node, last: Node) -> bool:
    """Whether the node may hold something else at `last` than at `first`."""
    return any(first < writer < last for writer in writers(node))


def is_exclusive(node: Node) -> bool:
    """Whether the memory was made by a call of the graph and nothing but one reader of this node sees it."""
    while len(node.users) <= 1 and node.op == "call_function":
        if not may_alias(node):
            return True
        if not isinstance(node.args[0], Node):
            return False
        node = node.args[0]
    return False


def _sharing(node: Node) -> set[Node]:
    """All nodes that may share memory with this one, itself included."""
    found, front = {node}, [node]
    while front:
        current = front.pop()
        near = [user for user in current.users if may_alias(user) and user.args[0] is current]
        if may_alias(current) and isinstance(current.args[0], Node):
            near.append(current.args[0])
        new = [n for n in near if n not in found]
        found.update(new)
        front += new
    return found
