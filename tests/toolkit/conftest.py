"""What the tests of this room share: programs of pairs, without a calibration."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.toolkit.grid import choose_grid
from acmix.toolkit.quantize import graph_module, quantize
from acmix.toolkit.ranges import Range, Ranges


def _pairs_of(net: nn.Module, x: Tensor) -> ExportedProgram:
    """The network with pairs, whose ranges are those of one input."""
    program = torch.export.export(net.eval(), (x,))
    module = graph_module(program)
    found: dict[str, Range] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                found[n.name] = Range(min(0.0, float(value.min())), max(0.0, float(value.max())))
            return value

    with torch.no_grad():
        Watch(module).run(x)
    ranges = Ranges(found, {}, (x.numpy(),), "minmax", "noise", 1, "")
    return quantize(program, choose_grid(module.graph, ranges), (x,))


@pytest.fixture(scope="session")
def pairs_of() -> Callable[[nn.Module, Tensor], ExportedProgram]:
    """pairs_of(network, input): the network with pairs."""
    return _pairs_of
