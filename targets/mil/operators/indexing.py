"""Gathering by index, and scattering to indices."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acmix.targets.mil.call import Call, operator
from acmix.targets.mil.operators.slicing import flat_index

POSITIVE_INDICES = 17
"""The first opset in which a negative index is out of bounds, and bounds are checked only on request."""

Array = NDArray[Any]


def _divide_at(data: Array, places: Array, updates: Array) -> None:
    (np.divide if data.dtype.kind == "f" else np.floor_divide).at(data, places, updates)


def _update_at(data: Array, places: Array, updates: Array) -> None:
    data[places] = updates


# Of several updates to one place each counts, in order; the last one stays where they replace.
MODES: dict[str, Callable[[Array, Array, Array], None]] = {
    "update": _update_at,
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": _divide_at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}


def bounded(call: Call, indices: Tensor, size: int) -> Tensor:
    """Indices from 0 to size - 1.  Before iOS 17 negative ones count from the end and others are refused.

    Since then validate_indices refuses all that lie outside; without it Apple leaves the result open, and here
    negative ones still count from the end and those beyond are moved to the nearest element.
    """
    indices = indices.to(torch.int64)
    if indices.numel() == 0:
        return indices
    low, high = int(indices.min()), int(indices.max())
    if size == 0:
        raise call.refuse("it indexes an axis without elements")
    if call.opset >= POSITIVE_INDICES and call.flag("validate_indices") and (low < 0 or high >= size):
        raise call.refuse(f"the index {low if low < 0 else high} is outside 0 to {size - 1}")
    if call.opset < POSITIVE_INDICES and (low < -size or high >= size):
        raise call.refuse(f"the index {low if low < -size else high} is outside {-size} to {size - 1}")
    return torch.where(indices < 0, indices + size, indices).clamp(0, size - 1)


@operator("gather")
def gather(call: Call) -> Tensor:
    """Slices of x along an axis (the first unless told); the first batch_dims axes of x and indices go together."""
    x, batch = call.tensor("x"), call.integer("batch_dims", 0)
    axis = call.axis("axis", x.dim(), 0)
    indices = bounded(call, call.tensor("indices"), x.shape[axis])
    if not 0 <= batch <= min(axis, indices.dim()) or x.shape[:batch] != indices.shape[:batch]:
        raise call.refuse(f"'batch_dims' is {batch} for {list(x.shape)}, axis {axis}, and {list(indices.shape)}")
    shape = call.reserve((*x.shape[:axis], *indices.shape[batch:], *x.shape[axis + 1 :]))
    if batch == 0:
        return x.index_select(axis, indices.reshape(-1)).reshape(shape)
    groups = prod(x.shape[:batch])
    rows = x.reshape(groups, prod(x.shape[batch:axis]), x.shape[axis], -1)
    chosen = indices.reshape(groups, 1, -1, 1).expand(-1, rows.shape[1], -1, rows.shape[3])
    return rows.gather(2, chosen).reshape(shape)


@operator("gather_along_axis")
def gather_along_axis(call: Call) -> Tensor:
    """Of each line along an axis (the first unless told) the elements that `indices` names."""
    x = call.tensor("x")
    axis = call.axis("axis", x.dim(), 0)
    indices = bounded(call, call.tensor("indices"), x.shape[axis])
    call.reserve(indices.shape)
    return torch.take_along_dim(x, indices, axis)


@operator("gather_nd")
def gather_nd(call: Call) -> Tensor:
    """x at each vector along the last axis of `indices`, after batch_dims axes that go together."""
    x, indices, batch = call.tensor("x"), call.tensor("indices"), call.integer("batch_dims", 0)
    depth = indices.shape[-1]
    if batch + depth > x.dim() or batch >= indices.dim() or x.shape[:batch] != indices.shape[:batch]:
        raise call.refuse(f"indices {list(indices.shape)} with {batch} batch axes do not fit x {list(x.shape)}")
    shape = call.reserve((*indices.shape[:-1], *x.shape[batch + depth :]))
    groups = prod(x.shape[:batch])
    rows = x.reshape(groups, prod(x.shape[batch : batch + depth]), -1)
    places = _places(call, indices, x.shape[batch : batch + depth]).reshape(groups, -1)
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[2])).reshape(shape)


def _places(call: Call, indices: Tensor, sizes: torch.Size) -> Tensor:
    """The flat position that each vector along the last axis names."""
    parts = [bounded(call, indices[..., axis], size) for axis, size in enumerate(sizes)]
    return flat_index(parts, sizes) if parts else torch.zeros(indices.shape[:-1], dtype=torch.int64)


def _scattered(call: Call, data: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    """Data with updates applied at flat places."""
    mode = call.choice("mode", tuple(MODES), "add")
    result = data.numpy().copy().reshape(-1)
    MODES[mode](result, places.reshape(-1).numpy(), updates.numpy().reshape(-1))
    return torch.from_numpy(result).reshape(data.shape)


def _positions(shape: torch.Size) -> Tensor:
    return torch.arange(prod(shape)).reshape(shape)


@operator("scatter")
def scatter(call: Call) -> Tensor:
    """Slices of `updates` to the slices of data along an axis that `indices` names."""
    data, updates = call.tensor("data"), call.tensor("updates")
    axis = call.axis("axis", data.dim(), 0)
    indices = bounded(call, call.tensor("indices"), data.shape[axis])
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    if tuple(updates.shape) != shape:
        raise call.refuse(f"'updates' has the shape {list(updates.shape)} in place of {list(shape)}")
    places = _positions(data.shape).index_select(axis, indices.reshape(-1))
    return _scattered(call, data, places, updates)


@operator("scatter_along_axis")
def scatter_along_axis(call: Call) -> Tensor:
    """Each element of `updates` to the place along an axis that `indices` names."""
    data, updates = call.tensor("data"), call.tensor("updates")
    axis = call.axis("axis", data.dim(), 0)
    indices = bounded(call, call.tensor("indices"), data.shape[axis])
    if updates.shape != indices.shape:
        raise call.refuse(f"'updates' {list(updates.shape)} and 'indices' {list(indices.shape)} differ")
    return _scattered(call, data, torch.take_along_dim(_positions(data.shape), indices, axis), updates)


@operator("scatter_nd")
def scatter_nd(call: Call) -> Tensor:
    """Slices of `updates` to where the vectors along the last axis of `indices` point."""
    data, indices, updates = call.tensor("data"), call.tensor("indices"), call.tensor("updates")
    depth = indices.shape[-1]
    shape = (*indices.shape[:-1], *data.shape[depth:])
    if depth > data.dim() or tuple(updates.shape) != shape:
        raise call.refuse(f"'updates' has the shape {list(updates.shape)} in place of {list(shape)}")
    rows = _positions(data.shape).reshape(prod(data.shape[:depth]), -1)
    return _scattered(call, data, rows[_places(call, indices, data.shape[:depth])], updates)
