"""Weight scales that a program brought along, handed to ai-edge-quantizer: it would find others by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch.fx import Graph as ProgramGraph

from acmix.toolkit.errors import UsageError
from acmix.toolkit.pairs import own_weights
from acmix.toolkit.quantize import LARGEST_WEIGHT
from acmix.toolkit.target import Array

ROUNDING = 1 + 1e-6
"""A weight of integers times scales lies so far beyond 127 scales at the most."""


def scales_of(weights: Array, axis: int, known: Sequence[tuple[Array, Array]]) -> Array | None:
    """The scales of a file's weight tensor, a channel along `axis` each, found by its very values; None without.

    known: weights as the program has them ([out, in, height, width] or [out, in]), with their scales.
    """
    channels = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    for values, scales in known:
        rows = (values.transpose(0, 2, 3, 1) if values.ndim == 4 else values).reshape(len(values), -1)
        if rows.shape == channels.shape and np.array_equal(rows, channels):
            return scales
    return None


def weight_ranges(
    tensors: dict[str, tuple[Array, int]], program: ProgramGraph, needed: Mapping[str, Mapping[str, Array]]
) -> dict[str, dict[str, Array]]:
    """Least and greatest value of each weight tensor, such that its scales are the program's own.

    tensors: a file's weights by name, with the axis of their channels.  needed: the ranges that biases need at least.
    Raises UsageError where the file has other weights than the program, and where a bias does not fit.
    """
    module = program.owning_module
    assert module is not None
    known = own_weights(module)
    found: dict[str, dict[str, Array]] = {}
    for name, (weights, axis) in tensors.items():
        scales = scales_of(weights, axis, known)
        if scales is None:
            raise _refusal(weights, "is changed by its converter")
        shape = [1] * weights.ndim
        shape[axis] = len(scales)
        largest = scales.astype(np.float64).reshape(shape) * LARGEST_WEIGHT
        if name in needed and np.any(needed[name]["max"] > largest * ROUNDING):
            raise _refusal(weights, "has a scale that is too small for its bias as an int32")
        found[name] = {"min": -largest, "max": largest}
    return found


def _refusal(weights: Array, reason: str) -> UsageError:
    size = "x".join(map(str, weights.shape))
    return UsageError(
        f"a weight of {size} {reason}: TFLite cannot keep the program's own scales.\n"
        "Leave tflite out of --target, or quantize the float network: --precision w8a8 --calibration photos/."
    )
