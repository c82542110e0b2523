"""MIL's operators, by area; importing this package registers them all."""

from __future__ import annotations

from acmix.targets.mil.operators import (
    activation,
    compression,
    control,
    convolution,
    creation,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    rearrangement,
    recurrent,
    reduction,
    resizing,
    sampling,
    selection,
    slicing,
)

__all__ = [
    "activation",
    "compression",
    "control",
    "convolution",
    "creation",
    "elementwise",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "rearrangement",
    "recurrent",
    "reduction",
    "resizing",
    "sampling",
    "selection",
    "slicing",
]
