"""The layers of CondenseNetV2 (arXiv 2104.04382), in both published forms and under the authors' names.

As trained, a learned-group convolution is a dense 1 x 1 one under a mask. As released ("converted"), it is a
channel gather, a grouped convolution and a shuffle. Sparse feature reactivation (SFR) is the same backwards:
its grouped outputs are added to the channels that an index matrix names.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Form = Literal["converted", "trained"]
Activation = Literal["relu", "hardswish"]
BOTTLENECK = 4
"""Channels between the two convolutions of a layer, for each channel that it grows."""
REACTIVATION_SCALE = 0.5
"""Where SFR's batch norms start. The authors start them at zero: a random network would then ignore SFR."""


def activate(x: Tensor, activation: Activation) -> Tensor:
    """max(0, x), or x * relu6(x + 3) / 6."""
    return F.relu(x) if activation == "relu" else F.hardswish(x)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel a * n + b, of `groups` runs of n channels, to place b * groups + a."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


class NormActConv(nn.Module):
    """Batch norm, activation, convolution without bias that keeps the size."""

    def __init__(self, inputs: int, outputs: int, activation: Activation, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.activation = activation
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)

    def activated(self, x: Tensor) -> Tensor:
        """What the convolution is given."""
        return activate(self.norm(x), self.activation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.activated(x))
        return y


class MaskedConv(NormActConv):
    """A learned-group convolution or SFR as trained: weights that training pruned stay under a mask of 0 and 1."""

    _count: Tensor
    _stage: Tensor
    _mask: Tensor

    def __init__(self, inputs: int, outputs: int, activation: Activation) -> None:
        super().__init__(inputs, outputs, activation)
        self.register_buffer("_count", torch.zeros(1))
        self.register_buffer("_stage", torch.zeros(1))
        self.register_buffer("_mask", torch.ones(outputs, inputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.activated(x), self.conv.weight * self._mask)


class LearnedGroupConv(NormActConv):
    """A learned-group convolution as released: group j reads the channels that its run of `index` names.

    index: [inputs], int64. A channel may serve several groups, or none; the batch norm comes after the gather.
    """

    index: Tensor

    def __init__(self, inputs: int, outputs: int, groups: int, activation: Activation) -> None:
        super().__init__(inputs, outputs, activation, groups=groups)
        picks = [torch.randperm(inputs)[: inputs // groups].sort().values for _ in range(groups)]
        self.register_buffer("index", torch.cat(picks))

    def forward(self, x: Tensor) -> Tensor:
        return shuffled(super().forward(x.index_select(1, self.index)), self.conv.groups)


class Reactivation(NormActConv):
    """SFR as released: output r of the grouped convolution is added to the channel where row r of `index` is 1.

    index: [outputs, outputs], one 1 in each row. It is no permutation: a column may hold several, or none.
    The authors multiply by it, at 40 times the cost of the network it belongs to; we add by index.
    """

    index: Tensor

    def __init__(self, inputs: int, outputs: int, groups: int, activation: Activation) -> None:
        super().__init__(inputs, outputs, activation, groups=groups)
        picks = [torch.randperm(outputs)[: outputs // groups].sort().values for _ in range(groups)]
        self.register_buffer("index", F.one_hot(torch.cat(picks), outputs).float())

    @property
    def destination(self) -> Tensor:
        """The channel that each output is added to, [outputs]."""
        return self.index.argmax(1)

    def forward(self, x: Tensor) -> Tensor:
        active = self.activated(x)
        y = self.conv(shuffled(active, x.shape[1] // self.conv.groups))
        return torch.zeros_like(y).index_add(1, self.destination, y)


class SqueezeExcite(nn.Module):
    """Gates each channel by what the channels' means say."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = channels // reduction
        first, second = nn.Linear(channels, hidden, bias=False), nn.Linear(hidden, channels, bias=False)
        self.fc = nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        gates: Tensor = self.fc(x.mean((2, 3)))
        return x * gates[:, :, None, None]


class DenseLayer(nn.Module):
    """x of C channels becomes C + growth: x, reactivated by the new ones, and the new ones (section 3)."""

    def __init__(
        self, channels: int, growth: int, groups: int, activation: Activation, has_gate: bool, form: Form
    ) -> None:
        super().__init__()
        wide = BOTTLENECK * growth
        self.conv_1: LearnedGroupConv | MaskedConv
        self.sfr: Reactivation | MaskedConv
        trained = form == "trained"
        self.conv_1 = (
            MaskedConv(channels, wide, activation) if trained else LearnedGroupConv(channels, wide, groups, activation)
        )
        self.conv_2 = NormActConv(wide, growth, activation, 3, groups)
        self.sfr = (
            MaskedConv(growth, channels, activation) if trained else Reactivation(growth, channels, groups, activation)
        )
        if has_gate:
            self.se = SqueezeExcite(growth, 1)
        self.has_gate = has_gate

    def forward(self, x: Tensor) -> Tensor:
        new: Tensor = self.conv_2(self.conv_1(x))
        new = self.se(new) if self.has_gate else new
        return torch.cat((x + self.sfr(new), new), 1)
