"""Activations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix.targets.mil.arithmetic import half_reduce
from acmix.targets.mil.call import Call, operator

PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu6": lambda x: torch.clamp(x, 0, 6),
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "softsign": F.softsign,
}
GELU_MODES = ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")


@operator(*PLAIN)
def plain(call: Call) -> Tensor:
    """An activation without parameters."""
    return PLAIN[call.kind](call.tensor("x"))


@operator("clamped_relu")
def clamped_relu(call: Call) -> Tensor:
    """min(beta, x) for x >= 0, else min(beta, alpha x)."""
    x = call.tensor("x")
    return torch.clamp(torch.where(x >= 0, x, call.number("alpha") * x), max=call.number("beta"))


@operator("elu")
def elu(call: Call) -> Tensor:
    """x for x > 0, else alpha (e^x - 1)."""
    x = call.tensor("x")
    return torch.where(x > 0, x, call.number("alpha") * torch.expm1(x))


@operator("gelu")
def gelu(call: Call) -> Tensor:
    """x times the normal distribution's integral up to x: exact, or one of two approximations."""
    x, mode = call.tensor("x"), call.choice("mode", GELU_MODES, "EXACT")
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


@operator("leaky_relu")
def leaky_relu(call: Call) -> Tensor:
    """x for x >= 0, else alpha x."""
    x = call.tensor("x")
    return torch.where(x >= 0, x, call.number("alpha") * x)


@operator("linear_activation")
def linear_activation(call: Call) -> Tensor:
    """alpha x + beta."""
    return call.number("alpha") * call.tensor("x") + call.number("beta")


@operator("prelu")
def prelu(call: Call) -> Tensor:
    """x for x > 0, else alpha x with one alpha for each channel (the second axis)."""
    x = call.tensor("x")
    return torch.where(x > 0, x, channels(call, "alpha", x) * x)


@operator("scaled_tanh")
def scaled_tanh(call: Call) -> Tensor:
    """alpha tanh(beta x)."""
    return call.number("alpha") * torch.tanh(call.number("beta") * call.tensor("x"))


@operator("sigmoid_hard")
def sigmoid_hard(call: Call) -> Tensor:
    """alpha x + beta, between 0 and 1."""
    return torch.clamp(call.number("alpha") * call.tensor("x") + call.number("beta"), 0, 1)


@operator("softplus_parametric")
def softplus_parametric(call: Call) -> Tensor:
    """alpha log(1 + e^(beta x)), one alpha and beta for each channel (the second axis)."""
    x = call.tensor("x")
    inner = channels(call, "beta", x) * x
    return channels(call, "alpha", x) * torch.logaddexp(inner, torch.zeros_like(inner))


@operator("thresholded_relu")
def thresholded_relu(call: Call) -> Tensor:
    """x where x >= alpha, else 0."""
    x = call.tensor("x")
    return torch.where(x >= call.number("alpha"), x, torch.zeros_like(x))


@operator("softmax")
def softmax(call: Call) -> Tensor:
    """Exponentials over their sum along an axis, the last one unless told."""
    x = call.tensor("x")
    return softmax_along(call, x, call.axis("axis", x.dim(), -1))


def softmax_along(call: Call, x: Tensor, axis: int) -> Tensor:
    """Softmax; its sum in float16 where the call accumulates so."""
    if not call.halves:
        return torch.softmax(x, axis)
    powers = torch.exp(x - x.amax(axis, keepdim=True)).half().to(x.dtype)
    return powers / half_reduce(powers, [axis], True)


def channels(call: Call, name: str, x: Tensor) -> Tensor:
    """A vector of one number for each channel, shaped to broadcast along the second axis of x."""
    vector = call.tensor(name)
    if x.dim() < 2 or vector.numel() != x.shape[1]:
        raise call.refuse(f"'{name}' has {vector.numel()} elements for {list(x.shape)}, whose second axis counts")
    return vector.reshape(-1, *[1] * (x.dim() - 2))
