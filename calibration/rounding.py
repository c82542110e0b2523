"""Weights as integers: how each value is rounded, and where outliers are clipped instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from acmix.toolkit.errors import UsageError

Clip = Literal["none", "mse"]
LEAST_SCALE = 2.0**-12
"""XNNPACK's quantizer makes no scale smaller than this."""
CLIPS = 81


@dataclass(frozen=True)
class QuantizedWeight:
    """value = scale * (integer - zero_point).

    integers: int8, of the weight's shape.  scale, zero_point: of the weight's rank, 1 along what shares them.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    @property
    def values(self) -> Tensor:
        """What the integers stand for, float32."""
        return ((self.integers.double() - self.zero_point) * self.scale).float()


def quantize_weight(
    weight: Tensor,
    bits: int = 8,
    axis: int | None = 0,
    symmetric: bool = True,
    clip: Clip = "none",
    least_scale: float = LEAST_SCALE,
) -> QuantizedWeight:
    """Round a weight to integers with one scale for each index of `axis` (None: one for all).

    symmetric: -127 to 127 for 8 bits, -7 to 7 for 4, zero point 0; otherwise all 2 ** bits integers.
    clip: 'mse' gives each scale the least squared error, by cutting up to 80 % of the range: worth it below
    8 bits.  least_scale: runtimes refuse or lose scales that are nearly 0.
    Raises UsageError for other than 2 to 8 bits, or an axis that the weight lacks.
    """
    if not 2 <= bits <= 8:
        raise UsageError(f"weights of {bits} bits are not supported.\nTake 2 to 8.")
    if axis is not None and not -weight.dim() <= axis < weight.dim():
        raise UsageError(f"a weight of rank {weight.dim()} has no axis {axis}.\nTake 0 to {weight.dim() - 1}.")
    value = weight.detach().double()
    others = [i for i in range(value.dim()) if axis is None or i != axis % value.dim()]
    low, high = (value.amin(others, True), value.amax(others, True)) if others else (value, value)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    best = _round(value, low, high, bits, symmetric, least_scale)
    error = _error(best, value, others)
    for shrink in torch.linspace(1.0, 0.2, CLIPS, dtype=torch.float64)[1:] if clip == "mse" else ():
        tried = _round(value, low * shrink, high * shrink, bits, symmetric, least_scale)
        tried_error = _error(tried, value, others)
        better = tried_error < error
        error = torch.where(better, tried_error, error)
        best = QuantizedWeight(
            torch.where(better, tried.integers, best.integers),
            torch.where(better, tried.scale, best.scale),
            torch.where(better, tried.zero_point, best.zero_point),
        )
    return best


def _round(value: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool, least_scale: float) -> QuantizedWeight:
    top = 2 ** (bits - 1) - 1
    if symmetric:
        scale = _stored((torch.maximum(-low, high) / top).clamp(min=least_scale))
        integers = torch.round(value / scale).clamp(-top, top)
        return QuantizedWeight(integers.to(torch.int8), scale, torch.zeros_like(scale))
    scale = _stored(((high - low) / (2**bits - 1)).clamp(min=least_scale))
    zero_point = (-top - 1 - torch.round(low / scale)).clamp(-top - 1, top)
    integers = (torch.round(value / scale) + zero_point).clamp(-top - 1, top)
    return QuantizedWeight(integers.to(torch.int8), scale, zero_point)


def _stored(scale: Tensor) -> Tensor:
    """As files hold it: float32."""
    return scale.float().double()


def _error(quantized: QuantizedWeight, value: Tensor, others: list[int]) -> Tensor:
    squared = ((quantized.integers.double() - quantized.zero_point) * quantized.scale - value).square()
    return squared.sum(others, True) if others else squared
