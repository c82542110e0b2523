"""Reading a call: its arguments by name, the parts of a tuple that it gives, its axes counted from the front."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

GETITEM = cast(OpOverload, operator.getitem)


def arguments(node: Node) -> dict[str, Any]:
    """Every argument of the call by its name in the operator's schema, defaults included."""
    schema: Sequence[Any] = cast(Any, node.target)._schema.arguments
    given = {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
    return {a.name: a.default_value for a in schema if a.has_default_value()} | given | dict(node.kwargs)


def parts(node: Node) -> dict[int, list[Node]] | None:
    """The readers of a call that gives several tensors, by the part that they take; None when one takes it whole."""
    found: dict[int, list[Node]] = {}
    for user in node.users:
        if user.target is not operator.getitem or not isinstance(user.args[1], int):
            return None
        found.setdefault(user.args[1], []).append(user)
    return found


def is_floating(node: object) -> bool:
    """Whether this is a node that gives one floating-point tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()


def axis(dimension: int, rank: int) -> int:
    """The axis counted from the front."""
    return dimension % max(rank, 1)
