"""Bias correction: by hand for one layer, and the mean of every channel in a whole network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.calibration.bias import correct_bias
from acmix.calibration.layers import layers, read, write
from acmix.toolkit.errors import UsageError
from acmix.toolkit.program import copy_program, load_program, quiet, save_program
from acmix.toolkit.target import Array


@dataclass(frozen=True)
class Positive:
    """Noise whose mean is not 0: that is what bias correction is about."""

    shape: tuple[int, ...]
    count: int = 6
    name: str = "positive noise"
    labels: None = None
    digest: str = ""
    identifiers: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "identifiers", tuple(map(str, range(self.count))))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        rng = np.random.default_rng(0)
        return iter([(rng.random(self.shape, dtype=np.float32) + 0.5,) for _ in range(self.count)])


def captured(module: nn.Module, shape: tuple[int, ...]) -> ExportedProgram:
    with torch.no_grad(), quiet():
        return torch.export.export(module.eval(), (torch.zeros(shape),))


def coarse(layer: str, weight: Tensor) -> Tensor:
    """Three bits a channel: an error that can be seen."""
    scales = (weight.detach().abs().flatten(1).amax(1) / 3).clamp_min(1e-6).reshape(-1, *[1] * (weight.dim() - 1))
    return torch.round(weight.detach() / scales).clamp(-3, 3) * scales


def rounded(program: ExportedProgram) -> ExportedProgram:
    """The program with coarse weights."""
    made = copy_program(program)
    for layer in layers(made):
        write(made, layer.weight, coarse(layer.node.name, read(made, layer.weight).float()))
    return made


def outputs(program: ExportedProgram, samples: Positive) -> Tensor:
    module = program.module()
    with torch.no_grad():
        return torch.stack([module(torch.from_numpy(x)) for (x,) in samples])


def make_net(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=bias),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=bias),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5, bias=bias),
    )


def test_the_correction_of_one_layer_is_the_lost_weight_times_the_mean_input() -> None:
    torch.manual_seed(0)
    module, samples = nn.Linear(4, 3), Positive((2, 4))
    _, found = correct_bias(captured(module, (2, 4)), coarse, samples)
    mean = torch.stack([torch.from_numpy(x) for (x,) in samples]).mean((0, 1))
    wanted = (module.weight - coarse("", module.weight)).detach() @ mean
    torch.testing.assert_close(found["linear"].float(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_the_mean_of_every_output_is_the_float_ones(bias: bool, tmp_path: Path) -> None:
    samples = Positive((1, 3, 12, 12))
    program = captured(make_net(bias), (1, 3, 12, 12))
    made, found = correct_bias(program, coarse, samples)
    assert len(found) == 3
    wanted = outputs(program, samples).mean(0)
    plain = (outputs(rounded(program), samples).mean(0) - wanted).abs().max()
    corrected = (outputs(rounded(made), samples).mean(0) - wanted).abs().max()
    assert float(corrected) < 1e-5
    assert float(plain) > 1e-3
    save_program(made, tmp_path / "corrected.pt2")
    torch.testing.assert_close(outputs(load_program(tmp_path / "corrected.pt2"), samples), outputs(made, samples))


def test_the_given_program_and_all_weights_stay_as_they_are() -> None:
    program = captured(make_net(), (1, 3, 12, 12))
    before = {name: value.clone() for name, value in program.state_dict.items()}
    made, _ = correct_bias(program, coarse, Positive((1, 3, 12, 12)))
    for name, value in before.items():
        assert torch.equal(program.state_dict[name], value)
        assert torch.equal(made.state_dict[name], value) == name.endswith("weight")


def test_weights_that_lose_nothing_need_no_correction() -> None:
    program = captured(make_net(), (1, 3, 12, 12))
    _, found = correct_bias(program, lambda layer, weight: weight, Positive((1, 3, 12, 12)))
    assert all(not correction.any() for correction in found.values())


def test_rounded_activations_are_corrected_too() -> None:
    samples = Positive((1, 3, 12, 12))
    program = captured(make_net(), (1, 3, 12, 12))

    def clipped(node: str, value: Tensor) -> Tensor:
        return value.clamp(max=1.0) if node == "input_1" else value

    made, _ = correct_bias(program, lambda layer, weight: weight, samples, clipped)
    wanted = outputs(program, samples).mean(0)
    clipped_inputs = [torch.from_numpy(x).clamp(max=1.0) for (x,) in samples]
    with torch.no_grad():
        plain, corrected = (torch.stack([p.module()(x) for x in clipped_inputs]).mean(0) for p in (program, made))
    assert float((corrected - wanted).abs().max()) < 1e-5
    assert float((plain - wanted).abs().max()) > 1e-3


class SharedBias(nn.Module):
    """One bias for two layers: each gets its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.bias = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.linear(x, self.first.weight, self.bias)
        return torch.nn.functional.linear(x, self.second.weight, self.bias)


def test_a_bias_that_two_layers_share_becomes_two() -> None:
    torch.manual_seed(0)
    samples = Positive((1, 4))
    program = captured(SharedBias(), (1, 4))
    made, found = correct_bias(program, coarse, samples)
    assert len(found) == 2
    wanted = outputs(program, samples).mean(0)
    torch.testing.assert_close(outputs(rounded(made), samples).mean(0), wanted, rtol=1e-4, atol=1e-5)


def test_at_most_so_many_samples_are_used_spread_over_all() -> None:
    program = captured(nn.Linear(4, 3), (1, 4))
    samples = Positive((1, 4), count=40)
    _, found = correct_bias(program, coarse, samples, most=4)
    kept = [x for i, (x,) in enumerate(samples) if i % 10 == 0]

    @dataclass(frozen=True)
    class Kept(Positive):
        def __iter__(self) -> Iterator[tuple[Array, ...]]:
            return iter([(x,) for x in kept])

    _, wanted = correct_bias(program, coarse, Kept((1, 4), count=4))
    torch.testing.assert_close(found["linear"], wanted["linear"])


def test_samples_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match="the program takes"):
        correct_bias(captured(nn.Linear(4, 3), (1, 4)), coarse, Positive((1, 5)))
