"""Pooling over one to three spatial axes."""

from __future__ import annotations

from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix.targets.mil.arithmetic import half_sum
from acmix.targets.mil.call import Call, operator
from acmix.targets.mil.operators.convolution import Pads, flattened, paddings, spatial

MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class Windows:
    """Where a pooling's windows lie: kernel, strides, declared paddings, outputs, and x padded to hold them all."""

    def __init__(self, call: Call) -> None:
        x = call.tensor("x")
        self.axes = x.dim() - 2
        if self.axes not in MAX_POOL:
            raise call.refuse(f"x has the shape {list(x.shape)}: it needs rank 3 to 5")
        self.kernel = call.integers("kernel_sizes")
        if len(self.kernel) != self.axes or min(self.kernel) < 1:
            raise call.refuse(f"'kernel_sizes' is {self.kernel}: it needs {self.axes} positive numbers")
        self.strides = spatial(call, "strides", self.axes)
        self.sizes = list(x.shape[2:])
        self.pads = paddings(call, self.sizes, self.kernel, self.strides)
        self.outs = [self._outputs(axis, call.flag("ceil_mode")) for axis in range(self.axes)]
        if min(self.outs) < 1:
            raise call.refuse(f"its windows of {self.kernel} do not fit {self.sizes}")
        # A last window of ceil mode reaches beyond the declared padding; a stride may leave a rest uncovered.
        self.reach: Pads = [
            (before, (out - 1) * stride + k - size - before)
            for out, stride, k, size, (before, _) in zip(
                self.outs, self.strides, self.kernel, self.sizes, self.pads, strict=True
            )
        ]
        call.reserve((*x.shape[:2], *(s + sum(r) for s, r in zip(self.sizes, self.reach, strict=True))))

    def _outputs(self, axis: int, ceil: bool) -> int:
        before, after = self.pads[axis]
        span, stride = self.sizes[axis] + before + after - self.kernel[axis], self.strides[axis]
        if not ceil:
            return span // stride + 1
        outs = -(-span // stride) + 1
        starts_in_padding = (outs - 1) * stride >= self.sizes[axis] + before and before + after > 0
        return outs - 1 if starts_in_padding else outs

    def padded(self, x: Tensor, value: float) -> Tensor:
        return F.pad(x, flattened(self.reach), value=value)

    def sums(self, call: Call, x: Tensor) -> Tensor:
        """The sum of each window of a padded x."""
        if call.halves:
            taps = product(*(range(k) for k in self.kernel))
            return half_sum([x[(slice(None), slice(None), *self._window(tap))] for tap in taps])
        if self.axes == 3:
            return F.avg_pool3d(x, self.kernel, self.strides, divisor_override=1)
        flat = x.unsqueeze(2) if self.axes == 1 else x
        kernel, strides = ([1, *one] if self.axes == 1 else one for one in (self.kernel, self.strides))
        total = F.avg_pool2d(flat, kernel, strides, divisor_override=1)
        return total.squeeze(2) if self.axes == 1 else total

    def _window(self, tap: tuple[int, ...]) -> list[slice]:
        return [
            slice(t, t + (out - 1) * stride + 1, stride)
            for t, out, stride in zip(tap, self.outs, self.strides, strict=True)
        ]

    def counts(self, exclude_padding: bool, like: Tensor) -> Tensor:
        """How many elements each window's mean divides by, [1, 1, ...]: never those beyond the declared padding."""
        total = like.new_ones((1, 1, *[1] * self.axes))
        for axis in range(self.axes):
            before, after = (0, 0) if exclude_padding else self.pads[axis]
            low, high = -before, self.sizes[axis] + after
            starts = torch.arange(self.outs[axis]) * self.strides[axis] - self.pads[axis][0]
            count = (starts + self.kernel[axis]).clamp(max=high) - starts.clamp(min=low)
            total = total * count.to(like.dtype).reshape(-1, *[1] * (self.axes - 1 - axis))
        return total


@operator("max_pool")
def max_pool(call: Call) -> Tensor:
    """The largest element of each window."""
    windows = Windows(call)
    return MAX_POOL[windows.axes](windows.padded(call.tensor("x"), -torch.inf), windows.kernel, windows.strides)


@operator("avg_pool")
def avg_pool(call: Call) -> Tensor:
    """The mean of each window, with padding counted as zeros unless exclude_padding_from_average."""
    windows, x = Windows(call), call.tensor("x")
    plain = not any(amount for pair in windows.reach for amount in pair)
    total = call.sum(x, range(2, x.dim()), True) if plain and windows.kernel == windows.sizes else None
    if total is not None:
        return total / prod(windows.kernel)
    total = windows.sums(call, windows.padded(x, 0.0))
    return total / windows.counts(call.flag("exclude_padding_from_average"), x)


@operator("l2_pool")
def l2_pool(call: Call) -> Tensor:
    """The root of each window's sum of squares."""
    windows, x = Windows(call), call.tensor("x")
    return torch.sqrt(windows.sums(call, windows.padded(x * x, 0.0)))
