"""Integers simulated on the fly, against the program of pairs that files are made from; sizes and products by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.calibration.simulation import Simulation, macs_of, size_bytes, total_macs, units
from acmix.toolkit.grid import Grid, choose_grid
from acmix.toolkit.program import quiet
from acmix.toolkit.quantize import graph_module, quantize, rounded_weight, with_pairs
from acmix.toolkit.quantized import example_inputs, simulate
from acmix.toolkit.ranges import Range, Ranges


class Joined(nn.Module):
    """What a grid can hold: fused and free activations, a residual, a shared weight, a computed one, a softmax."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.head = nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.rand(8, 8, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = nn.functional.hardswish(self.first(x))
        b = nn.functional.relu6(self.second(a)) + self.second(x.repeat(1, 3, 1, 1)[:, :8])
        c = nn.functional.conv2d(b, self.scale.exp()).softmax(1)
        return self.head((b * c).mean((2, 3))), nn.functional.max_pool2d(b, 2)


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    with torch.no_grad(), quiet():
        return torch.export.export(Joined().eval(), (torch.zeros(1, 3, 12, 12),))


def grid_of(program: ExportedProgram, kept: tuple[str, ...] = ()) -> Grid:
    graph = graph_module(program).graph
    ranges = {n.name: Range(-0.9 - 0.1 * (i % 7), 1.1 + 0.1 * (i % 5)) for i, n in enumerate(graph.nodes)}
    return choose_grid(graph, Ranges(ranges, {}, (), "minmax", "made up", 1, ""), kept)


@pytest.mark.parametrize("kept", [(), ("conv2d",), ("conv2d_1", "linear")])
def test_what_is_rounded_on_the_fly_is_what_the_pairs_round(program: ExportedProgram, kept: tuple[str, ...]) -> None:
    grid, rng = grid_of(program, kept), np.random.default_rng(0)
    wanted, run = simulate(quantize(program, grid, example_inputs(program))), Simulation(graph_module(program), grid)
    for _ in range(3):
        x = rng.standard_normal((1, 3, 12, 12), dtype=np.float32)
        for found, expected in zip(run.outputs([x]), wanted([x]), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_pairs_need_no_export_to_run(program: ExportedProgram) -> None:
    grid, x = grid_of(program), torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    wanted = simulate(quantize(program, grid, (x,)))([x.numpy()])
    with torch.no_grad():
        found = with_pairs(program, grid)(x)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a.numpy(), b)


def test_an_empty_grid_is_the_float_program(program: ExportedProgram) -> None:
    x = np.random.default_rng(1).standard_normal((1, 3, 12, 12), dtype=np.float32)
    run = Simulation(graph_module(program), Grid({}, frozenset(), frozenset(), frozenset()))
    with torch.no_grad():
        for found, wanted in zip(run.outputs([x]), Joined().eval()(torch.from_numpy(x)), strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)


def test_weights_are_rounded_as_torch_rounds_them_for_each_channel() -> None:
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().flatten(1).amax(1) / 127
    wanted = torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(6, dtype=torch.int32), 0, -127, 127)
    torch.testing.assert_close(rounded_weight(weight), wanted)


def test_products_and_bytes_are_those_of_a_sheet_of_paper(program: ExportedProgram) -> None:
    module = graph_module(program)
    named = {n.name: n for n in module.graph.nodes}
    assert macs_of(module, named["conv2d"]) == 8 * 12 * 12 * 3 * 9
    assert macs_of(module, named["conv2d_1"]) == 8 * 12 * 12 * 9
    assert macs_of(module, named["linear"]) == 8 * 5
    computed = 8 * 8 * 12 * 12
    assert total_macs(program, example_inputs(program)) == 8 * 144 * 27 + 2 * 8 * 144 * 9 + computed + 40
    floats = (8 * 3 * 9 + 8) + 8 * 9 + (40 + 5) + 64
    assert size_bytes(module, frozenset()) == 4 * floats
    # The shared weight is int8 only where both of its layers are.
    assert size_bytes(module, frozenset({"conv2d", "conv2d_1"})) == 4 * floats - 3 * 216 + 4 * 8
    assert size_bytes(module, frozenset({"conv2d_1", "conv2d_2"})) == 4 * floats - 3 * 72 + 4 * 8


def test_layers_go_by_the_names_of_the_users_modules(program: ExportedProgram) -> None:
    found = {name: [n.name for n in layers] for name, layers in units(graph_module(program).graph).items()}
    assert found == {"first": ["conv2d"], "second": ["conv2d_1", "conv2d_2"], "head": ["linear"]}
