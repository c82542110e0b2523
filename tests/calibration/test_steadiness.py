"""Steadiness: exact integers do not stray, float operators between them do, and float sums carry less of it on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.calibration.steadiness import STRAY, steady_db
from acmix.toolkit.grid import Grid, choose_grid
from acmix.toolkit.program import quiet
from acmix.toolkit.quantize import graph_module
from acmix.toolkit.ranges import Range, Ranges
from acmix.toolkit.samples import Samples
from acmix.toolkit.verify import SNR_LIMIT_DB

MakeNoise = Callable[..., Samples]
SHAPE = (1, 3, 96, 96)


class Residual(nn.Module):
    """A stem, an operator or none behind it, and blocks whose sums carry what it gives to the end."""

    def __init__(self, middle: nn.Module, blocks: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.middle, self.enter = nn.Conv2d(3, 16, 3, 2, 1), middle, nn.Conv2d(16, 16, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1)) for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.middle(self.stem(x)))
        for block in self.blocks:
            x = x + block(x)
        return x


def captured(net: nn.Module, samples: Samples) -> tuple[ExportedProgram, Ranges]:
    """The program, and the ranges that the samples show."""
    with torch.no_grad(), quiet():
        program = torch.export.export(net.eval(), (torch.zeros(SHAPE),))
    module, found = graph_module(program), dict[str, Range]()

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                old = found.get(n.name, Range(0.0, 0.0))
                found[n.name] = Range(min(old.low, float(value.min())), max(old.high, float(value.max())))
            return value

    with torch.no_grad():
        for (x,) in samples:
            Watch(module).run(torch.from_numpy(x))
    return program, Ranges(found, {}, (), "minmax", "noise", 4, "")


def grid_of(program: ExportedProgram, ranges: Ranges, kept: tuple[str, ...] = ()) -> Grid:
    return choose_grid(graph_module(program).graph, ranges, kept)


def test_integers_throughout_do_not_stray(noise: MakeNoise) -> None:
    program, ranges = captured(Residual(nn.ReLU(), 2), noise(SHAPE, 4))
    assert steady_db(program, grid_of(program, ranges), noise(SHAPE, 4)) == SNR_LIMIT_DB


def test_a_float_operator_before_many_roundings_strays_and_float_layers_carry_less_of_it(noise: MakeNoise) -> None:
    program, ranges = captured(Residual(nn.Softmax(1)), noise(SHAPE, 4))
    integers = steady_db(program, grid_of(program, ranges), noise(SHAPE, 4))
    last = tuple(n.name for n in graph_module(program).graph.nodes if n.target is torch.ops.aten.conv2d.default)[2:]
    floats = steady_db(program, grid_of(program, ranges, last), noise(SHAPE, 4))
    assert integers < 60  # of a noise of 120 dB
    assert floats > integers + 10


def test_a_network_of_floats_keeps_what_strays(noise: MakeNoise) -> None:
    program, _ = captured(Residual(nn.Softmax(1), 1), noise(SHAPE, 4))
    nothing = Grid({}, frozenset(), frozenset(), frozenset())
    assert steady_db(program, nothing, noise(SHAPE, 4)) == SNR_LIMIT_DB  # nothing is rounded
    assert STRAY < 1e-5
