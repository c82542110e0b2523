"""In which numbers a program is evaluated: as its file declares, or wider to tell precision from conversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acmix.targets.mil.program import FLOATS, MilType
from acmix.toolkit.errors import UsageError

Precision = Literal["declared", "float32", "float64"]
Accumulation = Literal["float32", "float16"]

# Unsigned types that torch computes with poorly are kept in the next larger signed one.
INTEGERS: dict[MilType, torch.dtype] = {
    "int4": torch.int8, "int8": torch.int8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64,
    "uint1": torch.uint8, "uint2": torch.uint8, "uint3": torch.uint8, "uint4": torch.uint8, "uint6": torch.uint8,
    "uint8": torch.uint8, "uint16": torch.int32, "uint32": torch.int64, "uint64": torch.int64,
}  # fmt: skip
MASKS: dict[MilType, int] = {"uint16": 0xFFFF, "uint32": 0xFFFFFFFF}


@dataclass(frozen=True)
class Arithmetic:
    """precision: `declared` rounds what the file calls fp16 to float16, operands and results; the others never do.

    accumulate: what sums of fp16 products are kept in, for `declared`: float32 as CPU and GPU do, or float16, each
    partial sum rounded, as the Neural Engine may.  Other results are computed in float32 and rounded once.
    """

    precision: Precision = "declared"
    accumulate: Accumulation = "float32"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("precision", self.precision, get_args(Precision)),
            ("accumulation", self.accumulate, get_args(Accumulation)),
        ):
            if value not in known:
                raise UsageError(f"no {name} is called '{value}': choose {' or '.join(known)}.")

    @property
    def dtype(self) -> torch.dtype:
        """What every float is held in."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def halves(self, kind: MilType) -> bool:
        """Whether sums of this type are accumulated in float16."""
        return kind == "fp16" and self.precision == "declared" and self.accumulate == "float16"

    def load(self, array: NDArray[np.generic], kind: MilType) -> Tensor:
        """A numpy array as a value of the program; the array is copied."""
        if kind in FLOATS:
            held = np.float64 if self.dtype == torch.float64 else np.float32
            return self.store(torch.from_numpy(np.array(array, held)), kind)
        if kind == "bool":
            return torch.from_numpy(np.array(array, np.bool_))
        return self.store(torch.from_numpy(np.array(array, np.int64)), kind)

    def store(self, value: Tensor, kind: MilType) -> Tensor:
        """A result in the type that the file declares for it: rounded, or wrapped round as integers do."""
        if kind in FLOATS:
            held = value.to(self.dtype)
            return held.half().to(self.dtype) if kind == "fp16" and self.precision == "declared" else held
        if kind == "bool":
            return value
        if kind in MASKS:
            value = value.to(torch.int64) & MASKS[kind]
        return value.to(INTEGERS[kind])


def half_sum(terms: Sequence[Tensor] | Tensor) -> Tensor:
    """Add terms (along the first axis) one after the other, every partial sum rounded to float16."""
    total = torch.zeros_like(terms[0])
    for term in terms:
        total = (total + term).half().to(total.dtype)
    return total


def half_reduce(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Sum over axes, one element after the other in row-major order, in float16."""
    positive = sorted(axis % x.dim() for axis in axes)
    kept = [axis for axis in range(x.dim()) if axis not in positive]
    terms = x.permute(*positive, *kept).reshape(-1, *(x.shape[axis] for axis in kept))
    total = half_sum(terms) if len(terms) else x.new_zeros([x.shape[axis] for axis in kept])
    if keepdim:
        for axis in positive:
            total = total.unsqueeze(axis)
    return total


def half_matmul(x: Tensor, y: Tensor) -> Tensor:
    """[..., M, K] times [..., K, N], each product added in float16 (the product itself is exact)."""
    shape = (*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1])
    total = x.new_zeros(shape)
    for k in range(x.shape[-1]):
        total = (total + x[..., :, k : k + 1] * y[..., k : k + 1, :]).half().to(total.dtype)
    return total
