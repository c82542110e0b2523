"""Arithmetic, comparison, logic and casts, element by element with numpy's broadcasting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from acmix.targets.mil.call import Call, Value, operator
from acmix.targets.mil.program import FLOATS, TensorType

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    # To the nearest, halves to the even one.
    "round": torch.round,
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}


def _floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": _floor_div,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    # The sign of the result is that of y, as in Python.
    "mod": torch.remainder,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "real_div": torch.true_divide,
    "sub": torch.sub,
}

# Where a cast from float saturates; what is no number becomes 0, as on Apple's processors.
RANGES = {
    "int8": (-(2**7), 2**7 - 1),
    "uint8": (0, 2**8 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
}
CASTS = ("bool", "fp16", "fp32", *RANGES)


@operator(*UNARY)
def unary(call: Call) -> Tensor:
    """One function of x; integers stay integers."""
    return like(call.tensor("x"), UNARY[call.kind](call.tensor("x")))


@operator("identity")
def identity(call: Call) -> Value:
    """x, a list or a string too."""
    return call.value("x")


@operator(*BINARY)
def binary(call: Call) -> Tensor:
    """One function of x and y, broadcast."""
    x, y = call.tensor("x"), call.tensor("y")
    call.broadcast(x, y)
    result = BINARY[call.kind](x, y)
    return result if x.is_floating_point() or not result.is_floating_point() else truncated(result, "int32")


def like(x: Tensor, result: Tensor) -> Tensor:
    """A result of a function that gives floats, as integers again when x holds integers."""
    if x.is_floating_point() or not result.is_floating_point():
        return result
    return truncated(result, "int32")


def truncated(x: Tensor, kind: str) -> Tensor:
    """Floats towards zero as integers, saturating."""
    low, high = RANGES[kind]
    return torch.nan_to_num(x.to(torch.float64), nan=0.0).trunc().clamp(low, high).to(torch.int64)


@operator("cast")
def cast(call: Call) -> Tensor:
    """x as another type: floats to integers truncate and saturate, integers wrap, anything but 0 is true."""
    x, dtype = call.tensor("x"), call.choice("dtype", CASTS)
    declared = call.outputs[0].type
    if isinstance(declared, TensorType) and declared.dtype != dtype:
        raise call.refuse(f"it casts to {dtype} and its output is declared {declared.dtype}")
    if dtype == "bool":
        return x != 0
    if dtype in FLOATS:
        return x.to(call.arithmetic.dtype)
    return truncated(x, dtype) if x.is_floating_point() else x.to(torch.int64)


@operator("clip")
def clip(call: Call) -> Tensor:
    """min(max(x, alpha), beta)."""
    return torch.clamp(call.tensor("x"), call.number("alpha"), call.number("beta"))


@operator("threshold")
def threshold(call: Call) -> Tensor:
    """max(x, alpha)."""
    x = call.tensor("x")
    return torch.maximum(x, call.scalar("alpha").reshape(()).to(x.dtype))


@operator("inverse")
def inverse(call: Call) -> Tensor:
    """1 / (x + epsilon)."""
    return torch.reciprocal(call.tensor("x") + call.number("epsilon", 1e-4))


@operator("log")
def log(call: Call) -> Tensor:
    """Natural logarithm of x + epsilon."""
    return torch.log(call.tensor("x") + call.number("epsilon", 1e-45))


@operator("rsqrt")
def rsqrt(call: Call) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return 1 / torch.sqrt(call.tensor("x") + call.number("epsilon", 1e-12))


@operator("select")
def select(call: Call) -> Tensor:
    """a where cond is true, else b, broadcast."""
    cond, a, b = call.tensor("cond"), call.tensor("a"), call.tensor("b")
    call.broadcast(cond, a, b)
    return torch.where(cond != 0, a, b)
