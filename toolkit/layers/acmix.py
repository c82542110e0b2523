"""ACmix, self-attention and convolution from one set of projections (Pan et al., CVPR 2022, arXiv 2111.14556)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.errors import UsageError

RATE = 0.5
"""What both learned rates start at."""


def position_grid(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Column and row of each pixel, both from -1 to 1: [1, 2, height, width]."""
    columns = torch.linspace(-1, 1, width, dtype=dtype, device=device)
    rows = torch.linspace(-1, 1, height, dtype=dtype, device=device)
    return torch.stack((columns.expand(height, width), rows[:, None].expand(height, width)))[None]


class ACmix(nn.Module):
    """A convolution and a sliding-window attention that share three projections (section 4, figure 2).

    It takes the place of a 3 x 3 convolution: [B, channels, H, W] to [B, outputs, ceil(H / stride),
    ceil(W / stride)].  outputs: as many as channels unless given; a multiple of `heads`.  kernel_att, kernel_conv:
    odd widths of the attention window and of the convolution, in pixels.  Maps must be larger than half a window,
    which is reflected at the border.  Parameters have the names of the authors' code.
    """

    def __init__(
        self,
        channels: int,
        outputs: int | None = None,
        kernel_att: int = 7,
        heads: int = 4,
        kernel_conv: int = 3,
        stride: int = 1,
    ) -> None:
        super().__init__()
        outputs = channels if outputs is None else outputs
        _check_configuration(outputs, heads, {"kernel_att": kernel_att, "kernel_conv": kernel_conv}, stride)
        self.channels, self.outputs, self.heads, self.stride = channels, outputs, heads, stride
        self.kernel_att, self.kernel_conv = kernel_att, kernel_conv
        self.head_channels = outputs // heads
        taps = kernel_conv**2
        self.rate1 = nn.Parameter(torch.full((1,), RATE))
        self.rate2 = nn.Parameter(torch.full((1,), RATE))
        self.conv1 = nn.Conv2d(channels, outputs, 1)
        self.conv2 = nn.Conv2d(channels, outputs, 1)
        self.conv3 = nn.Conv2d(channels, outputs, 1)
        self.conv_p = nn.Conv2d(2, self.head_channels, 1)
        self.fc = nn.Conv2d(3 * heads, taps, 1, bias=False)
        self.dep_conv = nn.Conv2d(
            taps * self.head_channels,
            outputs,
            kernel_conv,
            stride,
            kernel_conv // 2,
            groups=self.head_channels,
            bias=False,
        )
        self.initialise()

    def initialise(self) -> None:
        """Start dep_conv as the shifts of a convolution: input map t of a group is read at tap t (section 4.2)."""
        width = self.kernel_conv
        shifts = torch.eye(width**2).reshape(width**2, width, width)
        with torch.no_grad():
            self.dep_conv.weight.copy_(shifts.expand_as(self.dep_conv.weight))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.conv1(x), self.conv2(x), self.conv3(x)
        y: Tensor = self.rate1 * self.attend(q, k, v) + self.rate2 * self.convolve(q, k, v)
        return y

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention path, its output channels head by head."""
        batch, _, height, width = k.shape
        check_map(self, height, width)
        depth, window = self.head_channels, self.kernel_att**2
        position = self.conv_p(position_grid(height, width, k.dtype, k.device))
        step = self.stride
        q = (q * depth**-0.5)[:, :, ::step, ::step].reshape(batch, self.heads, depth, 1, -1)
        own = position[:, :, ::step, ::step].reshape(1, 1, depth, 1, -1)
        keys = self._windows(k).reshape(batch, self.heads, depth, window, -1)
        theirs = self._windows(position).reshape(1, 1, depth, window, -1)
        weights = (q * (keys + own - theirs)).sum(2, keepdim=True).softmax(3)
        values = self._windows(v).reshape(batch, self.heads, depth, window, -1)
        size = self.output_size(height, width)
        y: Tensor = (weights * values).sum(3).reshape(batch, self.outputs, *size)
        return y

    def _windows(self, x: Tensor) -> Tensor:
        margin = (self.kernel_att // 2,) * 4
        return F.unfold(F.pad(x, margin, mode="reflect"), self.kernel_att, stride=self.stride)

    def convolve(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The convolution path, its output channels channel of head by channel of head."""
        batch, _, height, width = q.shape
        shape = (batch, self.heads, self.head_channels, height * width)
        mixed = self.fc(torch.cat([t.reshape(shape) for t in (q, k, v)], 1))
        y: Tensor = self.dep_conv(mixed.transpose(1, 2).reshape(batch, -1, height, width))
        return y

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output for a map of height x width."""
        return -(-height // self.stride), -(-width // self.stride)

    def for_inference(self, target: str, inputs: Sequence[int]) -> nn.Module:
        """An equal layer for one map [1, channels, H, W] without unfold, in the form that is fastest on `target`.

        Raises UsageError for more than one image and for a map that the reflected border does not fit.
        """
        from acmix.toolkit.layers._acmix_inference import inference_form

        return inference_form(self, target, inputs)


def check_map(layer: ACmix, height: int, width: int) -> None:
    """Raise UsageError for a map that the reflected border does not fit."""
    least = layer.kernel_att // 2 + 1
    if min(height, width) < least:
        raise UsageError(
            f"ACmix cannot reflect the border of a map of {height} x {width}.\n"
            f"A {layer.kernel_att} x {layer.kernel_att} window needs {least} x {least} pixels or more: "
            "give a larger input, or a smaller kernel_att."
        )


def _check_configuration(outputs: int, heads: int, kernels: dict[str, int], stride: int) -> None:
    if heads < 1 or outputs % heads != 0:
        raise UsageError(
            f"ACmix cannot share {outputs} outputs among {heads} heads.\n"
            "Give a number of outputs that is a multiple of the heads."
        )
    if even := [f"{name}={width}" for name, width in kernels.items() if width % 2 == 0]:
        raise UsageError(f"ACmix has a window without a middle: {', '.join(even)}.\nGive odd widths, such as 7 and 3.")
    if stride < 1:
        raise UsageError(f"ACmix cannot step by stride={stride}.\nGive 1 or more.")
