"""Sums, norms, extremes and means over axes; running sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from acmix.targets.mil.arithmetic import half_sum
from acmix.targets.mil.call import Call, operator
from acmix.targets.mil.operators.elementwise import like

Reduce = Callable[[Call, Tensor, list[int], bool], Tensor]


def _log_sum_exp(call: Call, x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if not call.halves:
        return torch.logsumexp(x, axes, keep)
    top = x.amax(axes, keepdim=True)
    powers = torch.exp(x - top).half().to(x.dtype)
    return torch.log(call.sum(powers, axes, keep)) + (top if keep else top.squeeze(axes))


def _product(call: Call, x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


REDUCTIONS: dict[str, Reduce] = {
    "reduce_l1_norm": lambda call, x, axes, keep: call.sum(x.abs(), axes, keep),
    "reduce_l2_norm": lambda call, x, axes, keep: torch.sqrt(call.sum(x * x, axes, keep)),
    "reduce_log_sum": lambda call, x, axes, keep: torch.log(call.sum(x, axes, keep)),
    "reduce_log_sum_exp": _log_sum_exp,
    "reduce_max": lambda call, x, axes, keep: x.amax(axes, keepdim=keep),
    "reduce_mean": lambda call, x, axes, keep: call.mean(x, axes, keep),
    "reduce_min": lambda call, x, axes, keep: x.amin(axes, keepdim=keep),
    "reduce_prod": _product,
    "reduce_sum": lambda call, x, axes, keep: call.sum(x, axes, keep),
    "reduce_sum_square": lambda call, x, axes, keep: call.sum(x * x, axes, keep),
}
EXACT_ON_INTEGERS = ("reduce_l1_norm", "reduce_max", "reduce_min", "reduce_prod", "reduce_sum", "reduce_sum_square")


@operator(*REDUCTIONS)
def reduce(call: Call) -> Tensor:
    """Over the axes, all of them unless told; integers give integers, truncated where a root or a mean does not."""
    x = call.tensor("x")
    axes = [call.positive(axis, x.dim()) for axis in call.integers("axes", range(x.dim()))]
    work = x if x.is_floating_point() else x.to(torch.int64 if call.kind in EXACT_ON_INTEGERS else torch.float64)
    if axes:
        return like(x, REDUCTIONS[call.kind](call, work, axes, call.flag("keep_dims")))
    return like(x, REDUCTIONS[call.kind](call, work.unsqueeze(0), [0], False))


@operator("reduce_argmax", "reduce_argmin")
def reduce_arg(call: Call) -> Tensor:
    """Where the largest or smallest element along an axis is (the last one unless told): the first of equals."""
    x = call.tensor("x")
    find = torch.argmax if call.kind == "reduce_argmax" else torch.argmin
    return find(x, call.axis("axis", x.dim(), -1), call.flag("keep_dims"))


@operator("cumsum")
def cumsum(call: Call) -> Tensor:
    """Running sums along an axis, the first one unless told; exclusive: without the element itself."""
    x = call.tensor("x")
    axis = call.axis("axis", x.dim(), 0)
    if call.flag("reverse"):
        x = x.flip(axis)
    sums = _half_cumsum(x, axis) if call.halves else torch.cumsum(x, axis)
    if call.flag("exclusive"):
        first = torch.zeros_like(sums.narrow(axis, 0, 1))
        sums = torch.cat([first, sums.narrow(axis, 0, sums.shape[axis] - 1)], axis)
    return sums.flip(axis) if call.flag("reverse") else sums


def _half_cumsum(x: Tensor, axis: int) -> Tensor:
    parts, total = [], torch.zeros_like(x.select(axis, 0))
    for part in x.unbind(axis):
        total = half_sum([total, part])
        parts.append(total)
    return torch.stack(parts, axis)
