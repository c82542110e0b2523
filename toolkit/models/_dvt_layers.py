"""DVT's layers: transformer blocks that take features and relations of a coarser transformer into account."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6
REUSED_CHANNELS = 48
REUSED_HIDDEN = 128
MLP_RATIO = 4
RELATION_RATIO = 3


@dataclass(frozen=True)
class Width:
    """The size of a transformer. DeiT-S: 384 channels in 6 heads, 12 blocks."""

    channels: int = 384
    heads: int = 6
    depth: int = 12
    classes: int = 1000


class TokenResize(nn.Module):
    """Tokens [..., 1 + before^2] in the last axis, the class token first, to a finer square: [..., 1 + after^2].

    As published: each token four times (nearest), then an average over the windows of the new ones. The class token
    is kept, or zero.
    """

    def __init__(self, before: int, after: int, keeps_class: bool) -> None:
        super().__init__()
        self.before, self.after, self.keeps_class = before, after, keeps_class

    def forward(self, tokens: Tensor) -> Tensor:
        leading = tokens.shape[:-1]
        patches = tokens[..., 1:].reshape(1, -1, self.before, self.before)
        doubled = F.interpolate(patches, scale_factor=2.0, mode="nearest")
        resized = F.adaptive_avg_pool2d(doubled, (self.after, self.after)).reshape(*leading, -1)
        first = tokens[..., :1]
        return torch.cat((first if self.keeps_class else torch.zeros_like(first), resized), -1)


class MatrixResize(nn.Module):
    """The same as one product with a constant matrix, which delegates take where they have no such pooling."""

    matrix: Tensor

    def __init__(self, published: TokenResize, dtype: torch.dtype) -> None:
        super().__init__()
        identity = torch.eye(1 + published.before**2, dtype=torch.float64)
        self.register_buffer("matrix", published(identity).t().contiguous().to(dtype), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.matrix)


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class Attention(nn.Module):
    """Tokens [B, N, C] to attended tokens and their relations [B, heads, N, N]: what goes into the softmax.

    reused: relations of a coarser transformer, brought to this size, which are added.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, reused: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, count, channels = x.shape
        size = channels // self.heads
        # Thirds and heads by slices of rank 4 at the most: no runtime has to permute five axes.
        query, key, value = (
            part.reshape(batch, count, self.heads, size).permute(0, 2, 1, 3).reshape(-1, count, size)
            for part in self.qkv(x).split(channels, -1)
        )
        relation = torch.bmm(query, key.transpose(1, 2)) * size**-0.5
        if reused is not None:
            relation = relation + reused.reshape(relation.shape)
        seen = torch.bmm(relation.softmax(-1), value).reshape(batch, self.heads, count, size)
        mixed = self.proj(seen.permute(0, 2, 1, 3).reshape(batch, count, channels))
        return mixed, relation.reshape(batch, self.heads, count, count)


class Block(nn.Module):
    """A transformer block whose MLP also reads reused features, where the transformer has coarser tokens to reuse.

    resize: (tokens a side before, after), None for the first transformer.
    """

    def __init__(self, width: Width, resize: tuple[int, int] | None) -> None:
        super().__init__()
        channels, wide = width.channels, width.channels + (REUSED_CHANNELS if resize else 0)
        self.norm1 = nn.LayerNorm(channels, eps=EPSILON)
        self.attn = Attention(channels, width.heads)
        self.norm2 = nn.LayerNorm(wide, eps=EPSILON)
        self.mlp = Mlp(wide, MLP_RATIO * channels, channels)
        if resize:
            norm = nn.LayerNorm(channels, eps=EPSILON)
            # The checkpoint's own spelling.
            self.feature_resuse_mlp = nn.Sequential(norm, Mlp(channels, REUSED_HIDDEN, REUSED_CHANNELS))
            self.resize = TokenResize(*resize, keeps_class=False)

    def forward(self, x: Tensor, features: Tensor | None, relations: Tensor | None) -> tuple[Tensor, Tensor]:
        mixed, relation = self.attn(self.norm1(x), relations)
        x = x + mixed
        seen = x
        if features is not None:
            reused = self.resize(self.feature_resuse_mlp(features).transpose(1, 2)).transpose(1, 2)
            seen = torch.cat((x, reused), 2)
        y: Tensor = x + self.mlp(self.norm2(seen))
        return y, relation


class RelationReuse(nn.Sequential):
    """Relations [B, depth heads, N, N] mixed over layers and heads: 1x1, GELU, 1x1, under the checkpoint's keys."""

    def __init__(self, count: int) -> None:
        inner = RELATION_RATIO * count
        super().__init__(nn.Conv2d(count, inner, 1), nn.GELU(), nn.Conv2d(inner, count, 1))


class PatchEmbedding(nn.Module):
    """Images [B, 3, H, W] to patches [B, N, C]."""

    def __init__(self, channels: int, patch: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, patch, padding)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return y


class Transformer(nn.Module):
    """One of DVT's transformers: an image, and what the coarser one found, to logits, features and relations.

    grid: patches along height and width.  before: patches a side of the coarser transformer, None for the first.
    features [B, 1 + N, C]: the tokens behind the last block.  relations [B, depth heads, 1 + N, 1 + N]: of all blocks.
    is_last: nothing follows: logits alone.
    """

    def __init__(
        self, width: Width, patch: tuple[int, int], grid: tuple[int, int], before: int | None, is_last: bool
    ) -> None:
        super().__init__()
        resize = (before, grid[0]) if before else None
        self.is_last = is_last
        self.patch_embed = PatchEmbedding(width.channels, *patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width.channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], width.channels))
        self.blocks = nn.ModuleList([Block(width, resize) for _ in range(width.depth)])
        self.norm = nn.LayerNorm(width.channels, eps=EPSILON)
        self.head = nn.Linear(width.channels, width.classes)
        if resize:
            self.relation_reuse_conv = RelationReuse(width.depth * width.heads)
            self.resize = TokenResize(*resize, keeps_class=True)
        self.initialise()

    def initialise(self) -> None:
        """Random weights as DeiT starts with them: a narrow normal distribution, biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(
        self, image: Tensor, features: Tensor | None = None, relations: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        patches = self.patch_embed(image)
        # Of one image there is nothing to expand, and no operator for it.
        first = self.cls_token if len(patches) == 1 else self.cls_token.expand(len(patches), -1, -1)
        x = torch.cat((first, patches), 1) + self.pos_embed
        reused = [None] * len(self.blocks) if relations is None else self.reused(relations)
        found = []
        for block, relation in zip(self.blocks, reused, strict=True):
            x, made = block(x, features, relation)
            found.append(made)
        logits = self.head(self.norm(x)[:, 0])
        return (logits,) if self.is_last else (logits, x, torch.cat(found, 1))

    def reused(self, relations: Tensor) -> tuple[Tensor, ...]:
        """Relations of the coarser transformer at this size, those of every block: keys are resized, then queries."""
        mixed = self.relation_reuse_conv(relations)
        by_query = self.resize(mixed).transpose(2, 3)
        resized: Tensor = self.resize(by_query).transpose(2, 3)
        return resized.chunk(len(self.blocks), 1)
