"""MSDNet's layers: lists of feature maps, fine to coarse, each half as large as the one before it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

FACTORS = (1, 2, 4, 4)
"""How much wider each scale is than the finest, and how much wider its bottlenecks are than their output."""


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """Convolution, batch norm, ReLU."""
    padding = kernel // 2
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    return layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


class Basic(nn.Module):
    """Convolution, batch norm and ReLU under the name `net`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(*convolution(inputs, outputs, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


class Bottleneck(nn.Module):
    """1x1 to at most `factor` times the outputs, then 3x3, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, factor: int, stride: int = 1) -> None:
        super().__init__()
        inner = min(inputs, factor * outputs)
        self.net = nn.Sequential(*convolution(inputs, inner, 1), *convolution(inner, outputs, 3, stride))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


class Grow(nn.Module):
    """The finest map [N, C, H, W] of a layer, with `outputs` new channels computed from itself."""

    def __init__(self, inputs: int, outputs: int, factor: int) -> None:
        super().__init__()
        self.conv_normal = Bottleneck(inputs, outputs, factor)

    def forward(self, maps: list[Tensor]) -> Tensor:
        (own,) = maps
        return torch.cat((own, self.conv_normal(own)), 1)


class GrowFromFiner(nn.Module):
    """A map with new channels, half of them from the finer map and half from itself.

    inputs, factors: of the finer map, of the map.
    """

    def __init__(self, inputs: tuple[int, int], outputs: int, factors: tuple[int, int]) -> None:
        super().__init__()
        self.conv_down = Bottleneck(inputs[0], outputs // 2, factors[0], stride=2)
        self.conv_normal = Bottleneck(inputs[1], outputs // 2, factors[1])

    def forward(self, maps: list[Tensor]) -> Tensor:
        finer, own = maps
        return torch.cat((own, self.conv_down(finer), self.conv_normal(own)), 1)


class FirstLayer(nn.Module):
    """Images [N, 3, H, W] to four maps: at a quarter of the size, then half of that and so on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels * factor for factor in FACTORS]
        # This one convolution keeps a bias before its batch norm, as published.
        stem = nn.Conv2d(3, widths[0], 7, 2, 3)
        finest = nn.Sequential(stem, nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        coarser = (Basic(inputs, outputs, 3, 2) for inputs, outputs in itertools.pairwise(widths))
        self.layers = nn.ModuleList([finest, *coarser])

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


class MultiScaleLayer(nn.Module):
    """Grow the coarsest `after` of `before` maps; one that is dropped still feeds the next.

    width, growth: channels of the finest scale before the layer, and how many it adds; others by FACTORS.
    """

    def __init__(self, width: int, growth: int, before: int, after: int) -> None:
        super().__init__()
        self.drops = before > after
        layers: list[nn.Module] = []
        for scale in range(len(FACTORS) - after, len(FACTORS)):
            own = FACTORS[scale]
            if not layers and not self.drops:
                layers.append(Grow(width * own, growth * own, own))
            else:
                finer = FACTORS[scale - 1]
                layers.append(GrowFromFiner((width * finer, width * own), growth * own, (finer, own)))
        self.layers = nn.ModuleList(layers)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        pairs = [maps[i : i + 2] for i in range(len(maps) - 1)]
        inputs = pairs if self.drops else [maps[:1], *pairs]
        return [layer(chosen) for layer, chosen in zip(self.layers, inputs, strict=True)]


class Transition(nn.Module):
    """A 1x1 convolution for each of the `scales` coarsest maps, from width to a smaller width."""

    def __init__(self, width: int, reduced: int, scales: int) -> None:
        super().__init__()
        self.m = nn.ModuleList([Basic(width * own, reduced * own, 1) for own in FACTORS[-scales:]])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self.m, maps, strict=True)]


class Classifier(nn.Module):
    """The coarsest of a list of maps to logits [N, classes]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        channels = width * FACTORS[-1]
        self.m = nn.Sequential(Basic(channels, channels, 3, 2), Basic(channels, channels, 3, 2))
        self.linear = nn.Linear(channels, classes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        # Published as a 2x2 average, which at 224 px is all of the map; the mean serves every size.
        logits: Tensor = self.linear(self.m(maps[-1]).mean((2, 3), keepdim=True).flatten(1))
        return logits
