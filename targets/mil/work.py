"""A bound on what the loops of a program may cost: a damaged one must end, whatever its condition says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt, prod

from torch import Tensor

from acmix.toolkit.errors import UsageError

LIMIT = 10**12
"""About a minute on one processor, in multiply-accumulates. Programs that fit a phone stay far below."""
OPERATION_COST = 10**6
ELEMENT_COST = 20
PRODUCTS = frozenset(
    {"conv", "conv_transpose", "conv_quantized", "linear", "matmul", "einsum", "scaled_dot_product_attention"}
)


@dataclass
class Work:
    """What the outermost loop and all that is inside it have cost so far."""

    spent: int = 0

    def charge(self, cost: int) -> None:
        """Raise UsageError when the loop has cost more than any sound one does."""
        self.spent += cost
        if self.spent > LIMIT:
            raise UsageError(
                "a loop of the program does not come to an end: it has done the work of "
                f"{LIMIT:.0e} multiply-accumulates. The package is damaged: export or copy it again."
            )


def cost_of(kind: str, operands: Iterable[object], results: Iterable[object]) -> int:
    """An operation in multiply-accumulates, to the order of magnitude.

    A product of [m, k] and [k, n] costs m k n: the root of the product of its three sizes.
    """
    read = sorted(value.numel() for value in operands if isinstance(value, Tensor))
    made = sum(value.numel() for value in results if isinstance(value, Tensor))
    products = isqrt(prod(read[-2:]) * made) if kind in PRODUCTS else 0
    return OPERATION_COST + ELEMENT_COST * (sum(read) + made) + products
