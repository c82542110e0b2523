"""CondenseNetV2's grouped 3 x 3 convolution in exactly equal forms, chosen by the width of its groups.

Kernels of XNNPACK and ONNX Runtime make 16 output channels at a time; a group of 1 uses a sixteenth of them.
Groups can be widened in two ways: by zeros between neighbours, or by the pixels of a tile as more outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.models._condensenetv2_algebra import block_diagonal, convolution, pointwise

KERNEL_OUTPUTS = 16
"""Output channels that one call of a kernel makes, with 512-bit registers (4 to 8 on Arm)."""
WIDEST_APART = 2
"""The widest groups, in outputs, that are faster as depthwise convolutions.

XNNPACK, milliseconds on one core, grouped / dense / depthwise: width 1 at 112 x 112, 1.67 / 1.40 / 0.26;
width 4 at 14 x 14, 0.09 / 0.13 / 0.16; width 8 at 7 x 7, 0.04 / 0.13 / 0.14.
"""
WIDEST_TILED = 4
"""The widest groups, in outputs, that are faster in tiles on every runtime but ONNX Runtime.

Milliseconds on one core, apart or merged / in tiles: width 2 at 28 x 28, XNNPACK 0.05 / 0.08; width 4 at
14 x 14, TFLite 0.08 / 0.05, ExecuTorch 0.07 / 0.05, ONNX Runtime 0.07 / 0.07.
"""
TILE = 2


class DepthwiseSums(nn.Module):
    """A grouped convolution without bias as depthwise ones and the sums of their channels.

    Output i of every group has a depthwise convolution, whose channels a 1 x 1 convolution adds up by group.
    """

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        weight, groups, dtype = source.weight.double(), source.groups, source.weight.dtype
        outputs, inputs = weight.shape[0] // groups, weight.shape[1]
        kernels = weight.reshape(groups, outputs, inputs, 3, 3)
        places = torch.eye(weight.shape[0], dtype=weight.dtype).reshape(groups, outputs, -1)
        self.chosen_form = f"{outputs} x depthwise 3 x 3, then 1 x 1"
        self.taps = nn.ModuleList(
            convolution(kernels[:, i].reshape(-1, 1, 3, 3), None, dtype, groups=groups * inputs) for i in range(outputs)
        )
        self.sums = nn.ModuleList(
            pointwise(places[:, i].repeat_interleave(inputs, 0).t(), None, dtype) for i in range(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.sums[0](self.taps[0](x))
        for tap, add in zip(self.taps[1:], self.sums[1:], strict=True):
            total = total + add(tap(x))
        return total


class MergedGroups(nn.Module):
    """A grouped convolution without bias, with neighbouring groups made one by zeros between them."""

    def __init__(self, source: nn.Conv2d, merged: int) -> None:
        super().__init__()
        weight, groups = source.weight.double(), source.groups // merged
        parts = [_block_diagonals(part, merged) for part in weight.chunk(groups)]
        self.chosen_form = f"{groups} groups of 3 x 3" if groups > 1 else "dense 3 x 3"
        self.conv = convolution(torch.cat(parts), None, source.weight.dtype, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class TiledGroups(nn.Module):
    """A grouped convolution without bias that makes 2 x 2 pixels at a time, as outputs of their own, from 4 x 4.

    Of 16 inputs of a tile each pixel uses 9. Merging 4 groups instead, each pixel uses a quarter of its inputs.
    """

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        weight = source.weight.double()
        shifts = [(x, TILE - 1 - x, y, TILE - 1 - y) for y in range(TILE) for x in range(TILE)]
        # The order of channels that the pixel shuffle takes: the pixels of a channel side by side.
        tiles = torch.stack([F.pad(weight, shift) for shift in shifts], 1).flatten(0, 1)
        self.chosen_form = f"tiles of {TILE} x {TILE}"
        self.conv = convolution(tiles, None, source.weight.dtype, stride=TILE, padding=1, groups=source.groups)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        below, right = -height % TILE, -width % TILE
        if below == right == 0:
            return F.pixel_shuffle(self.conv(x), TILE)
        return F.pixel_shuffle(self.conv(F.pad(x, (0, right, 0, below))), TILE)[:, :, :height, :width]


def grouped_convolution(source: nn.Conv2d, target: str) -> DepthwiseSums | TiledGroups | MergedGroups:
    """The fastest form of a grouped 3 x 3 convolution."""
    width = source.out_channels // source.groups
    if width <= WIDEST_APART:
        return DepthwiseSums(source)
    if width <= WIDEST_TILED and target != "onnx":
        return TiledGroups(source)
    fits = [n for n in range(1, source.groups + 1) if source.groups % n == 0 and n * width <= KERNEL_OUTPUTS]
    return MergedGroups(source, max(fits, default=1))


def _block_diagonals(weight: Tensor, groups: int) -> Tensor:
    """[outputs, inputs of a group, 3, 3] with zeros between the groups: [outputs, all inputs, 3, 3]."""
    blocks = weight.reshape(groups, -1, weight.shape[1], 9)
    return torch.stack([block_diagonal(blocks[..., tap]) for tap in range(9)], 2).reshape(weight.shape[0], -1, 3, 3)
