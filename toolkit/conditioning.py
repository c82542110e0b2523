"""How much of its own outputs a network keeps when numbers are rounded: what no converter can do better than.

For float32: eager float32 against eager float64. For float16: eager with its filters rounded to float16, but for
those of depthwise and first convolutions, which the targets keep, against eager. For float16 arithmetic: eager with
all its weights and the result of every operator rounded to float16.  A network that rounds places to pixels is also
held against itself with every place moved by the agreement that is asked for.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from acmix.toolkit.float16 import stays_float32
from acmix.toolkit.prepare import flat_tensors
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.target import Array
from acmix.toolkit.verify import snr_db

Attainable = Callable[[Sequence[Array], Sequence[Array]], tuple[float | None, ...]]
"""From a sample's inputs and its eager outputs to the SNR that rounding alone leaves, one an output."""


class HalfRounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds the result of every operator to float16, in place where it writes in place; it computes in float32."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        # Whoever called an operator that writes in place reads what it wrote, not what is returned here.
        rounded = _round_in_place if func._schema.is_mutable else _to_half_and_back
        return pytree.tree_map_only(Tensor, lambda t: rounded(t) if t.dtype == torch.float32 else t, result)


def _to_half_and_back(tensor: Tensor) -> Tensor:
    return tensor.half().float()


def _round_in_place(tensor: Tensor) -> Tensor:
    return tensor.copy_(tensor.half())


def _rounding(half_arithmetic: bool) -> contextlib.AbstractContextManager[object]:
    return HalfRounding() if half_arithmetic else contextlib.nullcontext()  # type: ignore[no-untyped-call]


def attainable(module: nn.Module, recipe: Recipe, half_arithmetic: bool = False) -> Attainable:
    """Measure the conditioning of a network under a recipe's rounding.

    A module that cannot be copied or computed in float64 has no known conditioning: None for every output.
    """
    try:
        perturbed = copy.deepcopy(module)
        perturbed = perturbed.double() if recipe.weights == "float32" else _rounded(perturbed, half_arithmetic)
    except Exception:  # a user's module may refuse in any way
        return lambda inputs, outputs: (None,) * len(outputs)
    dtype = torch.float64 if recipe.weights == "float32" else torch.float32

    def measure(inputs: Sequence[Array], outputs: Sequence[Array]) -> tuple[float | None, ...]:
        try:
            with torch.no_grad(), _rounding(half_arithmetic):
                found = flat_tensors(perturbed(*(_as(array, dtype) for array in inputs)))
        except Exception:  # it may check its inputs' dtype, by an assertion say
            return (None,) * len(outputs)
        kept = tuple(_kept(o, f.double().numpy()) for o, f in zip(outputs, found, strict=True))
        return _least(kept, outputs, _nudged(module, inputs, recipe))

    return measure


@runtime_checkable
class Stepped(Protocol):
    """A module that rounds numbers of its own, places say, to whole ones: a hair's breadth gives other outputs."""

    def nudged(self, inputs: Sequence[Tensor], relative: float) -> Iterator[tuple[Tensor, ...]]:
        """The outputs wherever those numbers, off by `relative`, would round to others."""


def _nudged(module: nn.Module, inputs: Sequence[Array], recipe: Recipe) -> list[tuple[Tensor, ...]]:
    if not isinstance(module, Stepped):
        return []
    with torch.no_grad():
        return list(module.nudged([_as(a, torch.float32) for a in inputs], 10 ** (-recipe.tolerance.snr_db / 20)))


def _least(
    kept: tuple[float | None, ...], outputs: Sequence[Array], others: Sequence[tuple[Tensor, ...]]
) -> tuple[float | None, ...]:
    """What is kept of each output at the worst of the nudges."""
    for other in others:
        ratios = [_kept(o, f.double().numpy()) for o, f in zip(outputs, other, strict=True)]
        kept = tuple(b if a is None else a if b is None else min(a, b) for a, b in zip(kept, ratios, strict=True))
    return kept


def _kept(output: Array, perturbed: Array) -> float | None:
    # Nothing is known of an output that is not finite to begin with: it is asked for in full, and fails.
    return snr_db(output, perturbed) if np.isfinite(output).all() else None


def _as(array: Array, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _rounded(module: nn.Module, every: bool) -> nn.Module:
    for parameter in module.parameters():
        if every or (parameter.dim() > 1 and not stays_float32(parameter.shape)):
            parameter.data = parameter.data.half().float()
    return module
