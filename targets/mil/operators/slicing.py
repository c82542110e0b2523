"""Parts of tensors by position, padding, and windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from acmix.targets.mil.call import Call, operator

Slices = tuple[slice | int, ...]


def slices_of(call: Call, rank: int) -> Slices:
    """numpy's slices from begin, end, stride and their masks; an index where squeeze_mask is set."""
    begins, ends = call.integers("begin"), call.integers("end")
    strides = call.integers("stride", [1] * rank)
    begin_mask, end_mask, squeeze = (
        call.integers(name, [0] * rank) for name in ("begin_mask", "end_mask", "squeeze_mask")
    )
    if any(len(one) != rank for one in (begins, ends, strides, begin_mask, end_mask, squeeze)) or 0 in strides:
        raise call.refuse(f"begin {begins}, end {ends} and stride {strides} are for another rank than {rank}")
    parts: list[slice | int] = []
    for axis in range(rank):
        begin = None if begin_mask[axis] else begins[axis]
        end = None if end_mask[axis] else ends[axis]
        parts.append((begin or 0) if squeeze[axis] else slice(begin, end, strides[axis]))
    return tuple(parts)


@operator("slice_by_index")
def slice_by_index(call: Call) -> Tensor:
    """x[begin:end:stride] for every axis, as numpy does it."""
    x = call.tensor("x")
    parts = slices_of(call, x.dim())
    if all(isinstance(part, int) or part.step > 0 for part in parts):
        return x[parts]
    return torch.from_numpy(np.array(x.numpy()[parts]))


@operator("slice_by_size")
def slice_by_size(call: Call) -> Tensor:
    """size[i] elements from begin[i] on; all that follow where size[i] is -1."""
    x, begins, sizes = call.tensor("x"), call.integers("begin"), call.integers("size")
    for axis, (begin, size) in enumerate(zip(begins, sizes, strict=True)):
        start = begin + x.shape[axis] if begin < 0 else begin
        x = x.narrow(axis, start, x.shape[axis] - start if size == -1 else size)
    return x


@operator("slice_update")
def slice_update(call: Call) -> Tensor:
    """x with the slice that slice_by_index would take replaced by `update`."""
    x, update = call.tensor("x").numpy().copy(), call.tensor("update").numpy()
    parts = slices_of(call, x.ndim)
    if x[parts].shape != update.shape:
        raise call.refuse(f"'update' has the shape {list(update.shape)}, the slice {list(x[parts].shape)}")
    x[parts] = update
    return torch.from_numpy(x)


@operator("crop")
def crop(call: Call) -> Tensor:
    """Without some rows and columns of the last two axes: [first, last] of each."""
    x, (top, bottom), (left, right) = call.tensor("x"), call.integers("crop_height"), call.integers("crop_width")
    if min(top, bottom, left, right) < 0 or top + bottom > x.shape[-2] or left + right > x.shape[-1]:
        raise call.refuse(f"{list(x.shape[-2:])} cannot lose {[top, bottom]} rows and {[left, right]} columns")
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


@operator("sliding_windows")
def sliding_windows(call: Call) -> Tensor:
    """All windows of `size` along an axis, `stride` apart: the axis counts windows, a new one after it elements."""
    x = call.tensor("x")
    axis, size, stride = call.axis("axis", x.dim()), call.integer("size"), call.integer("stride", 1)
    windows = x.unfold(axis, size, stride)
    call.reserve(windows.shape)
    return windows.movedim(-1, axis + 1)


@operator("pad")
def pad(call: Call) -> Tensor:
    """Elements before and after each of the last axes: a constant, mirrored without the edge, or the edge."""
    x, amounts = call.tensor("x"), call.integers("pad")
    mode = call.choice("mode", ("constant", "reflect", "replicate"), "constant")
    if len(amounts) % 2 or len(amounts) > 2 * x.dim() or min(amounts, default=0) < 0:
        raise call.refuse(f"'pad' is {amounts} for a tensor of rank {x.dim()}: two for each axis, none negative")
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    first = x.dim() - len(pairs)
    call.reserve([size + sum(pairs[axis - first]) if axis >= first else size for axis, size in enumerate(x.shape)])
    if mode == "constant":
        value = call.scalar("constant_val").item() if "constant_val" in call else 0
        return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=value)
    for axis, (before, after) in enumerate(pairs, first):
        if before or after:
            x = x.index_select(axis, _mirrored(call, x.shape[axis], before, after, mode))
    return x


def _mirrored(call: Call, size: int, before: int, after: int, mode: str) -> Tensor:
    """The elements that a padded axis shows."""
    places = torch.arange(-before, size + after)
    if mode == "replicate":
        return places.clamp(0, size - 1)
    if max(before, after) >= size:
        raise call.refuse(f"an axis of {size} elements cannot be mirrored by {[before, after]}")
    return reflected(places, size)


def reflected(places: Tensor, size: int) -> Tensor:
    """Integer positions mirrored at the first and last element, which are not repeated."""
    if size == 1:
        return torch.zeros_like(places)
    period = 2 * (size - 1)
    folded = places.remainder(period)
    return torch.minimum(folded, period - folded)


def flat_index(indices: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The position in a row-major tensor of one index for each axis."""
    total = torch.zeros_like(indices[0])
    for index, size in zip(indices, shape, strict=True):
        total = total * size + index
    return total
