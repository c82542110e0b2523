"""Scalar arithmetic of a graph read as a polynomial, so that one rule knows every spelling of a formula."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments, is_floating

ATEN = torch.ops.aten
Polynomial = dict[tuple[int, ...], float]
"""Powers of the variables to the coefficient: x * y / 6 of (x, y) is {(1, 1): 1 / 6}."""

SAME = 6e-8
"""Two constants nearer than this, relative, are one: float32 keeps no more of them."""

DEEPEST = 12
"""No formula that we look for has more steps between its ends."""

ADDITIONS = (ATEN.add.Tensor, ATEN.add.Scalar)
SUBTRACTIONS = (ATEN.sub.Tensor, ATEN.sub.Scalar)
PRODUCTS = (ATEN.mul.Tensor, ATEN.mul.Scalar)
QUOTIENTS = (ATEN.div.Tensor, ATEN.div.Scalar)
POWERS = (ATEN.pow.Tensor_Scalar,)
OTHERS = (ATEN.rsub.Scalar, ATEN.neg.default, ATEN.square.default)
ARITHMETIC = (*ADDITIONS, *SUBTRACTIONS, *PRODUCTS, *QUOTIENTS, *POWERS, *OTHERS)


def polynomial(value: object, variables: tuple[Node, ...], deepest: int = DEEPEST) -> Polynomial | None:
    """The value as a polynomial of the variables; None when it is anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {(0,) * len(variables): float(value)}
    if value in variables:
        return {tuple(int(value is v) for v in variables): 1.0}
    if not isinstance(value, Node) or value.target not in ARITHMETIC or deepest == 0 or not is_floating(value):
        return None
    given = arguments(value)
    first = polynomial(given["self"], variables, deepest - 1)
    if first is None:
        return None
    if value.target in POWERS:
        return _power(first, given["exponent"])
    if "other" not in given:
        return _times(first, first) if value.target is ATEN.square.default else _scaled(first, -1.0)
    second = polynomial(given["other"], variables, deepest - 1)
    return None if second is None else _combined(value.target, first, second, given.get("alpha", 1))


def _combined(target: Any, first: Polynomial, second: Polynomial, alpha: float) -> Polynomial | None:
    if target in PRODUCTS:
        return _times(first, second)
    if target in ADDITIONS:
        return _plus(first, _scaled(second, alpha))
    if target in SUBTRACTIONS:
        return _plus(first, _scaled(second, -alpha))
    if target is ATEN.rsub.Scalar:
        return _plus(second, _scaled(first, -alpha))
    constant = (0,) * len(next(iter(second), ()))
    divides = set(second) == {constant} and second[constant] != 0
    return _scaled(first, 1 / second[constant]) if divides else None


def _scaled(one: Polynomial, factor: float) -> Polynomial:
    return {powers: coefficient * factor for powers, coefficient in one.items()}


def _plus(one: Polynomial, other: Polynomial) -> Polynomial:
    return {powers: one.get(powers, 0.0) + other.get(powers, 0.0) for powers in {**one, **other}}


def _times(one: Polynomial, other: Polynomial) -> Polynomial:
    result: Polynomial = {}
    for first, a in one.items():
        for second, b in other.items():
            powers = tuple(i + j for i, j in zip(first, second, strict=True))
            result[powers] = result.get(powers, 0.0) + a * b
    return result


def _power(one: Polynomial, exponent: object) -> Polynomial | None:
    if exponent not in (2, 3):
        return None
    square = _times(one, one)
    return square if exponent == 2 else _times(square, one)


def is_same(found: Polynomial | None, wanted: Polynomial) -> bool:
    """Whether these are one polynomial, up to what float32 keeps of a constant."""
    if found is None:
        return False
    terms = {powers: coefficient for powers, coefficient in found.items() if coefficient != 0}
    return terms.keys() == wanted.keys() and all(abs(terms[p] - c) <= SAME * abs(c) for p, c in wanted.items())


def below(value: object, deepest: int = DEEPEST) -> Iterator[Node]:
    """The floating-point nodes that an arithmetic expression is made of, itself first."""
    if not isinstance(value, Node) or not is_floating(value):
        return
    yield value
    if value.target in ARITHMETIC and deepest:
        for operand in value.all_input_nodes:
            yield from below(operand, deepest - 1)


def above(node: Node, deepest: int = 4) -> Iterator[Node]:
    """The arithmetic that a node goes into, outermost first."""
    for user in list(node.users):
        if user.target in ARITHMETIC and deepest:
            yield from above(user, deepest - 1)
            yield user
