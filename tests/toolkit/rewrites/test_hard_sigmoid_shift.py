"""Hard-sigmoids behind a layer: the shift in its bias, equal in float64, and left alone where others read the layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.rewrite import rewrite
from acmix.toolkit.rewrites.hard_sigmoid_shift import REWRITE

ATEN = torch.ops.aten


def check(module: nn.Module, x: Tensor) -> None:
    """After the rule it is the same function, there is nothing left to replace, and the layer is its module's."""
    module = module.double().eval()
    program = torch.export.export(module, (x,))
    assert REWRITE.apply(program) == 1
    program.validate()
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-12, atol=1e-14)
    assert REWRITE.apply(program) == 0
    assert not [n for n in program.graph.nodes if n.target is ATEN.hardsigmoid.default]
    layer = next(n for n in program.graph.nodes if n.target in (ATEN.conv2d.default, ATEN.linear.default))
    assert next(reversed(layer.meta["nn_module_stack"].values()))[0] == "0"


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_takes_the_shift(bias: bool) -> None:
    layer = nn.Conv2d(6, 12, 3, 2, 1, groups=3, bias=bias)
    check(nn.Sequential(layer, nn.Hardsigmoid()), 4 * torch.randn(2, 6, 9, 7, dtype=torch.float64))


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_takes_the_shift(bias: bool) -> None:
    check(nn.Sequential(nn.Linear(6, 5, bias), nn.Hardsigmoid()), 4 * torch.randn(3, 6, dtype=torch.float64))


class Shared(nn.Module):
    """A layer that something else reads too, which must not see the shift."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return F.hardsigmoid(y) + y


class Computed(nn.Module):
    """A layer whose weights are no constants."""

    def forward(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(F.linear(x, x[:1] * 2))


@pytest.mark.parametrize("module", [Shared(), Computed()])
def test_other_layers_are_left_alone(module: nn.Module) -> None:
    x = torch.randn(1, 3, 3, 3) if isinstance(module, Shared) else torch.randn(2, 3)
    assert REWRITE.apply(torch.export.export(module, (x,))) == 0


def test_with_the_other_rules_it_holds_for_tflite_alone() -> None:
    """The rule that finds hard-sigmoids spelled out does not turn it back."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardsigmoid(), nn.Conv2d(4, 3, 1)).eval()
    x = torch.randn(1, 3, 5, 5)
    names = {}
    for target in ("tflite", "onnx"):
        program = torch.export.export(module, (x,))
        names[target] = [rule.name for rule in rewrite(program, target)]
        torch.testing.assert_close(program.module()(x), module(x))
    assert names == {"tflite": ["hard_sigmoid_shift"], "onnx": []}
