"""Operators that only move elements: shapes, permutations, joins, blocks between channels, space and batch."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix.targets.mil.call import Call, operator

RIGHT_ALIGNED_ZEROS = 17
"""The first opset whose reshape counts the zeros of `shape` from the right."""


@operator("reshape")
def reshape(call: Call) -> Tensor:
    """To `shape`: -1 is what remains, 0 is the size of x's own axis (counted from the right since iOS 17)."""
    x, shape = call.tensor("x"), call.integers("shape")
    if 0 in shape and call.opset < RIGHT_ALIGNED_ZEROS and len(shape) != x.dim():
        raise call.refuse(f"'shape' is {shape}, with a zero, for a tensor of rank {x.dim()}")
    for index, size in enumerate(shape):
        if size == 0:
            own = index - len(shape)
            shape[index] = x.shape[own] if -own <= x.dim() else 1
    call.reserve([size for size in shape if size >= 0])
    return x.reshape(shape)


@operator("reshape_like")
def reshape_like(call: Call) -> Tensor:
    """To axes begins[i] to ends[i] (to the last where end_masks[i]) of each reference tensor's shape, joined."""
    shape: list[int] = []
    limits = (call.integers(name) for name in ("begins", "ends", "end_masks"))
    for reference, begin, end, to_last in zip(call.tensors("ref_tensors"), *limits, strict=True):
        shape += reference.shape[begin:] if to_last else reference.shape[begin:end]
    return call.tensor("x").reshape(shape)


@operator("expand_dims")
def expand_dims(call: Call) -> Tensor:
    """New axes of size 1 at the places that they have in the result."""
    x, axes = call.tensor("x"), call.integers("axes")
    rank = x.dim() + len(axes)
    for axis in sorted(call.positive(axis, rank) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("squeeze")
def squeeze(call: Call) -> Tensor:
    """Without axes of size 1: those named, or all; others that are named stay."""
    x = call.tensor("x")
    axes = call.integers("axes", range(x.dim()))
    return x.squeeze(tuple(dict.fromkeys(call.positive(axis, x.dim()) for axis in axes)))


@operator("flatten2d")
def flatten2d(call: Call) -> Tensor:
    """Two axes: those before `axis`, 1 unless told, and the rest."""
    x, axis = call.tensor("x"), call.integer("axis", 1)
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@operator("shape")
def shape(call: Call) -> Tensor:
    """The shape of x as integers."""
    return torch.tensor(call.tensor("x").shape, dtype=torch.int64)


@operator("transpose")
def transpose(call: Call) -> Tensor:
    """Axis i of the result is axis perm[i] of x."""
    return call.tensor("x").permute(call.integers("perm"))


@operator("concat")
def concat(call: Call) -> Tensor:
    """Joined along an axis; interleaved: first the first slice of each, then the second."""
    values = [value.reshape(1) if value.dim() == 0 else value for value in call.tensors("values")]
    axis = call.axis("axis", values[0].dim())
    length = sum(value.shape[axis] for value in values)
    call.reserve((*values[0].shape[:axis], length, *values[0].shape[axis + 1 :]))
    if not call.flag("interleave"):
        return torch.cat(values, axis)
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@operator("split")
def split(call: Call) -> tuple[Tensor, ...]:
    """Into num_splits equal parts, or parts of split_sizes."""
    x = call.tensor("x")
    axis = call.axis("axis", x.dim())
    if "split_sizes" in call:
        return torch.split(x, call.integers("split_sizes"), axis)
    count = call.integer("num_splits")
    if count < 1 or x.shape[axis] % count:
        raise call.refuse(f"{x.shape[axis]} elements do not split into {count} equal parts")
    return torch.split(x, max(1, x.shape[axis] // count), axis)


@operator("stack")
def stack(call: Call) -> Tensor:
    """Along a new axis."""
    values = call.tensors("values")
    call.reserve((len(values), *values[0].shape))
    return torch.stack(values, call.integer("axis"))


@operator("tile")
def tile(call: Call) -> Tensor:
    """Each axis reps[i] times."""
    x, reps = call.tensor("x"), call.integers("reps")
    if len(reps) != x.dim() or min(reps, default=1) < 1:
        raise call.refuse(f"'reps' is {reps} for a tensor of rank {x.dim()}")
    call.reserve([size * rep for size, rep in zip(x.shape, reps, strict=True)])
    return x.tile(reps)


@operator("reverse")
def reverse(call: Call) -> Tensor:
    """Back to front along axes, all unless told."""
    x = call.tensor("x")
    return x.flip([call.positive(axis, x.dim()) for axis in call.integers("axes", range(x.dim()))])


@operator("reverse_sequence")
def reverse_sequence(call: Call) -> Tensor:
    """For each index of batch_axis, its first lengths[index] elements along seq_axis back to front."""
    x, lengths = call.tensor("x").clone(), call.integers("lengths")
    sequence, batch = call.axis("seq_axis", x.dim(), 0), call.axis("batch_axis", x.dim(), 0)
    if len(lengths) != x.shape[batch] or not all(0 <= length <= x.shape[sequence] for length in lengths):
        raise call.refuse(f"'lengths' is {lengths} for a tensor of {list(x.shape)}")
    if sequence == batch:
        raise call.refuse("'seq_axis' and 'batch_axis' are the same")
    for index, length in enumerate(lengths):
        part = x.select(batch, index)
        along = sequence - (sequence > batch)
        part.narrow(along, 0, length).copy_(part.narrow(along, 0, length).flip(along).clone())
    return x


@operator("band_part")
def band_part(call: Call) -> Tensor:
    """Zeros outside a band of the last two axes: `lower` diagonals below the main one, `upper` above; -1 is all."""
    x, lower, upper = call.tensor("x"), call.integer("lower", -1), call.integer("upper", -1)
    below = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])
    outside = torch.zeros_like(below, dtype=torch.bool)
    if lower >= 0:
        outside |= below > lower
    if upper >= 0:
        outside |= -below > upper
    return x.masked_fill(outside, 0)


@operator("pixel_shuffle")
def pixel_shuffle(call: Call) -> Tensor:
    """Channels c f f + i f + j to pixel (i, j) of blocks of f x f."""
    return F.pixel_shuffle(call.tensor("x"), call.integer("upscale_factor"))


@operator("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Tensor:
    """The inverse of pixel_shuffle."""
    return F.pixel_unshuffle(call.tensor("x"), call.integer("downscale_factor"))


@operator("depth_to_space")
def depth_to_space(call: Call) -> Tensor:
    """Channels (i b + j) C + c to pixel (i, j) of blocks of b x b."""
    x, block = call.tensor("x"), call.integer("block_size")
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


@operator("space_to_depth")
def space_to_depth(call: Call) -> Tensor:
    """The inverse of depth_to_space."""
    x, block = call.tensor("x"), call.integer("block_size")
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


@operator("space_to_batch")
def space_to_batch(call: Call) -> Tensor:
    """Pads space with zeros; pixel (i, j) of each block goes to image (i b1 + j) n + image."""
    x, (down, across) = call.tensor("x"), call.integers("block_shape")
    top, bottom, left, right = call.integers("paddings")
    call.reserve((*x.shape[:2], x.shape[2] + top + bottom, x.shape[3] + left + right))
    x = F.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // down, down, w // across, across).permute(3, 5, 0, 1, 2, 4)
    return x.reshape(n * down * across, c, h // down, w // across)


@operator("batch_to_space")
def batch_to_space(call: Call) -> Tensor:
    """The inverse of space_to_batch; then crops."""
    x, (down, across) = call.tensor("x"), call.integers("block_shape")
    top, bottom, left, right = call.integers("crops")
    n, c, h, w = x.shape
    x = x.reshape(down, across, n // (down * across), c, h, w).permute(2, 3, 4, 0, 5, 1)
    x = x.reshape(n // (down * across), c, h * down, w * across)
    return x[:, :, top : h * down - bottom, left : w * across - right]
