"""The convolution path of Swin-ACmix for inference, as fewer and wider layers (arXiv 2111.14556, section 4.2)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.models._acmix_swin_layers import TAPS, Size, WindowACmix

ConvForm = Literal["dense 3 x 3", "1 x 1 and grouped 3 x 3"]


def linear(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> nn.Linear:
    """A linear layer of these values."""
    # On the meta device no random numbers are drawn: the caller's seed goes on as if nothing was built.
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.to(dtype)), nn.Parameter(bias.to(dtype))
    return layer


def convolution(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, groups: int = 1) -> nn.Conv2d:
    """A convolution of these values that keeps the size of its map."""
    outputs, inputs, kernel, _ = weight.shape
    conv = nn.Conv2d(
        inputs * groups, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias is not None, device="meta"
    )
    conv.weight = nn.Parameter(weight.to(dtype))
    conv.bias = None if bias is None else nn.Parameter(bias.to(dtype))
    return conv


def affine(layer: nn.Linear, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of the layer with the gain and shift of the norm before it."""
    weight = layer.weight.double()
    bias = weight @ norm.bias.double()
    return weight * norm.weight.double(), bias if layer.bias is None else bias + layer.bias.double()


def mixing(source: WindowACmix, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """`qkv` and `fc` as one linear layer, in float64: C normalised channels to d groups of nine."""
    assert source.fc.bias is not None
    weight, bias = affine(source.qkv, norm)
    mix = source.fc.weight.double().flatten(1)
    depth = weight.shape[1] // source.heads
    weight = torch.einsum("jm,mic->ijc", mix, weight.reshape(-1, depth, weight.shape[1]))
    bias = torch.einsum("jm,mi->ij", mix, bias.reshape(-1, depth)) + source.fc.bias.double()
    return weight.flatten(0, 1), bias.flatten()


class ConvolutionPath(nn.Module):
    """The convolution path with the norm's gain and rate2: a normalised map [H, W, C] to the same.

    "dense 3 x 3" multiplies more, in one layer of a kind that every runtime is tuned for: it wins with few heads.
    """

    border: Tensor | None

    def __init__(self, source: WindowACmix, norm: nn.LayerNorm, size: Size, form: ConvForm) -> None:
        super().__init__()
        self.chosen_form = form
        dtype, groups = source.qkv.weight.dtype, source.dep_conv.groups
        weight, bias = mixing(source, norm)
        kernel = source.dep_conv.weight.double() * source.rate2.double()
        if form == "dense 3 x 3":
            # The padding is zero after the biases: what they add depends on how near the border is.
            constant = bias.view(1, -1, 1, 1).expand(1, -1, *size)
            border = F.conv2d(constant, kernel, padding=1, groups=groups).to(dtype)
            parts = kernel.reshape(groups, -1, *kernel.shape[1:])
            dense = torch.einsum("ihjab,ijc->ihcab", parts, weight.reshape(groups, TAPS, -1)).flatten(0, 1)
            self.layers = nn.Sequential(convolution(dense, None, dtype))
            self.register_buffer("border", border)
        else:
            grouped = convolution(kernel, None, dtype, groups)
            self.layers = nn.Sequential(convolution(weight[:, :, None, None], bias, dtype), grouped)
            self.border = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x.reshape(1, *x.shape).permute(0, 3, 1, 2))
        if self.border is not None:
            y = y + self.border
        return y.permute(0, 2, 3, 1).reshape(x.shape)
