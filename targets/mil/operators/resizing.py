"""Resizing the last axes of a tensor.

Where the N samples of an axis of X elements lie is one of five rules (SamplingMode in coremltools' NeuralNetwork.proto
and the reference of resize_bilinear); positions between elements are interpolated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acmix.targets.mil.call import Call, operator
from acmix.targets.mil.operators.elementwise import like

SAMPLING_MODES = ("DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "OFFSET_CORNERS", "UNALIGN_CORNERS")


def grid(mode: str, size: float, count: int) -> Tensor:
    """`count` positions on an interval from 0 to size - 1, float64.  size may be a fraction, for a box."""
    steps = torch.arange(count, dtype=torch.float64)
    last = size - 1
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if count == 1:
            return steps + (last / 2 if mode == "ALIGN_CORNERS" else 0)
        return steps * last / (count - 1)
    if mode == "OFFSET_CORNERS":
        places = (steps + 0.5) * max(1.0, last) / count
    elif mode == "UNALIGN_CORNERS":
        places = (steps + 0.5) * size / count - 0.5
    else:
        places = steps * size / count
    return places.clamp(min(0.0, last), max(0.0, last))


def interpolated(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """x at positions between the elements of an axis."""
    low = places.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [-1 if one == axis % x.dim() else 1 for one in range(x.dim())]
    share = (places - low).to(x.dtype).reshape(shape)
    return x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share


def _resized(call: Call, sizes: list[int], mode: str) -> Tensor:
    """The last axes interpolated to `sizes`."""
    x = call.tensor("x")
    _check(call, x, sizes)
    y = x if x.is_floating_point() else x.to(torch.float64)
    for axis, size in enumerate(sizes, x.dim() - len(sizes)):
        y = interpolated(y, axis, grid(mode, x.shape[axis], size))
    return like(x, y)


def _nearest(call: Call, sizes: list[int]) -> Tensor:
    """The last axes repeated or thinned to `sizes`: element floor(i X / N)."""
    x = call.tensor("x")
    _check(call, x, sizes)
    for axis, size in enumerate(sizes, x.dim() - len(sizes)):
        x = x.index_select(axis, torch.arange(size) * x.shape[axis] // size)
    return x


def _check(call: Call, x: Tensor, sizes: list[int]) -> None:
    if len(sizes) > x.dim() or min(sizes, default=1) < 1 or 0 in x.shape:
        raise call.refuse(f"{list(x.shape)} cannot be resized to {sizes}")
    call.reserve((*x.shape[: x.dim() - len(sizes)], *sizes))


def _scaled(call: Call) -> list[int]:
    """floor(size * factor) for the last two axes, in float32 as coremltools multiplies."""
    sizes = []
    for name, size in zip(("scale_factor_height", "scale_factor_width"), call.tensor("x").shape[-2:], strict=True):
        factor = call.scalar(name).reshape(()).float() if name in call else torch.tensor(1.0)
        sizes.append(int((factor * size).floor().nan_to_num(0, 2**30, 0).clamp(0, 2**30)))
    return sizes


@operator("resize_bilinear")
def resize_bilinear(call: Call) -> Tensor:
    """The last two axes to a height and a width (1 unless told)."""
    sizes = [call.integer("target_size_height", 1), call.integer("target_size_width", 1)]
    return _resized(call, sizes, call.choice("sampling_mode", SAMPLING_MODES, "DEFAULT"))


@operator("resize_nearest_neighbor")
def resize_nearest_neighbor(call: Call) -> Tensor:
    """The last two axes to a height and a width, without interpolation."""
    return _nearest(call, [call.integer("target_size_height"), call.integer("target_size_width")])


@operator("upsample_bilinear")
def upsample_bilinear(call: Call) -> Tensor:
    """The last two axes by factors; the first and last elements stay where they are unless align_corners is false."""
    aligned = call.flag("align_corners", True)
    if aligned:
        return _resized(call, _scaled(call), "STRICT_ALIGN_CORNERS")
    centred = call.flag("half_pixel_centers", True)
    return _resized(call, _scaled(call), "UNALIGN_CORNERS" if centred else "DEFAULT")


@operator("upsample_nearest_neighbor")
def upsample_nearest_neighbor(call: Call) -> Tensor:
    """The last two axes by factors, without interpolation."""
    return _nearest(call, _scaled(call))


@operator("resize")
def resize(call: Call) -> Tensor:
    """The last resized_dims axes to the last sizes of `shape`, 0 meaning as it is.

    NEAREST_NEIGHBOR takes the element nearest to each position, of two the first.
    """
    x, count = call.tensor("x"), call.integer("resized_dims")
    wanted = call.integers("shape")
    if not 0 <= count <= min(len(wanted), x.dim()):
        raise call.refuse(f"'resized_dims' is {count} for 'shape' {wanted} and a tensor of rank {x.dim()}")
    sizes = [size or own for size, own in zip(wanted[len(wanted) - count :], x.shape[x.dim() - count :], strict=True)]
    mode = call.choice("sampling_mode", SAMPLING_MODES, "DEFAULT")
    if call.choice("interpolation_mode", ("LINEAR", "NEAREST_NEIGHBOR"), "LINEAR") == "LINEAR":
        return _resized(call, sizes, mode)
    _check(call, x, sizes)
    for axis, size in enumerate(sizes, x.dim() - count):
        x = x.index_select(axis, (grid(mode, x.shape[axis], size) - 0.5).ceil().long().clamp(0, x.shape[axis] - 1))
    return x
