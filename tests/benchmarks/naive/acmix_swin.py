"""Swin-ACmix as a stock user would port it: rank-6 views of windows, torch.roll, masks added at run time.

The baseline that the exported network has to beat, and an independent reading of the paper to check it against.
It loads the same state dict and shares no code with toolkit/models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


class NaiveAttention(nn.Module):
    """Window attention and the convolution path; x is one image's rolled map, [B, H, W, C]."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads, self.head_dim = dim, heads, dim // heads
        self.scale = self.head_dim**-0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros(13 * 13, heads))
        self.rate1 = nn.Parameter(torch.ones(1))
        self.rate2 = nn.Parameter(torch.ones(1))
        points = torch.tensor([(row, column) for row in range(7) for column in range(7)])
        relative = points[:, None, :] - points[None, :, :] + 6
        self.register_buffer("relative_position_index", relative[..., 0] * 13 + relative[..., 1])
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.softmax = nn.Softmax(dim=-1)
        self.fc = nn.Conv2d(3 * heads, 9, kernel_size=1, bias=True)
        self.dep_conv = nn.Conv2d(9 * self.head_dim, dim, 3, padding=1, groups=self.head_dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, h, w, c = x.shape
        qkv = self.qkv(x)

        f_all = qkv.reshape(b, h * w, 3 * self.heads, self.head_dim).permute(0, 2, 1, 3)
        f_conv = self.fc(f_all).permute(0, 3, 1, 2).reshape(b, 9 * self.head_dim, h, w)
        out_conv = self.dep_conv(f_conv).permute(0, 2, 3, 1)

        windows = qkv.view(b, h // 7, 7, w // 7, 7, 3 * c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 49, 3 * c)
        n = windows.shape[0]
        q, k, v = windows.reshape(n, 49, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(49, 49, -1)
        attn = attn + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            count = mask.shape[0]
            attn = attn.view(n // count, count, self.heads, 49, 49) + mask.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, self.heads, 49, 49)
        out = (self.softmax(attn) @ v).transpose(1, 2).reshape(n, 49, c)
        out = self.proj(out).view(b, h // 7, w // 7, 7, 7, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        y: Tensor = self.rate1 * out + self.rate2 * out_conv
        return y


class NaiveMlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class NaiveBlock(nn.Module):
    """One Swin block on tokens [B, side * side, C]."""

    attn_mask: Tensor | None

    def __init__(self, dim: int, heads: int, side: int, shift: int) -> None:
        super().__init__()
        self.side, self.shift = side, shift
        mask = None
        if shift:
            regions = torch.zeros(side, side)
            count = 0
            for rows in (slice(0, -7), slice(-7, -shift), slice(-shift, None)):
                for columns in (slice(0, -7), slice(-7, -shift), slice(-shift, None)):
                    regions[rows, columns] = count
                    count += 1
            windows = regions.view(side // 7, 7, side // 7, 7).permute(0, 2, 1, 3).reshape(-1, 49)
            mask = windows.unsqueeze(1) - windows.unsqueeze(2)
            mask = mask.masked_fill(mask != 0, -100.0)
        self.register_buffer("attn_mask", mask)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = NaiveAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = NaiveMlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        b, tokens, c = x.shape
        shortcut = x
        x = self.norm1(x).view(b, self.side, self.side, c)
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = self.attn(x, self.attn_mask)
        if self.shift:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        x = shortcut + x.view(b, tokens, c)
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class NaiveMerging(nn.Module):
    """Every second row and column, four times, side by side; then a norm and a linear layer."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        b, _, c = x.shape
        x = x.view(b, self.side, self.side, c)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        y: Tensor = self.reduction(self.norm(x.view(b, -1, 4 * c)))
        return y


class NaiveStage(nn.Module):
    """Blocks, every second one shifted, and a merging."""

    def __init__(self, dim: int, heads: int, side: int, depth: int, last: bool) -> None:
        super().__init__()
        shifts = [3 if i % 2 and side > 7 else 0 for i in range(depth)]
        self.blocks = nn.ModuleList([NaiveBlock(dim, heads, side, shift) for shift in shifts])
        self.downsample = None if last else NaiveMerging(dim, side)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class NaivePatches(nn.Module):
    """4 x 4 patches as tokens, normalised."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, stride=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.proj(x).flatten(2).transpose(1, 2))
        return y


class NaiveSwin(nn.Module):
    """[B, 3, 224, 224] to [B, 1000]."""

    def __init__(self, depths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.patch_embed = NaivePatches(96)
        self.layers = nn.ModuleList(
            [NaiveStage(96 * 2**i, 3 * 2**i, 56 // 2**i, depth, i == 3) for i, depth in enumerate(depths)]
        )
        self.norm = nn.LayerNorm(768)
        self.avgpool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(768, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.head(self.avgpool(self.norm(x).transpose(1, 2)).flatten(1))
        return y


NAIVE: dict[str, Callable[[], nn.Module]] = {
    "acmix_swin_tiny": partial(NaiveSwin, (2, 2, 6, 2)),
    "acmix_swin_small": partial(NaiveSwin, (2, 2, 18, 2)),
}
