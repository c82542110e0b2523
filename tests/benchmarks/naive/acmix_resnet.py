"""ACmix-ResNet as a stock user would port it: nn.Unfold for the windows, views and permutes for the heads.

The baseline that the exported network has to beat, and an independent reading of the paper to check it against.
It loads the same state dict and shares no code with toolkit/layers and toolkit/models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

HEADS = 4
WINDOW = 7
TAPS = 9


class NaiveACmix(nn.Module):
    """The block, its padding, windows and position grid made at every inference."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.depth, self.stride = width // HEADS, stride
        self.rate1, self.rate2 = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(width, width, 1) for _ in range(3))
        self.conv_p = nn.Conv2d(2, self.depth, 1)
        self.reflect = nn.ReflectionPad2d(WINDOW // 2)
        self.unfold = nn.Unfold(WINDOW, stride=stride)
        self.fc = nn.Conv2d(3 * HEADS, TAPS, 1, bias=False)
        self.dep_conv = nn.Conv2d(TAPS * self.depth, width, 3, stride, 1, groups=self.depth, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        q, k, v = self.conv1(x), self.conv2(x), self.conv3(x)
        rows, columns = height // self.stride, width // self.stride

        mesh = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        grid = torch.stack((mesh[1], mesh[0])).unsqueeze(0).to(x.dtype)
        position = self.conv_p(grid)
        heads = q.view(batch * HEADS, self.depth, height, width) * self.depth**-0.5
        if self.stride > 1:
            heads = heads[:, :, :: self.stride, :: self.stride]
        middle = position[:, :, :: self.stride, :: self.stride].unsqueeze(2)
        around = self.windows(position, 1, rows, columns)
        keys = self.windows(k, batch * HEADS, rows, columns)
        attention = (heads.unsqueeze(2) * (keys + middle - around)).sum(1).softmax(1)
        values = self.windows(v, batch * HEADS, rows, columns)
        attended = (attention.unsqueeze(1) * values).sum(2).view(batch, channels, rows, columns)

        stacked = [t.view(batch, HEADS, self.depth, height * width) for t in (q, k, v)]
        mixed = self.fc(torch.cat(stacked, 1))
        convolved = self.dep_conv(mixed.permute(0, 2, 1, 3).reshape(batch, -1, height, width))
        y: Tensor = self.rate1 * attended + self.rate2 * convolved
        return y

    def windows(self, x: Tensor, maps: int, rows: int, columns: int) -> Tensor:
        """The 49 pixels around each pixel: [maps, depth, 49, rows, columns]."""
        padded = self.reflect(x.view(maps, self.depth, *x.shape[2:]))
        patches: Tensor = self.unfold(padded).view(maps, self.depth, WINDOW**2, rows, columns)
        return patches


class NaiveBottleneck(nn.Module):
    """Three convolutions and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = NaiveACmix(width, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        changes = stride > 1 or channels != 4 * width
        shortcut = (nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
        self.downsample = nn.Sequential(*shortcut) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y)) + self.downsample(x)
        return torch.relu(y)


class NaiveACmixResNet(nn.Module):
    """Stem, four stages of `depths` blocks, classifier."""

    def __init__(self, depths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for number, depth in enumerate(depths, 1):
            width = 32 * 2**number
            strides = [1 if number == 1 else 2] + [1] * (depth - 1)
            blocks = []
            for stride in strides:
                blocks.append(NaiveBottleneck(channels, width, stride))
                channels = 4 * width
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        y: Tensor = self.fc(self.avgpool(x).flatten(1))
        return y


NAIVE: dict[str, Callable[[], nn.Module]] = {
    "acmix_resnet26": partial(NaiveACmixResNet, (1, 2, 4, 1)),
    "acmix_resnet38": partial(NaiveACmixResNet, (2, 3, 5, 2)),
    "acmix_resnet50": partial(NaiveACmixResNet, (3, 4, 6, 3)),
}
