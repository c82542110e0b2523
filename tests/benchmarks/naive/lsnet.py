"""LSNet as a stock user would port it: nn.Unfold for the GPU-only kernel and views of rank 6.

The baseline that the exported network has to beat, and an independent reading of the paper to check it
against. It loads the same state dict and shares no code with toolkit/models/lsnet.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "lsnet_t": ((64, 128, 256, 384), (0, 2, 8, 10)),
    "lsnet_s": ((96, 192, 320, 448), (1, 2, 8, 10)),
    "lsnet_b": ((128, 256, 384, 512), (4, 6, 8, 10)),
}


def conv_bn(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution `c` and batch norm `bn`."""
    layers = nn.Sequential()
    layers.add_module("c", nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False))
    layers.add_module("bn", nn.BatchNorm2d(outputs))
    return layers


class NaiveGate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, (channels // 4 + 4) // 8 * 8, 1)
        self.fc2 = nn.Conv2d((channels // 4 + 4) // 8 * 8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class NaiveDepthwise(nn.Module):
    """The re-parameterisable depthwise mixer, its three branches apart."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv_bn(channels, channels, 3, groups=channels)
        self.conv1 = conv_bn(channels, channels, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) + self.conv1(x) + x
        return y


class NaivePerception(nn.Module):
    """The predicted kernels, [B, C / 8, 9, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, out = channels // 2, channels // 8 * 9
        self.cv1 = conv_bn(channels, half)
        self.cv2 = conv_bn(half, half, 7, groups=half)
        self.cv3 = conv_bn(half, half)
        self.cv4 = nn.Conv2d(half, out, 1)
        self.norm = nn.GroupNorm(channels // 8, out)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.cv3(self.cv2(torch.relu(self.cv1(x)))))
        x = self.norm(self.cv4(x))
        return x.view(x.shape[0], -1, 9, x.shape[2], x.shape[3])


class NaiveLSConv(nn.Module):
    """x + BN of the unfolded x under the predicted kernels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lkp = NaivePerception(channels)
        self.bn = nn.BatchNorm2d(channels)
        self.unfold = nn.Unfold(3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.lkp(x)
        b, c, h, w = x.shape
        patches = self.unfold(x).view(b, 8, c // 8, 9, h, w)
        y: Tensor = x + self.bn((patches * weights.unsqueeze(1)).sum(3).view(b, c, h, w))
        return y


class NaiveAttention(nn.Module):
    """LeViT's attention: 4 heads, keys of 16 channels, one learned bias per head and distance."""

    attention_bias_idxs: Tensor

    def __init__(self, channels: int, resolution: int = 4) -> None:
        super().__init__()
        self.channels, self.heads, self.kd = channels, 4, 16
        self.qkv = conv_bn(channels, channels + 128)
        self.proj = nn.Sequential(nn.ReLU(), conv_bn(channels, channels))
        self.dw = conv_bn(64, 64, 3, groups=64)
        points = list(itertools.product(range(resolution), repeat=2))
        seen: dict[tuple[int, int], int] = {}
        indices = [seen.setdefault((abs(p[0] - q[0]), abs(p[1] - q[1])), len(seen)) for p in points for q in points]
        self.attention_biases = nn.Parameter(torch.zeros(self.heads, len(seen)))
        self.register_buffer("attention_bias_idxs", torch.tensor(indices).view(len(points), len(points)))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.qkv(x).split([64, 64, self.channels], dim=1)
        q = self.dw(q)
        q, k, v = (t.reshape(b, self.heads, -1, h * w) for t in (q, k, v))
        attention = (q.transpose(-2, -1) @ k) * self.kd**-0.5 + self.attention_biases[:, self.attention_bias_idxs]
        attention = attention.softmax(dim=-1)
        y: Tensor = x + self.proj((v @ attention.transpose(-2, -1)).reshape(b, -1, h, w))
        return y


class NaiveFeedForward(nn.Module):
    """x + two pointwise convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.m = nn.Sequential()
        self.m.add_module("pw1", conv_bn(channels, 2 * channels))
        self.m.add_module("act", nn.ReLU())
        self.m.add_module("pw2", conv_bn(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.m(x)
        return y


class Nested(nn.Module):
    """Holds a mixer one name deeper, as the checkpoints do for attention."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.m(x)
        return y


class NaiveBlock(nn.Module):
    """Block d of a stage: mixer, gate on even d, feed-forward."""

    def __init__(self, channels: int, d: int, last_stage: bool) -> None:
        super().__init__()
        odd = Nested(NaiveAttention(channels)) if last_stage else NaiveLSConv(channels)
        self.mixer = odd if d % 2 else NaiveDepthwise(channels)
        self.se = nn.Identity() if d % 2 else NaiveGate(channels)
        self.ffn = NaiveFeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.ffn(self.se(self.mixer(x)))
        return y


class NaiveHead(nn.Module):
    """Batch norm and linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels)
        self.l = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(self.bn(x))
        return y


class NaiveLSNet(nn.Module):
    """[1, 3, 224, 224] to [1, 1000]; name: lsnet_t, lsnet_s or lsnet_b, with or without _distill."""

    def __init__(self, name: str) -> None:
        super().__init__()
        dims, depths = VARIANTS[name.removesuffix("_distill")]
        c = dims[0]
        self.patch_embed = nn.Sequential(
            conv_bn(3, c // 4, 3, 2), nn.ReLU(), conv_bn(c // 4, c // 2, 3, 2), nn.ReLU(), conv_bn(c // 2, c, 3, 2)
        )
        stages = []
        for i, (channels, depth) in enumerate(zip(dims, depths, strict=True)):
            down = [conv_bn(dims[i - 1], dims[i - 1], 3, 2, dims[i - 1]), conv_bn(dims[i - 1], channels)]
            stages.append(nn.Sequential(*down[: 2 * i], *(NaiveBlock(channels, d, i == 3) for d in range(depth))))
        self.blocks1, self.blocks2, self.blocks3, self.blocks4 = stages
        self.head = NaiveHead(dims[-1])
        self.distilled = name.endswith("_distill")
        if self.distilled:
            self.head_dist = NaiveHead(dims[-1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks4(self.blocks3(self.blocks2(self.blocks1(self.patch_embed(x)))))
        x = x.mean((2, 3))
        y: Tensor = (self.head(x) + self.head_dist(x)) / 2 if self.distilled else self.head(x)
        return y


NAIVE: dict[str, Callable[[], nn.Module]] = {
    name + head: partial(NaiveLSNet, name + head) for name in VARIANTS for head in ("", "_distill")
}
