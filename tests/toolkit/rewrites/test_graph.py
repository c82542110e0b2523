"""The surgery that the rules share: what must survive it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from acmix.toolkit.rewrites._graph import add_constant, calls, constant_value, emit_before, remove_unused, replace

ATEN = torch.ops.aten


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y.add_(1)
        return y * 3


class InPlaceOnAView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y.view(-1).add_(1)
        return y * 3


@pytest.mark.parametrize("module", [InPlace(), InPlaceOnAView()])
def test_a_call_that_writes_in_place_is_not_unused(module: nn.Module) -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    program = torch.export.export(module, (x,))
    remove_unused(program)
    assert torch.equal(program.module()(x), module(x))


def test_a_new_constant_gets_a_name_of_its_own_and_can_be_removed() -> None:
    net = nn.Conv2d(2, 3, 1, bias=False).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    program = torch.export.export(net, (x,))
    names = {add_constant(program, "weight", torch.ones(3, dtype=torch.float64)).name for _ in range(3)}
    assert len(names) == 3
    program.validate()
    remove_unused(program)
    assert set(program.state_dict) == {"weight"}
    assert torch.equal(program.module()(x), net(x))


def test_a_replaced_output_of_the_program_stays_an_output() -> None:
    net = nn.Conv2d(2, 3, 1).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    program = torch.export.export(net, (x,))
    (conv,) = calls(program, ATEN.conv2d.default)
    assert torch.equal(constant_value(program, conv.args[1]), net.weight.detach())
    assert constant_value(program, conv) is None
    emit = emit_before(program, conv)
    shift = add_constant(program, "shift", torch.full((3, 1, 1), 0.5, dtype=torch.float64))
    again = emit(ATEN.conv2d.default, *conv.args)
    replace(program, conv, emit(ATEN.add.Tensor, again, shift))
    remove_unused(program)
    program.validate()
    torch.testing.assert_close(program.module()(x), net(x) + 0.5)
