"""CondenseNetV2 (Yang et al., CVPR 2021, arXiv 2104.04382), under its authors' parameter names."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.models._condensenetv2_checkpoint import released_form
from acmix.toolkit.models._condensenetv2_fused import FusedCondenseNetV2
from acmix.toolkit.models._condensenetv2_layers import (
    REACTIVATION_SCALE,
    Activation,
    DenseLayer,
    Form,
    SqueezeExcite,
)
from acmix.toolkit.spec import Claims, Interpolation, ModelSpec, TensorSpec, imagenet_preprocess

HARDSWISH_FROM, GATES_FROM = 2, 3
"""The first blocks, counted from 0, whose activation is hard-swish, and whose layers have gates."""
LAST_REDUCTION = 16


@dataclass(frozen=True)
class Variant:
    """stages, growth: layers of each block, and the channels that each of them adds.

    groups: of every grouped convolution.  hidden: channels of the classifier's hidden layer.
    """

    stages: tuple[int, ...]
    growth: tuple[int, ...]
    groups: int
    hidden: int


A = Variant((1, 1, 4, 6, 8), (8, 8, 16, 32, 64), 8, 828)
B = Variant((2, 4, 6, 8, 6), (6, 12, 24, 48, 96), 6, 1024)
C = Variant((4, 6, 8, 10, 8), (8, 16, 32, 64, 128), 8, 1024)


class CondenseNetV2(nn.Module):
    """Images [B, 3, H, W] to logits [B, classes].

    Blocks work at 1/2, 1/4 ... 1/32 of the input. form: that of the checkpoints it loads. The released one is
    the network that is counted and exported; the one of training can also hold masks that are not yet sparse.
    """

    def __init__(self, variant: Variant, form: Form = "converted", classes: int = 1000) -> None:
        super().__init__()
        channels = 2 * variant.growth[0]
        self.features = nn.Sequential()
        self.features.add_module("init_conv", nn.Conv2d(3, channels, 3, 2, 1, bias=False))
        for number, (depth, growth) in enumerate(zip(variant.stages, variant.growth, strict=True)):
            activation: Activation = "hardswish" if number >= HARDSWISH_FROM else "relu"
            layers: OrderedDict[str, nn.Module] = OrderedDict(
                (
                    f"denselayer_{i + 1}",
                    DenseLayer(channels + i * growth, growth, variant.groups, activation, number >= GATES_FROM, form),
                )
                for i in range(depth)
            )
            self.features.add_module(f"denseblock_{number + 1}", nn.Sequential(layers))
            channels += depth * growth
            if number < len(variant.stages) - 1:
                self.features.add_module(f"pool_{number + 1}", nn.AvgPool2d(2))
        self.features.add_module("norm_last", nn.BatchNorm2d(channels))
        self.features.add_module("relu_last", nn.ReLU())
        # The published AvgPool2d(7), for every size of input.
        self.features.add_module("pool_last", nn.AdaptiveAvgPool2d(1))
        self.features.add_module("se_last", SqueezeExcite(channels, LAST_REDUCTION))
        self.fc = nn.Linear(channels, variant.hidden)
        self.classifier = nn.Linear(variant.hidden, classes)
        self.initialise()

    def initialise(self) -> None:
        """Random weights: kaiming normal for convolutions, SFR's batch norms at REACTIVATION_SCALE."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d) and name.endswith(".sfr.norm"):
                nn.init.constant_(module.weight, REACTIVATION_SCALE)

    @property
    def blocks(self) -> list[list[DenseLayer]]:
        """The dense layers, block by block."""
        found = (module for name, module in self.features.named_children() if name.startswith("denseblock"))
        return [[layer for layer in block.children() if isinstance(layer, DenseLayer)] for block in found]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(F.hardswish(self.fc(self.features(x).flatten(1))))
        return y


def for_inference(module: nn.Module, target: str) -> nn.Module:
    """An equal FusedCondenseNetV2 of a CondenseNetV2, which stays as it is."""
    assert isinstance(module, CondenseNetV2)
    with torch.no_grad():
        return FusedCondenseNetV2(module, target).train(module.training).requires_grad_(False)


def _spec(name: str, variant: Variant, claims: Claims, interpolation: Interpolation = "bicubic") -> ModelSpec:
    return ModelSpec(
        name=name,
        build=partial(CondenseNetV2, variant),
        inputs=(TensorSpec("image", (1, 3, 224, 224), layout="nchw"),),
        preprocess=replace(imagenet_preprocess(224), interpolation=interpolation),
        for_inference=for_inference,
        adapt_checkpoint=partial(released_form, groups=variant.groups),
        paper="https://arxiv.org/abs/2104.04382",
        claims=claims,
    )


# MACs of convolutions and linear layers; the 46, 146 and 309 M of the paper count pooling and activations too.
MODELS: dict[str, ModelSpec] = {
    "condensenetv2_a": _spec(
        "condensenetv2_a",
        A,
        claims=Claims(parameters=2_038_444, macs=43_100_000, top1_percent=64.4),
    ),
    "condensenetv2_b": _spec(
        "condensenetv2_b",
        B,
        claims=Claims(parameters=3_592_662, macs=140_500_000, top1_percent=71.9),
    ),
    "condensenetv2_c": _spec(
        "condensenetv2_c",
        C,
        claims=Claims(parameters=6_177_512, macs=295_800_000, top1_percent=75.9),
        interpolation="bilinear",
    ),
}
