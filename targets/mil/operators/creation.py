"""Tensors from nothing but a shape: filled, counted, one-hot, random."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from acmix.targets.mil.call import Call, operator


@operator("fill")
def fill(call: Call) -> Tensor:
    """A shape full of one value, 0.0 unless told."""
    return _filled(call, call.integers("shape"))


@operator("fill_like")
def fill_like(call: Call) -> Tensor:
    """The shape of another tensor full of one value, 0.0 unless told."""
    return _filled(call, call.tensor("ref_tensor").shape)


def _filled(call: Call, shape: list[int] | torch.Size) -> Tensor:
    value = call.scalar("value") if "value" in call else torch.zeros((), dtype=call.arithmetic.dtype)
    return value.reshape(()).expand(call.reserve(shape)).clone()


@operator("range_1d")
def range_1d(call: Call) -> Tensor:
    """start, start + step, ... up to end, which is not reached."""
    start, end, step = (call.scalar(name).reshape(()) for name in ("start", "end", "step"))
    if step == 0:
        raise call.refuse("'step' is 0")
    if start.is_floating_point():
        count = math.ceil((end.item() - start.item()) / step.item())
    else:
        count = -((int(end) - int(start)) // -int(step))
    (count,) = call.reserve((max(0, count),))
    return start + torch.arange(count, dtype=start.dtype) * step


@operator("one_hot")
def one_hot(call: Call) -> Tensor:
    """on_value (1) where the new axis, the last unless told, counts to the index, else off_value (0)."""
    indices, size = call.tensor("indices"), call.integer("one_hot_vector_size")
    axis = call.axis("axis", indices.dim() + 1, -1)
    call.reserve((*indices.shape, size))
    hot = torch.arange(size).reshape(-1, *[1] * (indices.dim() - axis)) == indices.unsqueeze(axis)
    on = call.scalar("on_value") if "on_value" in call else torch.tensor(1, dtype=torch.int32)
    off = call.scalar("off_value") if "off_value" in call else torch.zeros_like(on)
    return torch.where(hot, on.reshape(()), off.reshape(()))


def _generator(call: Call) -> torch.Generator:
    """Seeded by `seed`, else by torch's own seed.  The numbers are not those of Apple's generator."""
    seed = call.integer("seed", -1)
    generator = torch.Generator()
    generator.manual_seed(seed if seed >= 0 else int(torch.randint(2**31, ())))
    return generator


@operator("random_uniform")
def random_uniform(call: Call) -> Tensor:
    """From low (0) to high (1)."""
    low, high = call.number("low", 0.0), call.number("high", 1.0)
    shape = call.reserve(call.integers("shape"))
    return low + (high - low) * torch.rand(shape, generator=_generator(call), dtype=call.arithmetic.dtype)


@operator("random_normal")
def random_normal(call: Call) -> Tensor:
    """Around mean (0) with a deviation of stddev (1)."""
    shape = call.reserve(call.integers("shape"))
    numbers = torch.randn(shape, generator=_generator(call), dtype=call.arithmetic.dtype)
    return call.number("mean", 0.0) + call.number("stddev", 1.0) * numbers


@operator("random_bernoulli")
def random_bernoulli(call: Call) -> Tensor:
    """1 with the probability prob (0.5), else 0."""
    shape = call.reserve(call.integers("shape"))
    numbers = torch.rand(shape, generator=_generator(call), dtype=call.arithmetic.dtype)
    return (numbers < call.number("prob", 0.5)).to(call.arithmetic.dtype)


@operator("random_categorical")
def random_categorical(call: Call) -> Tensor:
    """`size` (1) indices drawn for each vector of logits, or of probabilities, along the last axis."""
    x, size = call.tensor("x"), call.integer("size", 1)
    weights = torch.softmax(x, -1) if call.choice("mode", ("logits", "probs"), "logits") == "logits" else x
    call.reserve((*x.shape[:-1], size))
    drawn = torch.multinomial(weights.reshape(-1, x.shape[-1]), size, True, generator=_generator(call))
    return drawn.reshape(*x.shape[:-1], size).to(call.arithmetic.dtype)
