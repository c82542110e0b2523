"""MobileNetV2 (Sandler et al., CVPR 2018, arXiv 1801.04381), under torchvision's parameter names."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor, nn

from acmix.toolkit.spec import Claims, ModelSpec, TensorSpec, imagenet_preprocess

# expansion, output channels, repeats, stride: table 2 of the paper
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280


def scaled_channels(channels: int, width: float) -> int:
    """channels * width to the nearest multiple of 8, never more than a tenth below."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6: positions 0, 1 and 2, as the checkpoints number them."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation; x is added where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [convolution(inputs, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.adds_input else y


class MobileNetV2(nn.Module):
    """Images [N, 3, H, W] to logits [N, classes].

    width scales every channel count, the head only upwards (as published).
    """

    def __init__(self, width: float = 1.0, classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        channels = scaled_channels(STEM_CHANNELS, width)
        head = scaled_channels(HEAD_CHANNELS, max(1.0, width))
        layers: list[nn.Module] = [convolution(3, channels, 3, 2)]
        for expansion, base, repeats, stride in STAGES:
            outputs = scaled_channels(base, width)
            for repeat in range(repeats):
                layers.append(InvertedResidual(channels, outputs, stride if repeat == 0 else 1, expansion))
                channels = outputs
        layers.append(convolution(channels, head, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(head, classes))
        self.initialise()

    def initialise(self) -> None:
        """Random weights that keep the activations' scale: kaiming normal, fan-out; small classifier."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def embedding(self, x: Tensor) -> Tensor:
        """The pooled feature vector, [N, 1280] at width 1."""
        features: Tensor = self.features(x)
        return features.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.embedding(x))
        return logits


MODELS: dict[str, ModelSpec] = {
    "mobilenet_v2": ModelSpec(
        name="mobilenet_v2",
        build=MobileNetV2,
        inputs=(TensorSpec("image", (1, 3, 224, 224), layout="nchw"),),
        # 71.88 % was published for bilinear resizing.
        preprocess=replace(imagenet_preprocess(224), interpolation="bilinear"),
        paper="https://arxiv.org/abs/1801.04381",
        claims=Claims(parameters=3_504_872, macs=300_000_000, top1_percent=71.88),
    ),
}
