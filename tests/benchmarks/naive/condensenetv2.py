"""CondenseNetV2 as a stock user would port it: the released form, gathers, shuffles and a matrix of indices.

The baseline that the exported network has to beat, and an independent reading of the published facts to check
it against. It loads the same state dict and shares no code with toolkit/models/condensenetv2.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

VARIANTS: dict[str, tuple[list[int], list[int], int, int]] = {
    "condensenetv2_a": ([1, 1, 4, 6, 8], [8, 8, 16, 32, 64], 8, 828),
    "condensenetv2_b": ([2, 4, 6, 8, 6], [6, 12, 24, 48, 96], 6, 1024),
    "condensenetv2_c": ([4, 6, 8, 10, 8], [8, 16, 32, 64, 128], 8, 1024),
}


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal the channels of `groups` runs out in turn."""
    b, c, h, w = x.shape
    x = x.view(b, groups, c // groups, h, w)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(b, c, h, w)


class NaiveConv(nn.Sequential):
    """Norm, act, conv."""

    def __init__(self, c_in: int, c_out: int, act: Callable[[], nn.Module], kernel: int, groups: int) -> None:
        super().__init__()
        self.add_module("norm", nn.BatchNorm2d(c_in))
        self.add_module("act", act())
        self.add_module("conv", nn.Conv2d(c_in, c_out, kernel, 1, kernel // 2, groups=groups, bias=False))


class NaiveLGC(nn.Module):
    """Gather, norm, act, grouped conv, shuffle."""

    def __init__(self, c_in: int, c_out: int, act: Callable[[], nn.Module], groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.norm = nn.BatchNorm2d(c_in)
        self.act = act()
        self.conv = nn.Conv2d(c_in, c_out, 1, groups=groups, bias=False)
        self.register_buffer("index", torch.zeros(c_in, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.index_select(x, 1, self.get_buffer("index"))
        return shuffle(self.conv(self.act(self.norm(x))), self.groups)


class NaiveSFR(nn.Module):
    """Norm, act, shuffle, grouped conv, matrix product with the index."""

    def __init__(self, c_in: int, c_out: int, act: Callable[[], nn.Module], groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.norm = nn.BatchNorm2d(c_in)
        self.act = act()
        self.conv = nn.Conv2d(c_in, c_out, 1, groups=groups, bias=False)
        self.register_buffer("index", torch.zeros(c_out, c_out))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(x))
        x = self.conv(shuffle(x, x.shape[1] // self.groups))
        b, c, h, w = x.shape
        x = x.view(b, c, -1).transpose(1, 2)
        x = torch.matmul(x, self.get_buffer("index"))
        return x.transpose(1, 2).contiguous().view(b, c, h, w)


class NaiveSE(nn.Module):
    """Squeeze and excite by linear layers."""

    def __init__(self, c: int, reduction: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(c, c // reduction, bias=False), nn.ReLU(), nn.Linear(c // reduction, c, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.shape
        y: Tensor = self.fc(self.avg_pool(x).view(b, c)).view(b, c, 1, 1)
        return x * y.expand_as(x)


class NaiveLayer(nn.Module):
    """One dense layer."""

    def __init__(self, c: int, k: int, groups: int, act: Callable[[], nn.Module], se: bool) -> None:
        super().__init__()
        self.conv_1 = NaiveLGC(c, 4 * k, act, groups)
        self.conv_2 = NaiveConv(4 * k, k, act, 3, groups)
        self.sfr = NaiveSFR(k, c, act, groups)
        self.se = NaiveSE(k, 1) if se else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        new = self.se(self.conv_2(self.conv_1(x)))
        return torch.cat([x + self.sfr(new), new], 1)


class NaiveCondenseNetV2(nn.Module):
    """[1, 3, 224, 224] to [1, 1000]."""

    def __init__(self, name: str) -> None:
        super().__init__()
        stages, growth, groups, hidden = VARIANTS[name]
        c = 2 * growth[0]
        self.features = nn.Sequential()
        self.features.add_module("init_conv", nn.Conv2d(3, c, 3, stride=2, padding=1, bias=False))
        for i in range(5):
            block = nn.Sequential()
            for j in range(stages[i]):
                act: Callable[[], nn.Module] = nn.ReLU if i < 2 else nn.Hardswish
                block.add_module(f"denselayer_{j + 1}", NaiveLayer(c, growth[i], groups, act, i >= 3))
                c += growth[i]
            self.features.add_module(f"denseblock_{i + 1}", block)
            if i < 4:
                self.features.add_module(f"pool_{i + 1}", nn.AvgPool2d(2, 2))
        self.features.add_module("norm_last", nn.BatchNorm2d(c))
        self.features.add_module("relu_last", nn.ReLU())
        self.features.add_module("pool_last", nn.AvgPool2d(7))
        self.features.add_module("se_last", NaiveSE(c, 16))
        self.fc = nn.Linear(c, hidden)
        self.fc_act = nn.Hardswish()
        self.classifier = nn.Linear(hidden, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).view(x.shape[0], -1)
        y: Tensor = self.classifier(self.fc_act(self.fc(x)))
        return y


NAIVE: dict[str, Callable[[], nn.Module]] = {name: partial(NaiveCondenseNetV2, name) for name in VARIANTS}
