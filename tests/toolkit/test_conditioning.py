"""How much of its outputs a network keeps under rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from acmix.toolkit import catalog
from acmix.toolkit.conditioning import HalfRounding, attainable


def measured(module: nn.Module, precision: str, half_arithmetic: bool = False) -> float:
    x = np.random.default_rng(0).standard_normal((1, 8, 5, 5)).astype(np.float32)
    with torch.no_grad():
        y = module.eval()(torch.from_numpy(x)).numpy()
    result = attainable(module, catalog.load_recipe(precision), half_arithmetic)([x], [y])[0]
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


class Float32Asserted(nn.Module):
    """Refuses it by an assertion, as many networks check their inputs."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return x


@pytest.mark.parametrize("module", [Float32Only(), Float32Asserted()], ids=["TypeError", "AssertionError"])
def test_a_module_that_cannot_be_computed_so_has_no_known_conditioning(module: nn.Module) -> None:
    recipe = catalog.load_recipe("float32")
    assert attainable(module, recipe)([np.zeros(1, np.float32)], [np.zeros(1, np.float32)]) == (None,)


def in_place(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x += y
    x.mul_(y).sub_(0.375)
    return x


def into(x: Tensor, y: Tensor) -> Tensor:
    result = torch.empty_like(x)
    torch.add(x, y, out=result)
    return result * y


@pytest.mark.parametrize(
    "compute",
    [lambda x, y: (x + y) * y - 0.375, in_place, into, lambda x, y: torch.cat([x, x * y])[1:].view(-1)],
    ids=["functions", "in place", "out=", "views"],
)
def test_rounded_operators_give_what_float16_gives(compute: Callable[[Tensor, Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    # Float16 values in float32 (0.375 is one): a single operation on them rounds to what float16 gives.
    x, y = torch.randn(2, 50, 8, generator=generator).half()
    with HalfRounding():  # type: ignore[no-untyped-call]
        found = compute(x.float(), y.float())
    assert torch.equal(found, compute(x, y).float())
    assert not torch.equal(found, compute(x.float(), y.float()))


def test_integers_and_doubles_are_not_rounded() -> None:
    with HalfRounding():  # type: ignore[no-untyped-call]
        assert int((torch.tensor([2049]) + 0)[0]) == 2049
        assert float((torch.tensor([2049.0], dtype=torch.float64) + 0)[0]) == 2049.0
        assert float((torch.tensor([2049.0]) + 0)[0]) == 2048.0


def test_float16_arithmetic_rounds_what_float16_weights_alone_keep() -> None:
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    assert measured(depthwise, "float16") == 300.0
    assert 55 < measured(depthwise, "float16", half_arithmetic=True) < 80


def test_float16_arithmetic_that_overflows_keeps_nothing() -> None:
    class Overflowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 1e5) * 1e-5

    assert measured(Overflowing(), "float16") > 120
    assert measured(Overflowing(), "float16", half_arithmetic=True) == -300.0
