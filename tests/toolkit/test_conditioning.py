"""How much of its outputs a network keeps under rounding."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from acmix.toolkit import catalog
from acmix.toolkit.conditioning import attainable


def measured(module: nn.Module, precision: str) -> float:
    x = np.random.default_rng(0).standard_normal((1, 8, 5, 5)).astype(np.float32)
    with torch.no_grad():
        y = module.eval()(torch.from_numpy(x)).numpy()
    result = attainable(module, catalog.load_recipe(precision))([x], [y])[0]
    assert result is not None
    return result


class Cancelling(nn.Module):
    """Two nearly equal sums, subtracted: what remains is mostly rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1000.0) - x.roll(1, 1) - 1000.0


def test_a_plain_convolution_keeps_almost_everything() -> None:
    assert measured(nn.Conv2d(8, 4, 3), "float32") > 120
    assert 60 < measured(nn.Conv2d(8, 4, 3), "float16") < 85


def test_cancellation_costs() -> None:
    assert measured(Cancelling(), "float32") < 100


def test_depthwise_filters_are_not_rounded_as_the_targets_keep_them() -> None:
    assert measured(nn.Conv2d(8, 8, 3, groups=8), "float16") == 300.0


def test_the_module_itself_is_left_alone() -> None:
    module = nn.Conv2d(8, 4, 3)
    before = module.weight.clone()
    measured(module, "float16")
    assert torch.equal(module.weight, before)
    assert module.weight.dtype == torch.float32


class Float32Only(nn.Module):
    """Refuses to be computed in float64."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return x


def test_a_module_that_cannot_be_computed_so_has_no_known_conditioning() -> None:
    recipe = catalog.load_recipe("float32")
    assert attainable(Float32Only(), recipe)([np.zeros(1, np.float32)], [np.zeros(1, np.float32)]) == (None,)
