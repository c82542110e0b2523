"""Normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix.targets.mil.call import Call, operator
from acmix.targets.mil.operators.activation import channels


@operator("batch_norm")
def batch_norm(call: Call) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, one of each for a channel (the second axis)."""
    x = call.tensor("x")
    y = (x - channels(call, "mean", x)) / torch.sqrt(channels(call, "variance", x) + call.number("epsilon", 1e-5))
    return _affine(call, x, y)


@operator("instance_norm")
def instance_norm(call: Call) -> Tensor:
    """Each channel of each image by its own mean and variance over the spatial axes."""
    x = call.tensor("x")
    if x.dim() < 3:
        raise call.refuse(f"x has the shape {list(x.shape)}: it has no spatial axes")
    return _affine(call, x, _standardised(call, x, range(2, x.dim())))


def _affine(call: Call, x: Tensor, y: Tensor) -> Tensor:
    if "gamma" in call:
        y = y * channels(call, "gamma", x)
    return y + channels(call, "beta", x) if "beta" in call else y


def _standardised(call: Call, x: Tensor, axes: Sequence[int]) -> Tensor:
    centred = x - call.mean(x, axes, True)
    variance = call.mean(centred * centred, axes, True)
    return centred / torch.sqrt(variance + call.number("epsilon", 1e-5))


@operator("layer_norm")
def layer_norm(call: Call) -> Tensor:
    """By mean and variance over some axes, all unless told; gamma and beta have the shape of those axes."""
    x = call.tensor("x")
    axes = sorted({call.positive(axis, x.dim()) for axis in call.integers("axes", range(x.dim()))})
    y = _standardised(call, x, axes)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    if "gamma" in call:
        y = y * call.tensor("gamma").reshape(shape)
    return y + call.tensor("beta").reshape(shape) if "beta" in call else y


@operator("l2_norm")
def l2_norm(call: Call) -> Tensor:
    """x / sqrt(sum of squares + epsilon), the sum over the last three axes."""
    x = call.tensor("x")
    if x.dim() < 3:
        raise call.refuse(f"x has the shape {list(x.shape)}: it needs rank 3 or more")
    return x / torch.sqrt(call.sum(x * x, (-3, -2, -1), True) + call.number("epsilon", 1e-6))


@operator("local_response_norm")
def local_response_norm(call: Call) -> Tensor:
    """x / (k + alpha / size * sum of squares)^beta, the sum over `size` neighbouring channels.

    Of an even size the additional neighbour is the one before, as in torch.  The channels are the second axis; of
    rank 3 the first one, as the values that Apple publishes for it have it (coremltools' test_normalization).
    """
    x, size = call.tensor("x"), call.integer("size")
    if x.dim() < 3 or size < 1:
        raise call.refuse(f"'size' is {size} and x has the shape {list(x.shape)}: it needs a window and rank 3 or more")
    axis = 0 if x.dim() == 3 else 1
    call.reserve((x.shape[axis] + size - 1, *x.shape[:axis], *x.shape[axis + 1 :]))
    squares = F.pad((x * x).movedim(axis, -1), (size // 2, (size - 1) // 2)).unfold(-1, size, 1)
    total = call.sum(squares, [x.dim()]).movedim(-1, axis)
    alpha, beta, k = call.number("alpha", 1e-4), call.number("beta", 0.75), call.number("k", 1.0)
    return x / (k + alpha / size * total) ** beta
