"""LSConv, the large-small convolution of LSNet (arXiv 2503.23135, section 3.2), as trained and as best exported."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.models._folding import affine
from acmix.toolkit.models._lsnet_layers import ConvBN, convolution, pointwise

TAPS = 9
SHARING = 8
"""How many channels, C / 8 apart, one predicted kernel serves."""
ROW_BANDS = ((0, 3, 6), (1, 5), (2, 4))
"""Rows of a 7 x 7 kernel in three bands: each is evenly spaced and symmetric about the middle."""


class LargeKernelPerception(nn.Module):
    """Predicts C / 8 kernels of 3 x 3 for each pixel (section 3.2): [B, C, H, W] to [B, C / 8, 9, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, sets = channels // 2, channels // SHARING
        self.cv1 = ConvBN(channels, half)
        self.cv2 = ConvBN(half, half, 7, groups=half)
        self.cv3 = ConvBN(half, half)
        self.cv4 = nn.Conv2d(half, TAPS * sets, 1)
        self.norm = nn.GroupNorm(sets, TAPS * sets)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.cv3(self.cv2(F.relu(self.cv1(x)))))
        kernels: Tensor = self.norm(self.cv4(x))
        return kernels.view(x.shape[0], -1, TAPS, *x.shape[2:])


def small_kernel_aggregation(x: Tensor, kernels: Tensor) -> Tensor:
    """Sum each zero-padded 3 x 3 neighbourhood of x under its own predicted kernel (section 3.2).

    x: [B, C, H, W].  kernels: [B, S, 9, H, W]; channel c is weighted by set c mod S.
    """
    batch, channels, height, width = x.shape
    sets = kernels.shape[1]
    padded = F.pad(x, (1, 1, 1, 1)).view(batch, channels // sets, sets, height + 2, width + 2)
    total = torch.zeros_like(x).view(batch, channels // sets, sets, height, width)
    for tap in range(TAPS):
        top, left = divmod(tap, 3)
        total = total + padded[..., top : top + height, left : left + width] * kernels[:, None, :, tap]
    return total.flatten(1, 2)


class LSConv(nn.Module):
    """Large-small convolution: x + BN(aggregation of x under the perceived kernels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lkp = LargeKernelPerception(channels)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.bn(small_kernel_aggregation(x, self.lkp(x)))
        return y

    def fused(self) -> FusedLSConv:
        """The same for one image."""
        return FusedLSConv(self)


class RowBands(nn.Module):
    """A depthwise 7 x 7 convolution as three: rows -3, 0, 3, rows -2, 2 and rows -1, 1.

    XNNPACK has depthwise kernels of up to 25 taps; 49 run as a dense convolution of one channel each,
    which took a tenth of LSNet-T's time.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.bands = nn.ModuleList(
            convolution(
                weight[:, :, rows, :],
                bias if rows is ROW_BANDS[0] else None,
                dtype,
                dilation=(rows[1] - rows[0], 1),
                groups=weight.shape[0],
            )
            for rows in ROW_BANDS
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = (band(x) for band in self.bands)
        y: Tensor = first + second + third
        return y


class FusedLSConv(nn.Module):
    """LSConv as convolutions, slices and elementwise operations, [1, C, H, W] to the same.

    The predicted kernels are tap-major: channel = tap * S + set. A kernel is
    centred * gamma / sqrt(variance) + beta, and only its first term depends on the image: beta, the batch
    norm's shift and the residual are one depthwise convolution. The batch norm's scale is applied to x.
    Statistics are means over H x W, then over the taps by a 1 x 1 convolution: no sum overflows float16.
    """

    scale: Tensor

    def __init__(self, source: LSConv) -> None:
        super().__init__()
        lkp, norm, dtype = source.lkp, source.lkp.norm, source.lkp.cv4.weight.dtype
        assert lkp.cv4.bias is not None
        sets = norm.num_groups
        order = torch.arange(TAPS * sets).view(sets, TAPS).t().flatten()
        weight, bias = lkp.cv4.weight.double()[order, :, 0, 0], lkp.cv4.bias.double()[order]
        gamma, beta = norm.weight.double()[order], norm.bias.double()[order]
        scale, shift = affine(source.bn)
        spread = torch.eye(sets, dtype=torch.float64, device=weight.device).repeat(TAPS, 1)
        average = spread.t() / TAPS
        large = RowBands(*lkp.cv2.folded(), dtype)
        self.perceive = nn.Sequential(lkp.cv1.fused(), nn.ReLU(), large, lkp.cv3.fused(), nn.ReLU())
        self.predict = pointwise(weight, bias, dtype)
        self.mean = pointwise(spread @ average @ weight, spread @ average @ bias, dtype)
        self.variance = pointwise(average, torch.full_like(average[:, 0], norm.eps), dtype)
        self.spread = pointwise(gamma[:, None] * spread, torch.zeros_like(gamma), dtype)
        static = beta.view(TAPS, sets).t().repeat(SHARING, 1) * scale[:, None]
        static[:, TAPS // 2] += 1
        self.static = convolution(static.view(-1, 1, 3, 3), shift, dtype, groups=static.shape[0])
        self.register_buffer("scale", scale.view(1, -1, 1, 1).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        perceived = self.perceive(x)
        centred = self.predict(perceived) - self.mean(perceived.mean((2, 3), keepdim=True))
        variance = self.variance((centred * centred).mean((2, 3), keepdim=True))
        kernels = centred * self.spread(torch.rsqrt(variance))
        y: Tensor = self.static(x) + tap_major_aggregation(x * self.scale, kernels)
        return y


def tap_major_aggregation(x: Tensor, kernels: Tensor) -> Tensor:
    """small_kernel_aggregation of one image, channels innermost, by nine slices of rank 4.

    x: [1, C, H, W].  kernels: [1, 9 S, H, W], channel = tap * S + set.
    """
    _, channels, height, width = x.shape
    sets = kernels.shape[1] // TAPS
    # Channels last: mobile runtimes keep images so, and the views below then move nothing.
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).reshape(height + 2, width + 2, channels // sets, sets)
    kernels = kernels.permute(0, 2, 3, 1).reshape(height, width, TAPS, sets)
    total = x[:height, :width] * kernels[:, :, :1]
    for tap in range(1, TAPS):
        top, left = divmod(tap, 3)
        total = total + x[top : top + height, left : left + width] * kernels[:, :, tap : tap + 1]
    return total.reshape(1, height, width, channels).permute(0, 3, 1, 2)
