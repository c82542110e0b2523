"""Convolutions of one to three spatial axes, and their transposes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch.nn.functional as F
from torch import Tensor

from acmix.targets.mil.call import Call, operator

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
PAD_TYPES = ("valid", "same", "same_lower", "custom")

Pads = list[tuple[int, int]]


def paddings(call: Call, sizes: list[int], kernel: list[int], strides: list[int]) -> Pads:
    """Elements before and after each spatial axis.  kernel: its extent, dilation included.

    `same` gives ceil(size / stride) outputs, the odd element after; `same_lower` puts it before.
    """
    kind = call.choice("pad_type", PAD_TYPES, "valid")
    if kind == "custom":
        flat = call.integers("pad", [0] * 2 * len(sizes))
        if len(flat) != 2 * len(sizes) or min(flat) < 0:
            raise call.refuse(f"'pad' is {flat} for {len(sizes)} spatial axes: two for each, none negative")
        return list(zip(flat[::2], flat[1::2], strict=True))
    pads = []
    for size, extent, stride in zip(sizes, kernel, strides, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + extent - size) if kind != "valid" else 0
        small, large = total // 2, total - total // 2
        pads.append((large, small) if kind == "same_lower" else (small, large))
    return pads


def flattened(pads: Pads) -> list[int]:
    """As torch.nn.functional.pad wants them: the last axis first."""
    return [amount for pair in reversed(pads) for amount in pair]


def spatial(call: Call, name: str, axes: int) -> list[int]:
    """One positive number for each spatial axis, 1 unless told."""
    numbers = call.integers(name, [1] * axes)
    if len(numbers) != axes or min(numbers) < 1:
        raise call.refuse(f"'{name}' is {numbers}: it needs {axes} positive numbers")
    return numbers


@operator("conv")
def conv(call: Call) -> Tensor:
    """x [n, C, ...] with weight [C_out, C / groups, ...]."""
    return convolve(call, call.tensor("weight"))


@operator("conv_quantized")
def conv_quantized(call: Call) -> Tensor:
    """A convolution whose weight is integers times quant_scale plus quant_bias."""
    if call.choice("quantization_type", ("linear", "lut")) != "linear":
        raise call.refuse("its look-up table is not described by Apple's reference; 'linear' is")
    weight = call.tensor("weight").to(call.arithmetic.dtype)
    scale, bias = (
        call.tensor(name).reshape(-1, *[1] * (weight.dim() - 1)) if call.tensor(name).dim() == 1 else call.tensor(name)
        for name in ("quant_scale", "quant_bias")
    )
    return convolve(call, weight * scale + bias)


def convolve(call: Call, weight: Tensor) -> Tensor:
    x, axes = call.tensor("x"), call.tensor("x").dim() - 2
    if axes not in CONVOLVE or weight.dim() != x.dim():
        raise call.refuse(f"x {list(x.shape)} and weight {list(weight.shape)} need one rank, 3 to 5")
    strides, dilations = spatial(call, "strides", axes), spatial(call, "dilations", axes)
    extents = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    pads = paddings(call, list(x.shape[2:]), extents, strides)
    sizes = [s + sum(p) for s, p in zip(x.shape[2:], pads, strict=True)]
    outs = [(s - e) // t + 1 for s, e, t in zip(sizes, extents, strides, strict=True)]
    call.reserve((x.shape[0], x.shape[1], *sizes))
    call.reserve((x.shape[0], weight.shape[0], *outs))
    bias, groups = call.optional("bias"), call.integer("groups", 1)
    if call.halves:
        y = _half_convolution(F.pad(x, flattened(pads)), weight, outs, strides, dilations, groups)
        return y if bias is None else y + bias.reshape(-1, *[1] * axes)
    even = [before for before, after in pads if before == after]
    if len(even) == len(pads):
        return CONVOLVE[axes](x, weight, bias, strides, even, dilations, groups)
    return CONVOLVE[axes](F.pad(x, flattened(pads)), weight, bias, strides, 0, dilations, groups)


def _half_convolution(
    x: Tensor, weight: Tensor, outs: list[int], strides: list[int], dilations: list[int], groups: int
) -> Tensor:
    """Each product added in float16: channel by channel of a group, and for each its kernel's taps in order."""
    batch, width = x.shape[0], weight.shape[1]
    if x.shape[1] != width * groups or weight.shape[0] % groups:
        raise ValueError(f"{groups} groups of {width} channels are not {x.shape[1]} channels")
    x = x.reshape(batch, groups, width, *x.shape[2:])
    total = x.new_zeros((batch, groups, weight.shape[0] // groups, *outs))
    weight = weight.reshape(groups, -1, *weight.shape[1:])
    for channel in range(width):
        for tap in product(*map(range, weight.shape[3:])):
            part = x[:, :, channel, None]
            for axis, (t, d, n, s) in enumerate(zip(tap, dilations, outs, strides, strict=True), 3):
                part = part[(slice(None),) * axis + (slice(t * d, t * d + (n - 1) * s + 1, s),)]
            factor = weight[:, :, channel].flatten(2)[..., _flat(tap, weight.shape[3:])]
            total = (total + factor.reshape(1, groups, -1, *[1] * len(outs)) * part).half().to(x.dtype)
    return total.reshape(batch, -1, *outs)


def _flat(tap: tuple[int, ...], kernel: Sequence[int]) -> int:
    """A tap's position in a kernel that is laid out flat."""
    position = 0
    for index, size in zip(tap, kernel, strict=True):
        position = position * size + index
    return position


@operator("conv_transpose")
def conv_transpose(call: Call) -> Tensor:
    """x [n, C_in, ...] with weight [C_in, C_out / groups, ...]: every element spreads a kernel, stride apart.

    The full result is then cut: by `pad` for custom, to size times stride for `same` (the odd element after), to
    output_shape where that is given.
    """
    x, weight = call.tensor("x"), call.tensor("weight")
    axes = x.dim() - 2
    if axes not in TRANSPOSE or weight.dim() != x.dim():
        raise call.refuse(f"x {list(x.shape)} and weight {list(weight.shape)} need one rank, 3 to 5")
    strides, dilations = spatial(call, "strides", axes), spatial(call, "dilations", axes)
    extents = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    full = [(size - 1) * s + e for size, s, e in zip(x.shape[2:], strides, extents, strict=True)]
    groups = call.integer("groups", 1)
    outs, starts = _extent(call, x, full, strides, extents)
    call.reserve((x.shape[0], weight.shape[1] * groups, *map(max, full, outs)))
    if call.halves:
        y = _half_transpose(x, weight, full, strides, dilations, groups)
    else:
        y = TRANSPOSE[axes](x, weight, None, strides, 0, 0, groups, dilations)
    cuts = [(-start, start + out - size) for start, out, size in zip(starts, outs, full, strict=True)]
    y, bias = F.pad(y, flattened(cuts)), call.optional("bias")
    return y if bias is None else y + bias.reshape(-1, *[1] * axes)


def _extent(
    call: Call, x: Tensor, full: list[int], strides: list[int], extents: list[int]
) -> tuple[list[int], list[int]]:
    """How much of the full result is wanted, and from where."""
    kind, axes = call.choice("pad_type", PAD_TYPES, "valid"), len(full)
    wanted = call.integers("output_shape", [])[-axes:] if "output_shape" in call else None
    if kind == "custom":
        pads = paddings(call, list(x.shape[2:]), extents, strides)
        outs = wanted or [size - before - after for size, (before, after) in zip(full, pads, strict=True)]
        return outs, [before for before, _ in pads]
    if kind == "valid":
        return wanted or full, [0] * axes
    outs = wanted or [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    totals = [max(0, size - out) for size, out in zip(full, outs, strict=True)]
    return outs, [total - total // 2 if kind == "same_lower" else total // 2 for total in totals]


def _half_transpose(
    x: Tensor, weight: Tensor, full: list[int], strides: list[int], dilations: list[int], groups: int
) -> Tensor:
    """A transpose as a convolution of x spread out with zeros, with the kernel turned round, in float16."""
    spread = x.new_zeros((*x.shape[:2], *((size - 1) * s + 1 for size, s in zip(x.shape[2:], strides, strict=True))))
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
    edges = [((k - 1) * d, (k - 1) * d) for k, d in zip(weight.shape[2:], dilations, strict=True)]
    turned = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flip(list(range(3, weight.dim() + 1)))
    kernel = turned.reshape(-1, *turned.shape[2:])
    return _half_convolution(F.pad(spread, flattened(edges)), kernel, full, [1] * len(full), dilations, groups)
