"""The layers of Swin-ACmix as trained (ACmix, arXiv 2111.14556; Swin, arXiv 2103.14030), under the authors' names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 7
SHIFT = WINDOW // 2
TAPS = 9
MLP_RATIO = 4
OTHER_REGION = -100.0
"""What the mask adds where two positions of a window were no neighbours before the shift."""

Size = tuple[int, int]


def relative_positions() -> Tensor:
    """Row of the bias table for each pair of a window's positions, int64 [49, 49]."""
    y, x = torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")
    y, x = y.flatten(), x.flatten()
    span = 2 * WINDOW - 1
    return (y[:, None] - y + WINDOW - 1) * span + (x[:, None] - x + WINDOW - 1)


def partition(x: Tensor) -> Tensor:
    """Windows of a map: [B, H, W, C] to [B * windows, 49, C]."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return x.transpose(2, 3).reshape(-1, WINDOW * WINDOW, channels)


def assemble(windows: Tensor, size: Size) -> Tensor:
    """The map of its windows: [B * windows, 49, C] to [B, H, W, C]."""
    height, width = size
    x = windows.view(-1, height // WINDOW, width // WINDOW, WINDOW, WINDOW, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def shift_mask(size: Size) -> Tensor:
    """What keeps the regions that a shift brings together apart: [windows, 49, 49], 0 or -100."""
    rows, columns = (torch.bucketize(torch.arange(n), torch.tensor([n - WINDOW, n - SHIFT]), right=True) for n in size)
    region = partition((rows[:, None] * 3 + columns).view(1, *size, 1))[..., 0]
    return torch.where(region[:, None] == region[:, :, None], 0.0, OTHER_REGION)


class WindowACmix(nn.Module):
    """Window attention and convolution from the same projections (ACmix, section 4): [B, H, W, C] to the same.

    The convolution path sees the whole map. Its `fc` mixes the 3 * heads maps of a head channel into nine,
    which `dep_conv` gathers; it numbers channels i * heads + n where attention has n * d + i.
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        depth = channels // heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        self.rate1 = nn.Parameter(torch.full((1,), 0.5))
        self.rate2 = nn.Parameter(torch.full((1,), 0.5))
        self.register_buffer("relative_position_index", relative_positions())
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.fc = nn.Conv2d(3 * heads, TAPS, 1)
        self.dep_conv = nn.Conv2d(TAPS * depth, channels, 3, padding=1, groups=depth, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        qkv = self.qkv(x)
        attended = assemble(self.proj(self.attention(partition(qkv), mask)), (x.shape[1], x.shape[2]))
        y: Tensor = self.rate1 * attended + self.rate2 * self.convolution(qkv)
        return y

    def bias(self) -> Tensor:
        """The relative position bias of each head, [heads, 49, 49]."""
        table = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        return table.view(WINDOW * WINDOW, WINDOW * WINDOW, self.heads).permute(2, 0, 1)

    def attention(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attention in each window: q, k and v [N, 49, 3 C] to [N, 49, C]."""
        count, tokens, channels = windows.shape
        depth = channels // (3 * self.heads)
        q, k, v = windows.view(count, tokens, 3, self.heads, depth).permute(2, 0, 3, 1, 4).unbind(0)
        logits = (q * depth**-0.5) @ k.transpose(2, 3) + self.bias()
        if mask is not None:
            logits = (logits.view(-1, *mask.shape[:1], *logits.shape[1:]) + mask[:, None]).flatten(0, 1)
        mixed: Tensor = logits.softmax(-1) @ v
        return mixed.transpose(1, 2).reshape(count, tokens, channels // 3)

    def convolution(self, qkv: Tensor) -> Tensor:
        """The convolution path: [B, H, W, 3 C] to [B, H, W, C]."""
        batch, height, width, _ = qkv.shape
        maps = qkv.view(batch, height * width, 3 * self.heads, -1).transpose(1, 2)
        mixed = self.fc(maps).permute(0, 3, 1, 2).reshape(batch, -1, height, width)
        y: Tensor = self.dep_conv(mixed).permute(0, 2, 3, 1)
        return y


class Mlp(nn.Module):
    """Two linear layers, four times as wide in between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, MLP_RATIO * channels)
        self.fc2 = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class Block(nn.Module):
    """One block on a map of `size`, [B, H, W, C] to the same; a shifted one has windows 3 further on."""

    attn_mask: Tensor | None

    def __init__(self, channels: int, heads: int, size: Size, shifted: bool) -> None:
        super().__init__()
        self.register_buffer("attn_mask", shift_mask(size) if shifted else None)
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowACmix(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        shift = SHIFT if self.attn_mask is not None else 0
        mixed = self.attn(self.norm1(x).roll((-shift, -shift), (1, 2)), self.attn_mask)
        x = x + mixed.roll((shift, shift), (1, 2))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class PatchMerging(nn.Module):
    """2 x 2 positions into one, twice as wide: [B, H, W, C] to [B, H / 2, W / 2, 2 C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        columns = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        y: Tensor = self.reduction(self.norm(torch.cat(columns, -1)))
        return y


class PatchEmbedding(nn.Module):
    """Patches of 4 x 4 pixels: [B, 3, H, W] to [B, H / 4, W / 4, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, 4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return y


class Stage(nn.Module):
    """Blocks on a map of `size`, every second one shifted, and the merging that ends all stages but the last."""

    def __init__(self, channels: int, heads: int, size: Size, depth: int, merges: bool) -> None:
        super().__init__()
        self.size = size
        # A map of one window has nothing to shift.
        can_shift = min(size) > WINDOW
        self.blocks = nn.ModuleList(Block(channels, heads, size, can_shift and i % 2 == 1) for i in range(depth))
        self.downsample = PatchMerging(channels) if merges else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)
