"""Tiles of queries and the keys they see: the geometry of a sliding window with a reflected border, as constants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OUTSIDE = -3e4
"""Added to the logit of a key outside the window.

exp(-3e4) is 0 in float32 and float64, whatever the logits up to 2.9e4; the sum stays inside float16's 65504.
"""


@dataclass(frozen=True)
class Axis:
    """One axis of the map: `pixels` keys, a query every `stride` of them, `tile` queries a tile.

    kernel: odd, and its half is less than the pixels: what is reflected once lies inside.
    """

    pixels: int
    kernel: int
    stride: int
    tile: int

    @property
    def queries(self) -> int:
        return -(-self.pixels // self.stride)

    @property
    def tiles(self) -> int:
        return -(-self.queries // self.tile)

    @property
    def missing(self) -> int:
        """Queries that the last tile lacks."""
        return self.tiles * self.tile - self.queries

    @property
    def span(self) -> int:
        """Keys a tile reads: those of its windows, all inside the map."""
        return min((self.tile - 1) * self.stride + self.kernel, self.pixels)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first key of each tile."""
        step, margin = self.tile * self.stride, self.kernel // 2
        return tuple(max(0, min(i * step - margin, self.pixels - self.span)) for i in range(self.tiles))

    def counts(self) -> Tensor:
        """How often each query's window holds each key, once or more by reflection: [tiles, tile, span], float64.

        A missing query sees every key once.
        """
        queries, last, margin = torch.arange(self.queries), self.pixels - 1, self.kernel // 2
        taps = queries[:, None] * self.stride + torch.arange(-margin, margin + 1)
        inside = last - (last - taps.abs()).abs()
        keys = inside - torch.tensor(self.starts)[queries // self.tile, None]
        held = torch.zeros(self.queries, self.span, dtype=torch.float64)
        held.scatter_add_(1, keys, torch.ones(keys.shape, dtype=torch.float64))
        return torch.cat([held, held.new_ones(self.missing, self.span)]).reshape(self.tiles, self.tile, self.span)


def window_biases(rows: Axis, columns: Axis) -> tuple[dict[str, Tensor], list[str]]:
    """What to add to the logits of each row of tiles, float64: [tiles, queries of a tile, keys of a tile].

    log(n) for a key that the window holds n times, OUTSIDE for one that it does not hold.  The distinct ones by
    name, and each row's name: rows of tiles inside the map have the same.
    """
    distinct: dict[str, Tensor] = {}
    names = []
    for down in rows.counts():
        counts = torch.einsum("ak,jbl->jabkl", down, columns.counts()).flatten(3).flatten(1, 2)
        bias = torch.where(counts > 0, counts.log(), OUTSIDE)
        name = next((n for n, known in distinct.items() if torch.equal(known, bias)), f"bias{len(distinct)}")
        distinct[name] = bias
        names.append(name)
    return distinct, names
