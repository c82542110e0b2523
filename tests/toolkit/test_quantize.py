"""Programs of pairs against integers that numpy computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from acmix.toolkit.catalog import load_recipe
from acmix.toolkit.grid import Grid, choose_grid
from acmix.toolkit.program import load_program, save_program
from acmix.toolkit.quantize import graph_module, integer_weight, quantize, rounded_weight, weight_scales
from acmix.toolkit.quantized import Calibrated, kept_float, quantize_program, simulate
from acmix.toolkit.ranges import QuantizedTensor, Range, Ranges
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.target import Array


class Linear(nn.Module):
    """One linear layer and its activation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu()


def _ranges(values: dict[str, tuple[float, float]]) -> Ranges:
    return Ranges({k: Range(*v) for k, v in values.items()}, {}, (), "minmax", "made up", 1, "")


def _quantized(module: nn.Module, x: Tensor, values: dict[str, tuple[float, float]]) -> tuple[Grid, Array]:
    program = torch.export.export(module.eval(), (x,))
    grid = choose_grid(graph_module(program).graph, _ranges(values))
    return grid, simulate(quantize(program, grid, (x,)))([x.numpy()])[0]


def test_a_layer_computes_what_its_integers_say() -> None:
    module, x = Linear(), torch.linspace(-1.5, 1.5, 12).reshape(2, 6)
    grid, found = _quantized(module, x, {"x": (-1.0, 1.0), "relu": (0.0, 1.2)})

    def to_integers(value: Array, tensor: QuantizedTensor) -> Array:
        rounded = np.rint(value / np.float32(tensor.scale)) + tensor.zero_point
        return np.clip(rounded, -128, 127).astype(np.int64)

    weight, bias = module.layer.weight.detach().numpy(), module.layer.bias.detach().numpy()
    scales = (np.abs(weight).max(1) / 127).astype(np.float32)
    integers = np.rint(weight / scales[:, None]).astype(np.int64)
    read, made = grid.tensors["x"], grid.tensors["relu"]
    units = scales.astype(np.float64) * read.scale
    sums = (to_integers(x.numpy(), read) - read.zero_point) @ integers.T + np.rint(bias / units).astype(np.int64)
    wanted = made.scale * (to_integers(np.maximum(sums * units, 0), made) - made.zero_point)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_each_channel_has_its_own_scale_and_none_meets_minus_128() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.0, 0.0], [1e-3, 5e-4]])
    scales = weight_scales(weight)
    integers = integer_weight(weight, scales)
    assert integers.tolist() == [[64, -127], [0, 0], [127, 64]]
    np.testing.assert_allclose(rounded_weight(weight)[2], [1e-3, 64e-3 / 127], rtol=1e-6)


def test_the_program_survives_its_file(tmp_path: Path) -> None:
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    program = torch.export.export(Linear().eval(), (x,))
    grid = choose_grid(graph_module(program).graph, _ranges({"x": (-2.0, 2.0), "relu": (0.0, 2.0)}))
    pairs = quantize(program, grid, (x,))
    save_program(pairs, tmp_path / "pairs.pt2")
    again = load_program(tmp_path / "pairs.pt2")
    np.testing.assert_array_equal(simulate(pairs)([x.numpy()])[0], simulate(again)([x.numpy()])[0])


def test_the_original_program_is_left_as_it_was() -> None:
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    module = Linear().eval()
    program = torch.export.export(module, (x,))
    grid = choose_grid(graph_module(program).graph, _ranges({"x": (-2.0, 2.0), "relu": (0.0, 2.0)}))
    quantize(program, grid, (x,))
    torch.testing.assert_close(graph_module(program)(x), module(x))


def test_a_weight_that_two_layers_read_stays_right_for_both() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    _, found = _quantized(Shared(), x, {"x": (-3.0, 3.0), "linear": (-2.0, 2.0), "linear_1": (-2.0, 2.0)})
    with torch.no_grad():
        wanted = Shared()(x).numpy()
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_what_stays_float_is_listed_with_its_reason() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y * y.softmax(-1))

    program = torch.export.export(Gated().eval(), (torch.zeros(2, 6),))
    graph = graph_module(program).graph
    values = {n.name: (-1.0, 1.0) for n in graph.nodes}
    grid = choose_grid(graph, _ranges(values), ("linear_1",))
    listed = {one.operator: one for one in kept_float(list(graph.nodes), grid, frozenset({"linear_1"}))}
    assert listed["linear.default"].reason == "kept float as asked"
    assert listed["linear.default"].modules == ("b",)
    assert "no int8 form" in listed["softmax.int"].reason
    assert set(listed) == {"linear.default", "softmax.int", "mul.Tensor"}


def test_a_channel_of_zeros_keeps_its_bias_in_an_int32() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)
            with torch.no_grad():
                self.layer.weight[1] = 0
                self.layer.bias.copy_(torch.tensor([0.1, 0.5, -0.2, 0.3]))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    x = torch.zeros(1, 3, 2, 2)
    program = torch.export.export(Dead().eval(), (x,))
    grid = choose_grid(graph_module(program).graph, _ranges({"x": (-2.0, 2.0), "conv2d": (-1.0, 1.0)}))
    pairs = graph_module(quantize(program, grid, (x,)))
    scales = next(value for name, value in pairs.named_buffers() if name.endswith("_scales"))
    units = scales.double() * grid.tensors["x"].scale
    assert (torch.tensor([0.1, 0.5, -0.2, 0.3]).double() / units).abs().max() < 2**31 - 1
    found = pairs(x)[0, :, 0, 0]
    torch.testing.assert_close(found, torch.tensor([0.1, 0.5, -0.2, 0.3]), atol=grid.tensors["conv2d"].scale, rtol=0)


class InPlace(nn.Module):
    """Activations and sums that write in place, a padding in words, and a norm's statistic made by a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding="same")
        self.relu, self.average = nn.ReLU(inplace=True), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.first(x))
        z = self.second(y)
        z += y
        z = self.relu(z)
        return z * torch.rsqrt(self.average(z * z) ** 2 + 1)


def _everything_from_minus_4_to_4(program: torch.export.ExportedProgram, recipe: Recipe, kept: object) -> Calibrated:
    return Calibrated(program, _ranges({n.name: (-4.0, 4.0) for n in graph_module(program).graph.nodes}))


def test_operators_in_place_and_paddings_in_words_become_integers_too() -> None:
    x = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    module = InPlace().eval()
    program = torch.export.export(module, (x,))
    made = quantize_program(program, load_recipe("w8a8"), _everything_from_minus_4_to_4)  # type: ignore[arg-type]
    assert made.grid.weights == {"conv2d", "conv2d_1"}
    assert {"relu", "relu_1"} <= made.grid.produced
    wanted = module(x).detach().numpy()
    assert np.abs(simulate(made.pairs)([x.numpy()])[0] - wanted).max() < 0.1


def test_a_layer_that_makes_a_statistic_stays_float_for_every_target() -> None:
    program = torch.export.export(InPlace().eval(), (torch.zeros(1, 3, 6, 6),))
    made = quantize_program(program, load_recipe("w8a8"), _everything_from_minus_4_to_4)  # type: ignore[arg-type]
    assert made.calibrated.kept == ("conv2d_2",)
    reasons = {one.operator: one.reason for one in made.kept_float}
    assert "statistic" in reasons["conv2d.default"]
