"""Compressed weights, unpacked when a program is loaded, and quantized activations."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from acmix.targets.mil.call import Call, operator
from acmix.targets.mil.weights import unpack

QUANTIZED = {"int8": (-128, 127), "uint8": (0, 255)}


def _along(call: Call, name: str, data: Tensor) -> Tensor | None:
    """A scale or zero point for the whole tensor, or one for each index of an axis."""
    if name not in call:
        return None
    values = call.tensor(name).to(call.arithmetic.dtype)
    if values.numel() == 1:
        return values.reshape([1] * data.dim())
    axis = call.axis("axis", data.dim())
    if values.numel() != data.shape[axis]:
        raise call.refuse(f"'{name}' has {values.numel()} elements for an axis of {data.shape[axis]}")
    return values.reshape([-1 if one == axis else 1 for one in range(data.dim())])


def _shifted(call: Call, data: Tensor) -> Tensor:
    """scale * (data - zero point)."""
    zero, scale = _along(call, "zero_point", data), _along(call, "scale", data)
    data = data.to(call.arithmetic.dtype)
    if scale is None:
        raise call.refuse("its operand 'scale' is missing")
    return scale * (data if zero is None else data - zero)


@operator("constexpr_affine_dequantize")
def affine_dequantize(call: Call) -> Tensor:
    """scale * (quantized_data - zero_point)."""
    return _shifted(call, call.tensor("quantized_data"))


@operator("dequantize")
def dequantize(call: Call) -> Tensor:
    """scale * (input - zero_point)."""
    return _shifted(call, call.tensor("input"))


@operator("quantize")
def quantize(call: Call) -> Tensor:
    """input / scale to the nearest integer, halves to the even one, plus zero_point, saturating."""
    x = call.tensor("input")
    low, high = QUANTIZED[call.choice("output_dtype", tuple(QUANTIZED))]
    scale, zero = _along(call, "scale", x), _along(call, "zero_point", x)
    if scale is None:
        raise call.refuse("its operand 'scale' is missing")
    steps = torch.round(x / scale)
    steps = steps if zero is None else steps + zero
    return steps.nan_to_num(0.0).clamp(low, high).to(torch.int64)


@operator("constexpr_cast")
def cast(call: Call) -> Tensor:
    """fp16 weights as fp32."""
    call.choice("output_dtype", ("fp32",))
    return call.tensor("source_val")


def _blocks(call: Call, name: str, shape: torch.Size) -> Tensor:
    """One number for each block of a tensor, repeated over its block."""
    values = call.tensor(name).to(call.arithmetic.dtype)
    if values.dim() != len(shape) or any(
        blocks == 0 or size % blocks for size, blocks in zip(shape, values.shape, strict=True)
    ):
        raise call.refuse(f"'{name}' {list(values.shape)} does not divide {list(shape)} into blocks")
    for axis, size in enumerate(shape):
        if values.shape[axis] not in (1, size):
            values = values.repeat_interleave(size // values.shape[axis], axis)
    return values


def _blockwise(call: Call, data: Tensor) -> Tensor:
    """scale * (data - offset), each of its block."""
    data = data.to(call.arithmetic.dtype)
    if "offset" in call:
        data = data - _blocks(call, "offset", data.shape)
    return data * _blocks(call, "scale", data.shape)


@operator("constexpr_blockwise_shift_scale")
def blockwise_shift_scale(call: Call) -> Tensor:
    """scale * (data - offset) by blocks."""
    return _blockwise(call, call.tensor("data"))


@operator("constexpr_sparse_blockwise_shift_scale")
def sparse_blockwise_shift_scale(call: Call) -> tuple[Tensor, Tensor]:
    """The mask, and the data at its ones shifted and scaled by the blocks that they lie in."""
    mask = call.tensor("data_mask")
    return mask, _blockwise(call, _dense(call, call.tensor("nonzero_data"), mask))[mask != 0]


def _dense(call: Call, data: Tensor, mask: Tensor) -> Tensor:
    """Data at the ones of a mask, zeros elsewhere."""
    if int((mask != 0).sum()) != data.numel():
        raise call.refuse(f"its mask has {int((mask != 0).sum())} ones for {data.numel()} elements")
    return torch.zeros(mask.shape, dtype=data.dtype).masked_scatter(mask != 0, data)


def _packed(call: Call, name: str, bits: int) -> Tensor:
    """The integers below a byte that iOS 16 packs into bytes, in the shape `shape`."""
    shape, data = call.reserve(call.integers("shape")), call.tensor(name)
    if data.numel() != -(-bits * prod(shape) // 8):
        raise call.refuse(f"'{name}' has {data.numel()} bytes for {list(shape)} of {bits} bits")
    return torch.from_numpy(unpack(data.reshape(-1).numpy(), bits, prod(shape)).reshape(shape))


@operator("constexpr_sparse_to_dense")
def sparse_to_dense(call: Call) -> Tensor:
    """nonzero_data at the ones of a mask, which iOS 16 packs into bytes."""
    mask = _packed(call, "mask", 1) if "shape" in call else call.tensor("mask")
    return _dense(call, call.tensor("nonzero_data"), mask)


@operator("constexpr_lut_to_dense")
def lut_to_dense(call: Call) -> Tensor:
    """Indices as the values of a look-up table; iOS 16 packs the indices, iOS 18 has a table for each block."""
    lut = call.tensor("lut")
    if "shape" not in call:
        return _looked_up(call, call.tensor("indices"), lut)
    bits = lut.numel().bit_length() - 1
    if lut.numel() != 1 << bits or bits not in (1, 2, 4, 6, 8):
        raise call.refuse(f"its look-up table has {lut.numel()} entries in place of 2, 4, 16, 64 or 256")
    return lut.reshape(-1)[_packed(call, "indices", bits).long()]


@operator("constexpr_lut_to_sparse")
def lut_to_sparse(call: Call) -> tuple[Tensor, Tensor]:
    """The mask, widened by the table's vectors, and the looked-up values at its ones."""
    mask, lut = call.tensor("indices_mask"), call.tensor("lut")
    values = _looked_up(call, _dense(call, call.tensor("indices_nonzero_data"), mask), lut)
    if lut.shape[-1] > 1:
        mask = mask.repeat_interleave(lut.shape[-1], call.axis("vector_axis", mask.dim()))
    return mask, values[mask != 0]


def _looked_up(call: Call, indices: Tensor, lut: Tensor) -> Tensor:
    """lut [blocks of each axis of indices ..., entries, vector]; a vector's elements follow along vector_axis."""
    rank = indices.dim()
    if lut.dim() != rank + 2 or any(
        blocks == 0 or size % blocks for size, blocks in zip(indices.shape, lut.shape[:-2], strict=True)
    ):
        raise call.refuse(f"its look-up tables {list(lut.shape)} do not fit indices {list(indices.shape)}")
    call.reserve((*indices.shape, lut.shape[-1]))
    block = torch.zeros((), dtype=torch.int64)
    for axis, (size, blocks) in enumerate(zip(indices.shape, lut.shape[:-2], strict=True)):
        step = torch.arange(size) // max(1, size // blocks)
        block = block * blocks + step.reshape([-1 if one == axis else 1 for one in range(rank)])
    tables = lut.reshape(-1, *lut.shape[-2:])
    values = tables[block.expand(indices.shape), indices.long()]
    if lut.shape[-1] == 1:
        return values.squeeze(-1)
    axis = call.axis("vector_axis", rank)
    return values.movedim(-1, axis + 1).flatten(axis, axis + 1)
