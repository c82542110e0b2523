"""MSDNet, the multi-scale dense network (Huang et al., ICLR 2018, arXiv 1703.09844), with five exits, for ImageNet.

Keys are those of the authors' PyTorch checkpoints, which L2W-DEN (Han et al., ECCV 2022, arXiv 2209.08310) shares.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from acmix.toolkit.models._msdnet_layers import Classifier, FirstLayer, MultiScaleLayer, Transition
from acmix.toolkit.spec import Claims, ModelSpec, TensorSpec, imagenet_preprocess

CHANNELS = 32
GROWTH = 16
BASE = 4
EXITS = 5
SCALES = 4


def scales_after(layers: int, total: int) -> int:
    """Scales that are left behind layer number `layers` of `total`: the finest goes after each quarter."""
    return SCALES - max(0, layers - 1) // math.ceil(total / SCALES)


class MSDNet(nn.Module):
    """Images [N, 3, H, W] to five logits [N, classes], the cheapest first.

    step: layers between two exits; the first comes after four.
    blocks[i] goes from the maps of the exit before (the first: from the image) to a list of at most four maps, fine to
    coarse; classifier[i] reads the coarsest. A split at the exits needs nothing else.
    """

    def __init__(self, step: int, channels: int = CHANNELS, growth: int = GROWTH, classes: int = 1000) -> None:
        super().__init__()
        steps = (BASE, *[step] * (EXITS - 1))
        layers = self._layers(sum(steps), channels, growth)
        self.blocks = nn.ModuleList()
        self.classifier = nn.ModuleList()
        for position, count in enumerate(steps):
            modules, widths = zip(*itertools.islice(layers, count), strict=True)
            first = () if position else (FirstLayer(channels),)
            self.blocks.append(nn.Sequential(*first, *itertools.chain(*modules)))
            self.classifier.append(Classifier(widths[-1], classes))
        self.initialise()

    @staticmethod
    def _layers(total: int, width: int, growth: int) -> Iterator[tuple[tuple[nn.Module, ...], int]]:
        """Each layer, with the halving behind it where it drops a scale, and the width that it leaves."""
        for number in range(1, total + 1):
            before, after = scales_after(number - 1, total), scales_after(number, total)
            layer = MultiScaleLayer(width, growth, before, after)
            width += growth
            if before == after:
                yield (layer,), width
            else:
                yield (layer, Transition(width, width // 2, after)), width // 2
                width //= 2

    def initialise(self) -> None:
        """Random weights that keep the scale of activations: kaiming by fan-in, since widths differ ten to one."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        logits: list[Tensor] = []
        maps: Tensor | list[Tensor] = x
        for block, classifier in zip(self.blocks, self.classifier, strict=True):
            maps = block(maps)
            logits.append(classifier(maps))
        return tuple(logits)


def _spec(name: str, step: int, claims: Claims) -> ModelSpec:
    return ModelSpec(
        name=name,
        build=partial(MSDNet, step),
        inputs=(TensorSpec("image", (1, 3, 224, 224), layout="nchw"),),
        outputs=tuple(f"exit_{i + 1}" for i in range(EXITS)),
        preprocess=imagenet_preprocess(224),
        paper="https://arxiv.org/abs/1703.09844",
        claims=claims,
    )


# Accuracies are those of the last exit in L2W-DEN's released checkpoints (300 epochs with label smoothing; none is
# stated for step 6). For step 4 the authors count 339.90, 685.46, 1008.16, 1254.47 and 1360.53 M up to each exit, with
# ReLUs and pooling: 1360 M to three digits is also what convolutions and linear layers alone need. The other two
# counts, and all parameters, are what the published configuration gives.
MODELS: dict[str, ModelSpec] = {
    "msdnet_step4": _spec(
        "msdnet_step4", 4, claims=Claims(parameters=23_958_440, macs=1_360_000_000, top1_percent=75.0)
    ),
    "msdnet_step6": _spec("msdnet_step6", 6, claims=Claims(parameters=38_678_920, macs=2_188_000_000)),
    "msdnet_step7": _spec(
        "msdnet_step7", 7, claims=Claims(parameters=47_544_824, macs=2_677_000_000, top1_percent=76.8)
    ),
}
