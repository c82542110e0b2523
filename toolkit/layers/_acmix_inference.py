"""ACmix for inference: both paths in the forms chosen for a target, with a batch norm behind the layer folded in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.layers._acmix_attention import AttentionForm, TiledAttention
from acmix.toolkit.layers._acmix_choice import choose_attention, choose_convolution
from acmix.toolkit.layers._acmix_convolution import (
    ConvolutionForm,
    DenseConvolution,
    DirectConvolution,
    ProjectedConvolution,
    SharedConvolution,
    frozen_convolution,
    projection,
)
from acmix.toolkit.layers.acmix import ACmix, check_map


class InferenceACmix(nn.Module):
    """Two paths that share the input: attention from projections of its own, and a convolution."""

    def __init__(
        self,
        layer: ACmix,
        inputs: Sequence[int],
        forms: tuple[AttentionForm, ConvolutionForm],
        norm: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__()
        self.chosen_form = f"{forms[0]}; {forms[1]}"
        scale, shift = norm
        rate1, rate2 = (rate.detach().double() for rate in (layer.rate1, layer.rate2))
        k, v = projection(layer.conv2), projection(layer.conv3)
        dtype = layer.conv1.weight.dtype
        self.q = scaled_queries(layer, layer.stride)
        self.k = frozen_convolution(k.weight[:, :, None, None], None, dtype)
        self.v = frozen_convolution((v.weight * (rate1 * scale)[:, None])[:, :, None, None], None, dtype)
        self.attention = TiledAttention(layer, inputs, forms[0])
        # The weights of a window sum to 1: the bias of v passes the attention unchanged.
        shift = shift + rate1 * scale * v.bias
        self.convolution: nn.Module
        if forms[1].kind == "dense":
            self.convolution = DenseConvolution(layer, inputs, rate2 * scale, shift)
        else:
            self.convolution = ProjectedConvolution(layer, forms[1].merged, rate2 * scale, shift)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(self.q(x), self.k(x), self.v(x)) + self.convolution(x)
        return y


class SharingACmix(nn.Module):
    """Two paths that share q, k and v, as published: the fewest weights and multiplications."""

    scale: Tensor

    def __init__(
        self,
        layer: ACmix,
        inputs: Sequence[int],
        forms: tuple[AttentionForm, ConvolutionForm],
        norm: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__()
        self.chosen_form = f"{forms[0]}; {forms[1]}"
        self.stride = layer.stride
        scale, shift = norm
        dtype = layer.conv1.weight.dtype
        self.q = scaled_queries(layer)
        self.k, self.v = (frozen_projection(conv) for conv in (layer.conv2, layer.conv3))
        self.attention = TiledAttention(layer, inputs, forms[0])
        factor = layer.head_channels**-0.5
        rated = layer.rate2.detach().double() * scale
        self.convolution: nn.Module
        if forms[1].kind == "direct":
            self.convolution = DirectConvolution(layer, forms[1], factor, rated, shift)
        else:
            self.convolution = SharedConvolution(layer, forms[1].merged, factor, rated, shift)
        self.register_buffer("scale", (layer.rate1.detach().double() * scale).reshape(1, -1, 1, 1).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        # A pooling of single pixels picks every stride-th: faster than a slice with a step where XNNPACK has neither.
        strided = q if self.stride == 1 else F.max_pool2d(q, 1, self.stride)
        y: Tensor = self.attention(strided, k, v) * self.scale + self.convolution(q, k, v)
        return y


def scaled_queries(layer: ACmix, stride: int = 1) -> nn.Conv2d:
    """The projection of q times depth^-0.5, at every `stride`-th pixel."""
    q, factor = projection(layer.conv1), layer.head_channels**-0.5
    return frozen_convolution(q.weight[:, :, None, None] * factor, q.bias * factor, layer.conv1.weight.dtype, stride)


def frozen_projection(layer: nn.Conv2d) -> nn.Conv2d:
    """The same 1 x 1 convolution, untied from the layer."""
    source = projection(layer)
    return frozen_convolution(source.weight[:, :, None, None], source.bias, layer.weight.dtype)


def norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and summand that the norm applies to each channel, in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale


def build_form(
    layer: ACmix,
    inputs: Sequence[int],
    forms: tuple[AttentionForm, ConvolutionForm],
    norm: nn.BatchNorm2d | None = None,
) -> nn.Module:
    """The layer, and the batch norm after it, in these two forms."""
    ones = torch.ones(layer.outputs, dtype=torch.float64)
    affine = (ones, 0 * ones) if norm is None else norm_affine(norm)
    kind = SharingACmix if forms[1].kind in ("shared", "direct") else InferenceACmix
    return kind(layer, inputs, forms, affine).train(layer.training)


def inference_form(layer: ACmix, target: str, inputs: Sequence[int], norm: nn.BatchNorm2d | None = None) -> nn.Module:
    """The layer, and the batch norm after it, in the forms that cost least on `target`.

    inputs: the shape [B, channels, H, W] that the layer gets.  Raises UsageError where check_map does.
    """
    check_map(layer, inputs[2], inputs[3])
    with torch.no_grad():
        return build_form(
            layer, inputs, (choose_attention(layer, target, inputs), choose_convolution(layer, target, inputs)), norm
        )
