"""CondenseNetV2's grouped 3 x 3 convolution in exactly equal forms, chosen by the width of its groups.

Kernels of XNNPACK and ONNX Runtime make 16 output channels at a time; a group of 1 uses a sixteenth of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acmix.toolkit.models._condensenetv2_algebra import block_diagonal, convolution, pointwise

KERNEL_OUTPUTS = 16
"""Output channels that one call of a kernel makes, with 512-bit registers (4 to 8 on Arm)."""
WIDEST_APART = 2
"""The widest groups, in outputs, that are faster as depthwise convolutions.

XNNPACK, milliseconds on one core, grouped / dense / depthwise: width 1 at 112 x 112, 1.67 / 1.40 / 0.26;
width 4 at 14 x 14, 0.09 / 0.13 / 0.16; width 8 at 7 x 7, 0.04 / 0.13 / 0.14.
"""


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


def grouped_convolution(source: nn.Conv2d) -> DepthwiseSums | MergedGroups:
    """The fastest form of a grouped 3 x 3 convolution."""
    width = source.out_channels // source.groups
    if width <= WIDEST_APART:
        return DepthwiseSums(source)
    fits = [n for n in range(1, source.groups + 1) if source.groups % n == 0 and n * width <= KERNEL_OUTPUTS]
    return MergedGroups(source, max(fits, default=1))


def _block_diagonals(weight: Tensor, groups: int) -> Tensor:
    """[outputs, inputs of a group, 3, 3] with zeros between the groups: [outputs, all inputs, 3, 3]."""
    blocks = weight.reshape(groups, -1, weight.shape[1], 9)
    return torch.stack([block_diagonal(blocks[..., tap]) for tap in range(9)], 2).reshape(weight.shape[0], -1, 3, 3)
