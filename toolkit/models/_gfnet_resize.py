"""Bicubic resizing between aligned corners, as products with two constant matrices that every runtime has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.errors import UsageError

CUBIC = -0.75
"""The slope that torch's bicubic gives its kernel at a distance of one pixel."""


def cubic_kernel(distance: Tensor) -> Tensor:
    """Weight of a pixel at each distance (in pixels, 0 or more): two cubics that meet at 1 and end at 2."""
    d = distance
    near = ((CUBIC + 2) * d - (CUBIC + 3)) * d**2 + 1
    far = CUBIC * (((d - 5) * d + 8) * d - 4)
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def aligned_bicubic_matrix(source: int, target: int) -> Tensor:
    """R [target, source] in float64: R @ x resizes one axis as F.interpolate(mode="bicubic", align_corners=True).

    The first and the last pixel stay where they are; beyond the border the last pixel is repeated.
    """
    if source < 1 or target < 1:
        raise UsageError(f"cannot resize {source} pixels to {target}: both counts are 1 or more.")
    position = torch.arange(target, dtype=torch.float64) * (source - 1) / max(target - 1, 1)
    first = position.floor().long() - 1
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for offset in range(4):
        pixel = first + offset
        weight = cubic_kernel((position - pixel).abs())
        matrix.scatter_add_(1, pixel.clamp(0, source - 1).unsqueeze(1), weight.unsqueeze(1))
    return matrix


class AlignedBicubic(nn.Module):
    """Images [N, C, *source] to [N, C, *target]: columns by one constant matrix, then rows by the other.

    Y = R X C^T, which costs N C (H w W + h w H) multiply-accumulates from [H, W] to [h, w].
    Resizing glances is not learned: the matrices are buffers that no checkpoint holds.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        super().__init__()
        height, width = (aligned_bicubic_matrix(before, after) for before, after in zip(source, target, strict=True))
        # Kept in float64 too: a module that is asked for float64 must not inherit float32's rounding.
        self.exact = (height, width)
        self.register_buffer("rows", height.float(), persistent=False)
        self.register_buffer("columns", width.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.rows, self.columns
        if x.dtype == torch.float64:
            rows, columns = self.exact
        # As linear layers over the last axis: the delegates take those with a constant matrix.
        narrow = F.linear(x, columns).transpose(2, 3)
        return F.linear(narrow, rows).transpose(2, 3)
