"""SimpleNet (Hasanpour et al., 2016, arXiv 1608.06037), the ImageNet networks, under the authors' names and keys."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.spec import Claims, ModelSpec, TensorSpec, imagenet_preprocess

POOL = 0
"""Stands for a 2 x 2 maximum pooling among the channel counts."""
BASE = (64, 128, 128, 128, 128, 128, POOL, 256, 256, 256, 512, POOL, 2048, 256, 256)
WIDE = (128, 192, 192, 192, 192, 192, POOL, 320, 320, 320, 640, POOL, 2560, 320, 320)
POINTWISE = (12, 13)
"""Positions of the 1 x 1 convolutions; the others are 3 x 3."""
STRIDED = {1: (0, 1, 2), 2: (0, 1, 3)}
"""Positions that halve the size, by the authors' stride mode: m1 is the faster one, m2 the more accurate."""


def features(channels: tuple[int, ...], scale: float, mode: int) -> nn.Sequential:
    """Convolution, norm and ReLU at each position, and an empty place where the authors' dropout was."""
    layers: list[nn.Module] = []
    inputs = 3
    for position, base in enumerate(channels):
        if base == POOL:
            layers += [nn.MaxPool2d(2), nn.Identity()]
            continue
        outputs = round(base * scale)
        kernel = 1 if position in POINTWISE else 3
        stride = 2 if position in STRIDED[mode] else 1
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.Identity()]
        inputs = outputs
    return nn.Sequential(*layers)


class SimpleNet(nn.Module):
    """Images [B, 3, H, W] to logits [B, classes], by 13 plain convolutions and the maximum of the last map.

    channels: of each position, POOL for a pooling.  scale: multiplies them.  mode: which positions halve the size.
    Both modes have the same parameters: a checkpoint fits either, and means only its own.
    """

    def __init__(self, channels: tuple[int, ...] = BASE, scale: float = 1, mode: int = 2, classes: int = 1000) -> None:
        super().__init__()
        self.features = features(channels, scale, mode)
        self.classifier = nn.Linear(round(channels[-1] * scale), classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, gain=nn.init.calculate_gain("relu"))

    def embedding(self, x: Tensor) -> Tensor:
        """The pooled feature vector, [B, channels of the last position]."""
        maps: Tensor = self.features(x)
        size = maps.shape[2:]
        # The stride is the default; Core ML's converter reads no default.
        return F.max_pool2d(maps, size, size).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.embedding(x))
        return logits


def _spec(name: str, build: partial[SimpleNet], claims: Claims) -> ModelSpec:
    return ModelSpec(
        name=name,
        build=build,
        inputs=(TensorSpec("image", (1, 3, 224, 224), layout="nchw"),),
        preprocess=imagenet_preprocess(224),
        paper="https://arxiv.org/abs/1608.06037",
        claims=claims,
    )


# Of the authors' tables: 1.51, 3.29, 5.75 and 9.51 M parameters. A checkpoint fits both modes of its width.
MODELS: dict[str, ModelSpec] = {
    "simplenetv1_small_m1_05": _spec(
        "simplenetv1_small_m1_05",
        partial(SimpleNet, scale=0.5, mode=1),
        claims=Claims(parameters=1_506_792, top1_percent=60.89, macs_note="none was published"),
    ),
    "simplenetv1_small_m2_05": _spec(
        "simplenetv1_small_m2_05",
        partial(SimpleNet, scale=0.5),
        claims=Claims(parameters=1_506_792, top1_percent=61.524, macs_note="none was published"),
    ),
    "simplenetv1_small_m1_075": _spec(
        "simplenetv1_small_m1_075",
        partial(SimpleNet, scale=0.75, mode=1),
        claims=Claims(parameters=3_287_272, top1_percent=67.764, macs_note="none was published"),
    ),
    "simplenetv1_small_m2_075": _spec(
        "simplenetv1_small_m2_075",
        partial(SimpleNet, scale=0.75),
        claims=Claims(parameters=3_287_272, top1_percent=68.15, macs_note="none was published"),
    ),
    "simplenetv1_5m_m1": _spec(
        "simplenetv1_5m_m1",
        partial(SimpleNet, mode=1),
        claims=Claims(parameters=5_752_808, top1_percent=71.37, macs_note="none was published"),
    ),
    "simplenetv1_5m_m2": _spec(
        "simplenetv1_5m_m2",
        partial(SimpleNet),
        claims=Claims(parameters=5_752_808, top1_percent=71.936, macs_note="none was published"),
    ),
    "simplenetv1_9m_m1": _spec(
        "simplenetv1_9m_m1",
        partial(SimpleNet, WIDE, mode=1),
        claims=Claims(parameters=9_508_968, top1_percent=73.376, macs_note="none was published"),
    ),
    "simplenetv1_9m_m2": _spec(
        "simplenetv1_9m_m2",
        partial(SimpleNet, WIDE),
        claims=Claims(parameters=9_508_968, top1_percent=74.17, macs_note="none was published"),
    ),
}
