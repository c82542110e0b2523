"""ACmix's attention without unfold: two matrix products for each tile of queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.layers._acmix_window import Axis, window_biases
from acmix.toolkit.layers.acmix import ACmix, position_grid

NEGLIGIBLE = 50.0
"""How far below the largest logit of a row counts for nothing: exp(-50) is 2e-22.

Of 1000 such keys even float64 sees nothing, and yet their products with small values are normal float32 numbers.
"""


@dataclass(frozen=True)
class AttentionForm:
    """One of the equal forms of the attention path.

    tile: rows and columns of queries that share their keys.  floored: raise the logits of masked keys to NEGLIGIBLE
    below the largest: ONNX Runtime's softmax leaves denormal numbers otherwise, and takes 10 times as long.
    channels_last: enter and leave through [B, H, W, channels], which is how TFLite's convolutions store their maps.
    """

    tile: tuple[int, int]
    floored: bool = False
    channels_last: bool = False

    def __str__(self) -> str:
        details = (", floored" if self.floored else "") + (", channels last" if self.channels_last else "")
        return f"attention in tiles of {self.tile[0]} x {self.tile[1]}{details}"


def positions(layer: ACmix, height: int, width: int) -> tuple[Tensor, Tensor]:
    """What the position term takes from each key, float64: of its row [H, 1, depth], of its column [1, W, depth].

    It is linear in the window's pixels, so q * (k + own - theirs) = q * (k - theirs) + q * own, and the last is the
    same for the whole window: softmax drops it, the biases of k and of the position among it.
    """
    across, down = position_grid(height, width, torch.float64, layer.conv_p.weight.device)[0, :, :, :, None]
    columns, rows = layer.conv_p.weight.detach().double()[:, :, 0, 0].unbind(1)
    return down[:, :1] * rows, across[:1] * columns


class TiledAttention(nn.Module):
    """The attention path between its projections and the sum: queries, keys and values to the output map.

    A tile of queries meets all keys that any of them sees; a constant on the logits masks the others and counts
    reflected pixels twice, so nothing is padded.  The tiles of a row of tiles are computed together, row after row:
    what a row needs stays in the cache, and the rows inside the map share one constant.  inputs: shape of keys and
    values.
    """

    row_positions: Tensor
    column_positions: Tensor

    def __init__(self, layer: ACmix, inputs: Sequence[int], form: AttentionForm) -> None:
        super().__init__()
        self.batch, _, height, width = inputs
        axes = zip((height, width), form.tile, strict=True)
        self.rows, self.columns = (Axis(size, layer.kernel_att, layer.stride, tile) for size, tile in axes)
        self.form, self.heads, self.depth = form, self.batch * layer.heads, layer.head_channels
        dtype = layer.conv1.weight.dtype
        for name, part in zip(("row_positions", "column_positions"), positions(layer, height, width), strict=True):
            self.register_buffer(name, part.to(dtype))
        distinct, self.bias_names = window_biases(self.rows, self.columns)
        for name, bias in distinct.items():
            self.register_buffer(name, bias.to(dtype))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, columns = self.rows, self.columns
        queries = self._pixels_first(q, rows.queries, columns.queries)
        keys = self._pixels_first(k, rows.pixels, columns.pixels) - self.row_positions - self.column_positions
        values = self._pixels_first(v, rows.pixels, columns.pixels)
        if rows.missing or columns.missing:
            queries = F.pad(queries, (0, 0, 0, columns.missing, 0, rows.missing))
        bands = [
            self.attend_band(
                _cut(queries, index * rows.tile, rows.tile),
                _cut(keys, start, rows.span),
                _cut(values, start, rows.span),
                self.get_buffer(self.bias_names[index]),
            )
            for index, start in enumerate(rows.starts)
        ]
        output = bands[0] if len(bands) == 1 else torch.cat(bands, 1)
        if rows.missing or columns.missing:
            output = output[:, : rows.queries, : columns.queries]
        size = (rows.queries, columns.queries)
        if self.form.channels_last:
            pixels = output.reshape(self.batch, -1, size[0] * size[1], self.depth).transpose(1, 2)
            return pixels.reshape(self.batch, *size, -1).permute(0, 3, 1, 2)
        pixels = output.reshape(self.heads, -1, self.depth).transpose(1, 2)
        return pixels.reshape(self.batch, -1, *size)

    def _pixels_first(self, x: Tensor, height: int, width: int) -> Tensor:
        """[B, channels, H, W] to [heads, H, W, depth]."""
        if self.form.channels_last:
            pixels = x.permute(0, 2, 3, 1).reshape(self.batch, height * width, -1, self.depth).transpose(1, 2)
        else:
            pixels = x.reshape(self.heads, self.depth, -1).transpose(1, 2)
        return pixels.reshape(self.heads, height, width, self.depth)

    def attend_band(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """One row of tiles: queries [heads, rows, W, depth] and the keys and values they see to the same shape."""
        columns, shape = self.columns, q.shape
        run = columns.tile * self.depth
        if columns.tiles > 1:
            q = q.reshape(self.heads, -1, columns.tiles, run).transpose(1, 2)
        q = q.reshape(self.heads * columns.tiles, -1, self.depth)
        k, v = (self.overlapping_tiles(x).reshape(len(q), -1, self.depth) for x in (k, v))
        logits = torch.bmm(q, k.transpose(1, 2)).reshape(self.heads, *bias.shape) + bias
        if self.form.floored:
            logits = torch.maximum(logits, logits.amax(-1, keepdim=True) - NEGLIGIBLE)
        tiles = torch.bmm(logits.softmax(-1).reshape(-1, *bias.shape[1:]), v)
        if columns.tiles > 1:
            tiles = tiles.reshape(self.heads, columns.tiles, -1, run).transpose(1, 2)
        return tiles.reshape(shape)

    def overlapping_tiles(self, x: Tensor) -> Tensor:
        """[heads, rows, W, depth] to [heads, tiles * rows, span, depth], each tile with its halo."""
        if self.columns.tiles == 1:
            return x
        span = self.columns.span
        tiles = [x[:, :, start : start + span] for start in self.columns.starts]
        return torch.cat(tiles, 1)


def _cut(x: Tensor, start: int, length: int) -> Tensor:
    return x if length == x.shape[1] else x[:, start : start + length]
