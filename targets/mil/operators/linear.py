"""Matrix products and attention."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from acmix.targets.mil.call import Call, operator
from acmix.targets.mil.operators.activation import softmax_along
from acmix.targets.mil.operators.elementwise import truncated
from acmix.targets.mil.program import FLOATS, TensorType


@operator("linear")
def linear(call: Call) -> Tensor:
    """x [..., D_in] times weight [D_out, D_in] transposed, plus bias [D_out]."""
    x, weight, bias = call.tensor("x"), call.tensor("weight"), call.optional("bias")
    call.reserve((*x.shape[:-1], weight.shape[0]))
    rows, columns = _alike(call, x.reshape(-1, x.shape[-1]), weight.T)
    y = call.matmul(rows, columns).reshape(*x.shape[:-1], weight.shape[0])
    return _as_declared(call, y if bias is None else y + bias)


def _alike(call: Call, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Since iOS 17 a constant may be integers where the other operand is floats: the product is of floats."""
    if x.is_floating_point() == y.is_floating_point():
        return x, y.to(x.dtype)
    return x.to(call.arithmetic.dtype), y.to(call.arithmetic.dtype)


def _as_declared(call: Call, y: Tensor) -> Tensor:
    """Truncated where the file declares integers."""
    kind = call.outputs[0].type
    declared = isinstance(kind, TensorType) and kind.dtype in FLOATS
    return y if declared or not y.is_floating_point() else truncated(y, "int32")


@operator("matmul")
def matmul(call: Call) -> Tensor:
    """x times y over the last two axes, the others broadcast; a vector is a row as x and a column as y."""
    x, y = call.tensor("x"), call.tensor("y")
    if not x.dim() or not y.dim():
        raise call.refuse("a scalar has no matrix product")
    row, column = x.dim() == 1, y.dim() == 1
    x, y = x.unsqueeze(0) if row else x, y.unsqueeze(1) if column else y
    if call.flag("transpose_x") and not row:
        x = x.mT
    if call.flag("transpose_y") and not column:
        y = y.mT
    call.reserve((*np.broadcast_shapes(tuple(x.shape[:-2]), tuple(y.shape[:-2])), x.shape[-2], y.shape[-1]))
    if x.shape[-1] != y.shape[-2]:
        raise call.refuse(f"{list(x.shape)} times {list(y.shape)} does not fit")
    z = _as_declared(call, call.matmul(*_alike(call, x, y)))
    z = z.squeeze(-1) if column else z
    return z.squeeze(-1 if column else -2) if row else z


@operator("einsum")
def einsum(call: Call) -> Tensor:
    """Two tensors by an equation; axes of size 1 are broadcast."""
    values, equation = call.tensors("values"), call.word("equation").replace(" ", "")
    if len(values) != 2:
        raise call.refuse(f"it has {len(values)} operands in place of two")
    sizes: dict[str, int] = {}
    for term, value in zip(equation.split("->")[0].split(","), values, strict=True):
        for letter, size in zip(term, value.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    call.reserve([sizes[letter] for letter in equation.split("->")[1]])
    if not call.halves:
        return torch.einsum(equation, values)
    return _half_einsum(call, equation, values, sizes)


def _half_einsum(call: Call, equation: str, values: list[Tensor], sizes: dict[str, int]) -> Tensor:
    """The contracted letters last, every product laid out, then summed one after the other."""
    (left, right), out = equation.split("->")[0].split(","), equation.split("->")[1]
    summed = "".join(letter for letter in dict.fromkeys(left + right) if letter not in out)
    call.reserve([sizes[letter] for letter in out + summed])
    products = torch.einsum(f"{left},{right}->{out}{summed}", values)
    return call.sum(products, range(len(out), len(out + summed)))


@operator("scaled_dot_product_attention")
def attention(call: Call) -> Tensor:
    """softmax(query key^T / sqrt(E) + mask) value; a boolean mask keeps where it is true."""
    query, key, value = call.tensor("query"), call.tensor("key"), call.tensor("value")
    call.reserve((*query.shape[:-1], key.shape[-2]))
    scores = call.matmul(query, key.mT) / math.sqrt(query.shape[-1])
    mask = call.optional("attn_mask")
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    return call.matmul(softmax_along(call, scores, scores.dim() - 1), value)
