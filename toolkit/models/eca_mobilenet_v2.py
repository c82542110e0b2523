"""MobileNetV2 with efficient channel attention (Wang et al., CVPR 2020, arXiv 1910.03151), under the authors' names."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from acmix.toolkit.models.mobilenet_v2 import InvertedResidual, MobileNetV2
from acmix.toolkit.spec import Claims, ModelSpec, TensorSpec, imagenet_preprocess

WIDE_CHANNELS = 96
"""Blocks of more output channels than these look at three neighbouring channels, the others at one (file "k13")."""


class ChannelAttention(nn.Module):
    """Gates each channel by a convolution over the means of neighbouring channels (section 3.2)."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.conv(x.mean((2, 3))[:, None]))
        return x * gate.view(*x.shape[:2], 1, 1)


class FusedChannelAttention(nn.Module):
    """ChannelAttention with the channels as the rows of an image of one channel.

    With channels innermost, as the mobile runtimes keep them, the reshapes move nothing.
    """

    def __init__(self, source: ChannelAttention) -> None:
        super().__init__()
        weight = source.conv.weight
        rows = weight.shape[2]
        self.conv = nn.Conv2d(1, 1, (rows, 1), padding=(rows // 2, 0), bias=False, device="meta")
        self.conv.weight = nn.Parameter(weight[..., None].detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        rows = x.mean((2, 3), keepdim=True).reshape(batch, 1, channels, 1)
        return x * torch.sigmoid(self.conv(rows)).reshape(batch, channels, 1, 1)


class ECAMobileNetV2(MobileNetV2):
    """Images [N, 3, H, W] to logits [N, classes]; the attention comes last in every block, before x is added."""

    def __init__(self, classes: int = 1000, dropout: float = 0.25) -> None:
        super().__init__(classes=classes, dropout=dropout)
        for block in self.features:
            if isinstance(block, InvertedResidual):
                norm = block.conv[-1]
                assert isinstance(norm, nn.BatchNorm2d)
                block.conv.append(ChannelAttention(3 if norm.num_features > WIDE_CHANNELS else 1))


def for_inference(module: nn.Module, _target: str) -> nn.Module:
    """An equal network, on every target, without convolutions of rank 3; `module` stays as it is."""
    assert isinstance(module, ECAMobileNetV2)
    fused = copy.deepcopy(module)
    for block in fused.features:
        if isinstance(block, InvertedResidual):
            attention = block.conv[-1]
            assert isinstance(attention, ChannelAttention)
            block.conv[-1] = FusedChannelAttention(attention)
    return fused.requires_grad_(False)


MODELS: dict[str, ModelSpec] = {
    "eca_mobilenet_v2": ModelSpec(
        name="eca_mobilenet_v2",
        build=ECAMobileNetV2,
        inputs=(TensorSpec("image", (1, 3, 224, 224), layout="nchw"),),
        preprocess=imagenet_preprocess(224),
        for_inference=for_inference,
        paper="https://arxiv.org/abs/1910.03151",
        # Published as 3.34 M and 319.9 M, both in units of 2^20.
        claims=Claims(
            parameters=3_504_897,
            macs=319_900_000,
            top1_percent=72.56,
            macs_note="the authors' tool counts norms and activations too, in units of 2^20; 300.8 M without",
        ),
    ),
}
