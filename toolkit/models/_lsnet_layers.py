"""The layers of LSNet (arXiv 2503.23135), each as trained and, by fused(), as it is best exported.

Fused layers take one image, keep every tensor at rank 4 or less, and use no operator that one of the four
runtimes leaves outside its delegate. They are computed in float64 and stored in the source's dtype.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.models._folding import affine

HEADS = 4
KEY_CHANNELS = 16
KEYS = HEADS * KEY_CHANNELS


@runtime_checkable
class Fusable(Protocol):
    """A layer that knows an equal layer for inference."""

    def fused(self) -> nn.Module: ...


def convolution(
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> nn.Conv2d:
    """A convolution of these values, padded on both sides so that stride 1 keeps the size."""
    outputs, inputs, rows, columns = weight.shape
    padding = (dilation[0] * (rows - 1) // 2, dilation[1] * (columns - 1) // 2)
    # On the meta device no random numbers are drawn: the caller's seed goes on as if nothing was built.
    conv = nn.Conv2d(
        inputs * groups, outputs, (rows, columns), stride, padding, dilation, groups, bias is not None, device="meta"
    )
    conv.weight = nn.Parameter(weight.to(dtype))
    conv.bias = None if bias is None else nn.Parameter(bias.to(dtype))
    return conv


def pointwise(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> nn.Conv2d:
    """A 1 x 1 convolution by a matrix [outputs, inputs]."""
    return convolution(weight[:, :, None, None], bias, dtype)


class ConvBN(nn.Sequential):
    """A convolution without bias, padded so that stride 1 keeps the size, and its batch norm."""

    c: nn.Conv2d
    bn: nn.BatchNorm2d

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.add_module("c", conv)
        self.add_module("bn", nn.BatchNorm2d(outputs))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, in float64, of the one convolution that does the same."""
        scale, shift = affine(self.bn)
        return self.c.weight.double() * scale.view(-1, 1, 1, 1), shift

    def fused(self) -> nn.Conv2d:
        """The same as one convolution."""
        stride = self.c.stride[0]
        return convolution(*self.folded(), self.c.weight.dtype, (stride, stride), groups=self.c.groups)


class RepVGGDW(nn.Module):
    """Depthwise 3 x 3, depthwise 1 x 1 and the identity, summed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvBN(channels, channels, 3, groups=channels)
        self.conv1 = ConvBN(channels, channels, 1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) + self.conv1(x) + x
        return y

    def fused(self) -> nn.Conv2d:
        """The three branches as one depthwise 3 x 3 convolution."""
        weight, bias = self.conv.folded()
        point_weight, point_bias = self.conv1.folded()
        weight[:, :, 1:2, 1:2] += point_weight + 1
        return convolution(weight, bias + point_bias, self.conv.c.weight.dtype, groups=weight.shape[0])


class SqueezeExcite(nn.Module):
    """Gates each channel by what the channels' means say, through a quarter as many."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = max(8, (channels // 4 + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(channels, quarter, 1)
        self.fc2 = nn.Conv2d(quarter, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(means))))


def distance_indices(resolution: tuple[int, int]) -> Tensor:
    """|dy| * columns + |dx| between any two of the rows x columns positions, int64 [N, N]."""
    rows, columns = resolution
    position = torch.arange(rows * columns)
    y, x = position // columns, position % columns
    return (y[:, None] - y).abs() * columns + (x[:, None] - x).abs()


class Attention(nn.Module):
    """Attention between all positions, with one learned bias for each head and distance (as in LeViT).

    resolution: (rows, columns) of what comes in, [B, C, rows, columns].
    """

    attention_bias_idxs: Tensor

    def __init__(self, channels: int, resolution: tuple[int, int]) -> None:
        super().__init__()
        self.qkv = ConvBN(channels, 2 * KEYS + channels)
        self.proj = nn.Sequential(nn.ReLU(), ConvBN(channels, channels))
        self.dw = ConvBN(KEYS, KEYS, 3, groups=KEYS)
        self.attention_biases = nn.Parameter(torch.zeros(HEADS, math.prod(resolution)))
        self.register_buffer("attention_bias_idxs", distance_indices(resolution))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split((KEYS, KEYS, x.shape[1]), 1)
        batch, channels, height, width = x.shape
        q, k, v = (t.reshape(batch, HEADS, -1, height * width) for t in (self.dw(q), k, v))
        bias = self.attention_biases[:, self.attention_bias_idxs]
        attention = (q.transpose(2, 3) @ k * KEY_CHANNELS**-0.5 + bias).softmax(-1)
        y: Tensor = self.proj((v @ attention.transpose(2, 3)).reshape(batch, channels, height, width))
        return y

    def fused(self) -> FusedAttention:
        """The same for one image."""
        return FusedAttention(self)


class FusedAttention(nn.Module):
    """Attention of one image: heads as the batch, the bias a constant, the scale in q's convolution."""

    bias: Tensor

    def __init__(self, source: Attention) -> None:
        super().__init__()
        output = source.proj[1]
        assert isinstance(output, ConvBN)
        weight, bias = source.dw.folded()
        scale = KEY_CHANNELS**-0.5
        self.qkv = source.qkv.fused()
        self.dw = convolution(weight * scale, bias * scale, source.dw.c.weight.dtype, groups=KEYS)
        self.proj = nn.Sequential(nn.ReLU(), output.fused())
        self.register_buffer("bias", source.attention_biases[:, source.attention_bias_idxs].clone())

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        tokens = height * width
        qkv = self.qkv(x)
        # Slices: ExecuTorch leaves a split outside its delegate.
        q = self.dw(qkv[:, :KEYS]).reshape(HEADS, KEY_CHANNELS, tokens).transpose(1, 2)
        k = qkv[:, KEYS : 2 * KEYS].reshape(HEADS, KEY_CHANNELS, tokens)
        v = qkv[:, 2 * KEYS :].reshape(HEADS, channels // HEADS, tokens)
        mixed = torch.bmm(v, (torch.bmm(q, k) + self.bias).softmax(-1).transpose(1, 2))
        y: Tensor = self.proj(mixed.reshape(1, channels, height, width))
        return y
