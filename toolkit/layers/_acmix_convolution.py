"""ACmix's convolution path: one dense convolution, or a grouped one with or without a 1 x 1, of x or of q, k and v."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.layers.acmix import ACmix


@dataclass(frozen=True)
class ConvolutionForm:
    """One of the equal forms of the convolution path.

    dense: one convolution of the input.  projected: the 1 x 1 convolutions before dep_conv as one.  shared: as
    published, from the q, k and v of the attention path, without weights of its own.  direct: from the same, their
    channels interleaved, by one grouped convolution into which the 1 x 1 is multiplied.
    merged: how many groups of dep_conv become one, which multiplies by zeros and fills the runtimes' kernels better.
    channels_last: interleave in [B, H, W, channels], which is how TFLite's convolutions store their maps.
    """

    kind: Literal["dense", "projected", "shared", "direct"]
    merged: int = 1
    channels_last: bool = False

    def __str__(self) -> str:
        if self.kind == "dense":
            return "dense convolution"
        details = f", {self.merged} groups in one" if self.merged > 1 else ""
        return f"{self.kind} convolution{details}" + (", channels last" if self.channels_last else "")


@dataclass(frozen=True)
class Projection:
    """One 1 x 1 convolution: weight [outputs, channels], bias [outputs]; float64."""

    weight: Tensor
    bias: Tensor


def projection(layer: nn.Conv2d) -> Projection:
    """The layer's weight and bias, zeros where it has none."""
    weight = layer.weight.detach().double()[:, :, 0, 0]
    return Projection(weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double())


def mixed_projection(layer: ACmix) -> Projection:
    """What dep_conv reads, as one 1 x 1 convolution of the layer's input."""
    parts = [projection(conv) for conv in (layer.conv1, layer.conv2, layer.conv3)]
    maps = 3 * layer.heads
    weight = torch.cat([p.weight for p in parts]).reshape(maps, layer.head_channels, -1)
    bias = torch.cat([p.bias for p in parts]).reshape(maps, layer.head_channels)
    mix = projection(layer.fc)
    return Projection(
        torch.einsum("tm,mic->itc", mix.weight, weight).flatten(0, 1),
        (torch.einsum("tm,mi->it", mix.weight, bias) + mix.bias).flatten(),
    )


class DenseConvolution(nn.Module):
    """The whole path as one convolution [outputs, channels, k, k], and a constant map where biases meet zero padding.

    scale: for each output channel, the rate and a batch norm after the layer.  shift: added to each output channel.
    """

    border: Tensor

    def __init__(self, layer: ACmix, inputs: Sequence[int], scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        mixed = mixed_projection(layer)
        kernel = layer.dep_conv.weight.detach().double() * scale.reshape(-1, 1, 1, 1)
        grouped = kernel.reshape(layer.head_channels, -1, *kernel.shape[1:])
        per_group = mixed.weight.reshape(layer.head_channels, kernel.shape[1], -1)
        dense = torch.einsum("ihtyx,itc->ihcyx", grouped, per_group).flatten(0, 1)
        constant = mixed.bias.reshape(1, -1, 1, 1).expand(1, -1, *inputs[2:])
        border = F.conv2d(constant, kernel, shift, layer.stride, layer.kernel_conv // 2, groups=layer.head_channels)
        dtype = layer.conv1.weight.dtype
        self.conv = frozen_convolution(dense, None, dtype, layer.stride)
        self.register_buffer("border", border.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) + self.border
        return y


class ProjectedConvolution(nn.Module):
    """One 1 x 1 convolution to k * k * depth channels, then the grouped one.  scale, shift: see DenseConvolution."""

    def __init__(self, layer: ACmix, merged: int, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        mixed = mixed_projection(layer)
        self.project = frozen_convolution(mixed.weight[:, :, None, None], mixed.bias, layer.conv1.weight.dtype)
        self.conv = merged_dep_conv(layer, merged, scale, shift)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.project(x))
        return y


class SharedConvolution(nn.Module):
    """The path from q (times q_factor), k and v.  scale, shift: see DenseConvolution."""

    def __init__(self, layer: ACmix, merged: int, q_factor: float, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        mix = projection(layer.fc)
        weight = mix.weight.clone()
        weight[:, : layer.heads] /= q_factor
        self.depth = layer.head_channels
        self.mix = frozen_convolution(weight[:, :, None, None], mix.bias, layer.conv1.weight.dtype)
        self.conv = merged_dep_conv(layer, merged, scale, shift)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, _, height, width = q.shape
        maps = [t.reshape(batch, -1, self.depth, height * width) for t in (q, k, v)]
        mixed = self.mix(torch.cat(maps, 1)).transpose(1, 2)
        y: Tensor = self.conv(mixed.reshape(batch, -1, height, width))
        return y


class DirectConvolution(nn.Module):
    """The path from q (times q_factor), k and v by one grouped convolution.  scale, shift: see DenseConvolution."""

    def __init__(self, layer: ACmix, form: ConvolutionForm, q_factor: float, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        mix = projection(layer.fc).weight.clone()
        mix[:, : layer.heads] /= q_factor
        kernel = torch.einsum("otyx,tm->omyx", layer.dep_conv.weight.detach().double(), mix)
        self.depth, self.channels_last = layer.head_channels, form.channels_last
        self.conv = merged_convolution(layer, kernel, form.merged, scale, shift)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, _, height, width = q.shape
        if self.channels_last:
            stacked = torch.cat([t.permute(0, 2, 3, 1) for t in (q, k, v)], 3)
            pixels = stacked.reshape(batch, height * width, -1, self.depth).transpose(2, 3)
            mixed = pixels.reshape(batch, height, width, -1).permute(0, 3, 1, 2)
        else:
            stacked = torch.cat([t.reshape(batch, -1, self.depth, height * width) for t in (q, k, v)], 1)
            mixed = stacked.transpose(1, 2).reshape(batch, -1, height, width)
        y: Tensor = self.conv(mixed)
        return y


def merged_dep_conv(layer: ACmix, merged: int, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """The layer's dep_conv with `merged` groups in one."""
    return merged_convolution(layer, layer.dep_conv.weight.detach().double(), merged, scale, shift)


def merged_convolution(layer: ACmix, kernel: Tensor, merged: int, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """dep_conv with other filters [outputs, inputs of a group, k, k], `merged` groups in one."""
    kernel = kernel * scale.reshape(-1, 1, 1, 1)
    groups = layer.head_channels // merged
    parts = kernel.reshape(groups, merged, -1, *kernel.shape[1:])
    larger = kernel.new_zeros(*parts.shape[:3], merged, *kernel.shape[1:])
    for i in range(merged):
        larger[:, i, :, i] = parts[:, i]
    weight = larger.reshape(len(kernel), -1, *kernel.shape[2:])
    return frozen_convolution(weight, shift, layer.conv1.weight.dtype, layer.stride, groups)


def frozen_convolution(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution with these filters [outputs, inputs of a group, k, k], zero-padded to keep the middle."""
    outputs, inputs, kernel, _ = weight.shape
    layer = nn.Conv2d(
        inputs * groups, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias is not None, device="meta"
    )
    # Contiguous: ExecuTorch takes other strides for channels last and refuses the filters.
    layer.weight = nn.Parameter(weight.to(dtype, copy=True).contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(dtype, copy=True), requires_grad=False)
    return layer
