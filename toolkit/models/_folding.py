"""Affine layers absorbed by the layer behind them, in place: what a graph rule for norms behind a layer cannot do."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def affine(bn: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm at evaluation, in float64."""
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    return scale, bn.bias.double() - bn.running_mean.double() * scale


def absorb_norm(norm: nn.BatchNorm2d, layer: nn.Conv2d | nn.Linear) -> None:
    """Make `layer` do what layer(norm(x)) did at evaluation. A convolution must be dense and unpadded.

    Zero padding is put around the normalised map, so a padded convolution would see the shift cut off at the border.
    """
    if isinstance(layer, nn.Conv2d):
        assert layer.groups == 1 and layer.padding == (0, 0)
    absorb_affine(*affine(norm), layer)


def absorb_affine(scale: Tensor, shift: Tensor, layer: nn.Conv2d | nn.Linear) -> None:
    """Make `layer` do what layer(scale * x + shift) did; both are one float64 value for each input channel."""
    weight = layer.weight.double()
    matrix = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    bias = matrix @ shift if layer.bias is None else layer.bias.double() + matrix @ shift
    assign(layer, weight * scale.view(1, -1, *[1] * (weight.dim() - 2)), bias)


def scale_outputs(layer: nn.Conv2d, scale: Tensor) -> None:
    """Make `layer` do what scale * layer(x) did; scale is one float64 value for each output channel."""
    bias = None if layer.bias is None else layer.bias.double() * scale
    assign(layer, layer.weight.double() * scale.view(-1, 1, 1, 1), bias)


def assign(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give the layer these values, in its own dtype."""
    dtype = layer.weight.dtype
    with torch.no_grad():
        layer.weight = nn.Parameter(weight.to(dtype))
        layer.bias = None if bias is None else nn.Parameter(bias.to(dtype))
