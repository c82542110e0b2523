"""ResNet with ACmix in its bottlenecks (Pan et al., CVPR 2022, arXiv 2111.14556), under its authors' names."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.layers._acmix_convolution import frozen_convolution
from acmix.toolkit.layers._acmix_inference import inference_form, norm_affine
from acmix.toolkit.layers.acmix import ACmix
from acmix.toolkit.layers.inference import replace_layers
from acmix.toolkit.spec import Claims, ModelSpec, TensorSpec, imagenet_preprocess

EXPANSION = 4
WIDTHS = (64, 128, 256, 512)
JOINED_SHORTCUTS = ("tflite",)
"""Where one convolution of two maps beside each other is faster than two and a sum: measured, a tenth to a quarter."""


class Bottleneck(nn.Module):
    """Narrow, mix, widen, around which x is added: [B, channels, H, W] to [B, 4 * width, H / stride, W / stride]."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2: nn.Module = ACmix(width, stride=stride)
        self.bn2: nn.Module = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))

    def for_inference(self, target: str, inputs: Sequence[int]) -> nn.Module:
        """The same with ACmix and the batch norm after it in one, in the forms for `target`."""
        prepared = copy.deepcopy(self)
        assert isinstance(self.conv2, ACmix) and isinstance(self.bn2, nn.BatchNorm2d)
        narrow = (inputs[0], self.conv2.channels, *inputs[2:])
        prepared.conv2 = inference_form(self.conv2, target, narrow, self.bn2)
        prepared.bn2 = nn.Identity()
        return JoinedBottleneck(prepared) if self.downsample is not None and target in JOINED_SHORTCUTS else prepared


class JoinedBottleneck(nn.Module):
    """A bottleneck for inference whose convolution of the shortcut is part of the last one, without a sum."""

    chosen_form = "widening and shortcut in one convolution"

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        assert isinstance(block.downsample, nn.Sequential)
        shortcut, norm = block.downsample
        assert isinstance(shortcut, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        self.conv1, self.bn1, self.conv2, self.stride = block.conv1, block.bn1, block.conv2, shortcut.stride[0]
        with torch.no_grad():
            (scale3, shift3), (scale, shift) = norm_affine(block.bn3), norm_affine(norm)
            parts = [
                conv.weight.double() * factor.reshape(-1, 1, 1, 1)
                for conv, factor in ((block.conv3, scale3), (shortcut, scale))
            ]
            self.widen = frozen_convolution(torch.cat(parts, 1), shift3 + shift, shortcut.weight.dtype)
        self.train(block.training)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        # A pooling of single pixels picks every stride-th. XNNPACK leaves it to TFLite, and that is still 0.4 ms
        # faster at 56 x 56 than reshapes and slices inside the delegate, 0.7 ms than a convolution with a stride.
        kept = x if self.stride == 1 else F.max_pool2d(x, 1, self.stride)
        return F.relu(self.widen(torch.cat((y, kept), 1)))


class ACmixResNet(nn.Module):
    """Images [B, 3, H, W] to logits [B, classes].  depths: bottlenecks of the four stages, at 1/4 to 1/32."""

    def __init__(self, depths: Sequence[int], classes: int = 1000, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.pool: nn.Module = nn.MaxPool2d(3, 2, 1)
        channels = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = nn.Sequential()
            for index in range(depth):
                blocks.append(Bottleneck(channels, width, 2 if stage and not index else 1))
                channels = EXPANSION * width
            self.add_module(f"layer{stage + 1}", blocks)
        self.fc = nn.Linear(channels, classes)
        self.initialise()

    def initialise(self) -> None:
        """Random weights: kaiming normal for every convolution, as published, over ACmix's shifts too."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def for_inference(module: nn.Module, target: str, size: tuple[int, int] = (224, 224)) -> nn.Module:
    """An equal network for one image of (height, width), every ACmix in its form for `target`."""
    weight = next(module.parameters())
    image = torch.zeros(1, 3, *size, dtype=weight.dtype, device=weight.device)
    return replace_layers(module, target, (image,), computes=False)


def _at_size(spec: ModelSpec, size: tuple[int, int]) -> ModelSpec:
    return replace(spec, for_inference=partial(for_inference, size=size))


def _spec(name: str, depths: tuple[int, int, int, int], claims: Claims) -> ModelSpec:
    return ModelSpec(
        name=name,
        build=partial(ACmixResNet, depths),
        inputs=(TensorSpec("image", (1, 3, 224, 224), layout="nchw"),),
        preprocess=imagenet_preprocess(224),
        for_inference=for_inference,
        resized=_at_size,
        paper="https://arxiv.org/abs/2111.14556",
        claims=claims,
    )


# MACs are those of the authors' code, convolutions and classifier; their README gives 2.3, 2.9 and 3.6 G.
MODELS: dict[str, ModelSpec] = {
    "acmix_resnet26": _spec(
        "acmix_resnet26",
        (1, 2, 4, 1),
        claims=Claims(
            parameters=10_487_816,
            macs=2_160_000_000,
            top1_percent=76.1,
        ),
    ),
    "acmix_resnet38": _spec(
        "acmix_resnet38",
        (2, 3, 5, 2),
        claims=Claims(
            parameters=14_410_896,
            macs=2_760_000_000,
            top1_percent=77.4,
        ),
    ),
    "acmix_resnet50": _spec(
        "acmix_resnet50",
        (3, 4, 6, 3),
        claims=Claims(
            parameters=18_333_976,
            macs=3_370_000_000,
            top1_percent=77.8,
        ),
    ),
}
