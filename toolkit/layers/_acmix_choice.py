"""Which form of ACmix each target gets: the cheapest in a table of measurements, scaled to the map at hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from acmix.toolkit.layers._acmix_attention import AttentionForm
from acmix.toolkit.layers._acmix_convolution import ConvolutionForm
from acmix.toolkit.layers._acmix_costs import ATTENTION, CONVOLUTION, Case
from acmix.toolkit.layers.acmix import ACmix

Form = TypeVar("Form", AttentionForm, ConvolutionForm)

XNNPACK = "executorch"
"""The measurements that serve every target without its own."""
ACCELERATORS = ("coreml",)
SMALL_WEIGHTS = 150_000
"""Weights that a projection of its own may add to a Core ML file: 256 channels, but not 512."""


def choose_attention(layer: ACmix, target: str, inputs: Sequence[int]) -> AttentionForm:
    """The cheapest measured form of the attention path for inputs of this shape."""
    size = layer.output_size(inputs[2], inputs[3])
    if target in ACCELERATORS:
        # Not measured: tiles that divide the usual maps; larger ones mean fewer operators and larger masks.
        tile = 14 if max(size) <= 14 else 7
        return AttentionForm(_fitted((tile, tile), size))
    costs = ATTENTION.get(target, ATTENTION[XNNPACK])
    best = _cheapest(costs[_nearest(costs, layer, inputs)])
    return replace(best, tile=_fitted(best.tile, size))


def choose_convolution(layer: ACmix, target: str, inputs: Sequence[int]) -> ConvolutionForm:
    """The cheapest measured form of the convolution path for inputs of this shape."""
    if target in ACCELERATORS:
        added = layer.channels * layer.kernel_conv**2 * layer.head_channels
        return ConvolutionForm("projected" if added <= SMALL_WEIGHTS else "shared")
    costs = CONVOLUTION.get(target, CONVOLUTION[XNNPACK])
    best = _cheapest(costs[_nearest(costs, layer, inputs)])
    return replace(best, merged=math.gcd(best.merged, layer.head_channels))


def _cheapest(costs: dict[Form, float]) -> Form:
    return min(costs, key=lambda form: costs[form])


def _nearest(cases: Iterable[Case], layer: ACmix, inputs: Sequence[int]) -> Case:
    """The measured case whose stride, size and channels are nearest, in this order of weight."""
    side = math.sqrt(inputs[2] * inputs[3])

    def distance(case: Case) -> float:
        channels, size, stride = case
        apart = 2 * abs(math.log2(side / size)) + abs(math.log2(layer.outputs / channels))
        return apart + (0 if (stride > 1) == (layer.stride > 1) else 100)

    return min(cases, key=distance)


def _fitted(tile: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """A tile of about this size that divides the map with the fewest queries left over."""
    rows, columns = (-(-n // max(1, round(n / side))) for n, side in zip(size, tile, strict=True))
    return rows, columns
