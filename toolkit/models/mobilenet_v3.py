"""MobileNetV3 large and small (Howard et al., ICCV 2019, arXiv 1905.02244), under timm's parameter names.

The flavour of timm's mobilenetv3_{large,small}_100, which GFNet's backbones share: symmetric padding,
batch norm eps 1e-5, and a head convolution with a bias that follows the pooling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.spec import Claims, ModelSpec, TensorSpec, imagenet_preprocess

Activation = Literal["relu", "hard_swish"]


@dataclass(frozen=True)
class Row:
    """One row of the paper's tables 1 and 2, before scaling. expansion 1: no expanding convolution."""

    kernel: int
    expansion: float
    channels: int
    squeezes: bool
    activation: Activation
    stride: int = 1


@dataclass(frozen=True)
class Layout:
    """One network before scaling: stages of rows, channels of the last map, width of the fixed head."""

    stages: tuple[tuple[Row, ...], ...]
    last_channels: int
    head_channels: int


STEM_CHANNELS = 16

# Near zero hard swish is x / 2 where ReLU passes 1 / sqrt(2) of the scale, and a fresh gate is 1 / 2.
HARD_SWISH_GAIN = math.sqrt(2)
GATE_GAIN = 2.0
# Without this ten residual sums would make the large network's random features grow a thousandfold.
RESIDUAL_GAIN = 0.5

LARGE = Layout(
    stages=(
        (Row(3, 1, 16, False, "relu"),),
        (Row(3, 4, 24, False, "relu", 2), Row(3, 3, 24, False, "relu")),
        (Row(5, 3, 40, True, "relu", 2), *[Row(5, 3, 40, True, "relu")] * 2),
        (
            Row(3, 6, 80, False, "hard_swish", 2),
            Row(3, 2.5, 80, False, "hard_swish"),
            *[Row(3, 2.3, 80, False, "hard_swish")] * 2,
        ),
        (*[Row(3, 6, 112, True, "hard_swish")] * 2,),
        (Row(5, 6, 160, True, "hard_swish", 2), *[Row(5, 6, 160, True, "hard_swish")] * 2),
    ),
    last_channels=960,
    head_channels=1280,
)
SMALL = Layout(
    stages=(
        (Row(3, 1, 16, True, "relu", 2),),
        (Row(3, 4.5, 24, False, "relu", 2), Row(3, 3.67, 24, False, "relu")),
        (Row(5, 4, 40, True, "hard_swish", 2), *[Row(5, 6, 40, True, "hard_swish")] * 2),
        (*[Row(5, 3, 48, True, "hard_swish")] * 2,),
        (Row(5, 6, 96, True, "hard_swish", 2), *[Row(5, 6, 96, True, "hard_swish")] * 2),
    ),
    last_channels=576,
    head_channels=1024,
)


def scaled_channels(channels: float, scale: float = 1.0) -> int:
    """channels * scale to the nearest multiple of 8, never more than a tenth below."""
    wanted = channels * scale
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def activated(x: Tensor, activation: Activation) -> Tensor:
    """ReLU or x * relu6(x + 3) / 6."""
    return F.relu(x) if activation == "relu" else F.hardswish(x)


def depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    """A depthwise convolution with symmetric padding and no bias."""
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)


def amplify(factor: float, *convolutions: nn.Conv2d) -> None:
    """Scale fresh weights in place. Kaiming's assume ReLU, and a random network would fade to nothing."""
    with torch.no_grad():
        for convolution in convolutions:
            convolution.weight.mul_(factor)


class SqueezeExcite(nn.Module):
    """Channels times a gate from their means: 1x1 to a quarter, ReLU, 1x1 back, relu6(x + 3) / 6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = scaled_channels(channels, 0.25)
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.conv_expand(gate))


def projection_gain(row: Row, adds_input: bool) -> float:
    """How much larger than kaiming a fresh projection starts."""
    if adds_input:
        return RESIDUAL_GAIN
    return GATE_GAIN if row.squeezes else 1.0


class DepthwiseSeparable(nn.Module):
    """The first block: depthwise, squeeze where the row says so, project 1x1 without activation."""

    def __init__(self, inputs: int, outputs: int, row: Row) -> None:
        super().__init__()
        self.conv_dw = depthwise(inputs, row.kernel, row.stride)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.se = SqueezeExcite(inputs) if row.squeezes else nn.Identity()
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.row = row
        self.adds_input = row.stride == 1 and inputs == outputs

    def amplify(self) -> None:
        """Make up for the gate and the sum, on fresh weights."""
        amplify(projection_gain(self.row, self.adds_input), self.conv_pw)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(activated(self.bn1(self.conv_dw(x)), self.row.activation))
        projected: Tensor = self.bn2(self.conv_pw(y))
        return x + projected if self.adds_input else projected


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, squeeze where the row says so, project 1x1 without activation."""

    def __init__(self, inputs: int, outputs: int, row: Row) -> None:
        super().__init__()
        hidden = scaled_channels(inputs, row.expansion)
        self.conv_pw = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv_dw = depthwise(hidden, row.kernel, row.stride)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.se = SqueezeExcite(hidden) if row.squeezes else nn.Identity()
        self.conv_pwl = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.row = row
        self.adds_input = row.stride == 1 and inputs == outputs

    def amplify(self) -> None:
        """Make up for the hard swish, the gate and the sum, on fresh weights."""
        if self.row.activation == "hard_swish":
            amplify(HARD_SWISH_GAIN, self.conv_pw, self.conv_dw)
        amplify(projection_gain(self.row, self.adds_input), self.conv_pwl)

    def forward(self, x: Tensor) -> Tensor:
        y = activated(self.bn1(self.conv_pw(x)), self.row.activation)
        y = self.se(activated(self.bn2(self.conv_dw(y)), self.row.activation))
        projected: Tensor = self.bn3(self.conv_pwl(y))
        return x + projected if self.adds_input else projected


class LastConvolution(nn.Module):
    """The 1x1 convolution that ends the map: convolution, batch norm, hard swish."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)

    def amplify(self) -> None:
        """Make up for the hard swish, on fresh weights."""
        amplify(HARD_SWISH_GAIN, self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(self.bn1(self.conv(x)))


class MobileNetV3(nn.Module):
    """Images [N, 3, H, W] to logits [N, classes]. width scales every channel count except the head's."""

    def __init__(self, layout: Layout, width: float = 1.0, classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        channels = scaled_channels(STEM_CHANNELS, width)
        self.conv_stem = nn.Conv2d(3, channels, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        stages: list[nn.Module] = []
        for rows in layout.stages:
            blocks: list[nn.Module] = []
            for row in rows:
                outputs = scaled_channels(row.channels, width)
                block = DepthwiseSeparable if row.expansion == 1 else InvertedResidual
                blocks.append(block(channels, outputs, row))
                channels = outputs
            stages.append(nn.Sequential(*blocks))
        last = scaled_channels(layout.last_channels, width)
        stages.append(nn.Sequential(LastConvolution(channels, last)))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(last, layout.head_channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(layout.head_channels, classes)
        self.initialise()

    def initialise(self) -> None:
        """Random weights that keep the activations' scale through `amplify`; small classifier."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, (DepthwiseSeparable, InvertedResidual, LastConvolution)):
                module.amplify()
        amplify(HARD_SWISH_GAIN, self.conv_stem, self.conv_head)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def feature_map(self, x: Tensor) -> Tensor:
        """The last map, [N, last channels, H / 32, W / 32]: what GFNet's policy looks at."""
        features: Tensor = self.blocks(F.hardswish(self.bn1(self.conv_stem(x))))
        return features

    def embedding(self, x: Tensor) -> Tensor:
        """The pooled feature vector behind the head convolution, [N, head channels]."""
        pooled = self.feature_map(x).mean((2, 3), keepdim=True)
        return F.hardswish(self.conv_head(pooled)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.embedding(x)))
        return logits


IMAGE = (TensorSpec("image", (1, 3, 224, 224), layout="nchw"),)
PAPER = "https://arxiv.org/abs/1905.02244"

MODELS: dict[str, ModelSpec] = {
    "mobilenet_v3_small_100": ModelSpec(
        name="mobilenet_v3_small_100",
        build=partial(MobileNetV3, SMALL),
        inputs=IMAGE,
        preprocess=imagenet_preprocess(224),
        paper=PAPER,
        claims=Claims(
            parameters=2_542_856,
            macs=56_000_000,
            top1_percent=67.4,
            macs_note="the paper's counter is not published; torch counts 1 % apart",
        ),
    ),
    "mobilenet_v3_large_100": ModelSpec(
        name="mobilenet_v3_large_100",
        build=partial(MobileNetV3, LARGE),
        inputs=IMAGE,
        preprocess=imagenet_preprocess(224),
        paper=PAPER,
        claims=Claims(
            parameters=5_483_032,
            macs=219_000_000,
            top1_percent=75.2,
            macs_note="the paper's counter is not published; torch counts 1 % apart",
        ),
    ),
    "mobilenet_v3_small_125": ModelSpec(
        name="mobilenet_v3_small_125",
        build=partial(MobileNetV3, SMALL, width=1.25),
        inputs=IMAGE,
        preprocess=imagenet_preprocess(224),
        paper=PAPER,
        claims=Claims(macs=91_000_000, top1_percent=70.4),
    ),
    "mobilenet_v3_large_125": ModelSpec(
        name="mobilenet_v3_large_125",
        build=partial(MobileNetV3, LARGE, width=1.25),
        inputs=IMAGE,
        preprocess=imagenet_preprocess(224),
        paper=PAPER,
        claims=Claims(
            parameters=7_551_976,
            macs=356_000_000,
            top1_percent=76.6,
            macs_note="the paper's counter is not published; torch counts 1 % apart",
        ),
    ),
}
