"""Core ML's arithmetic between integers: against the package itself, by the reference evaluator, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.targets.coreml import TARGET, CoreMLOptions
from acmix.toolkit import catalog
from acmix.toolkit.half_kernels import half_number
from acmix.toolkit.quantized import simulate
from acmix.toolkit.spec import TensorSpec
from acmix.toolkit.target import LoweringJob

SHAPE = (1, 3, 32, 32)
NOISE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
Infer = Callable[[np.ndarray], np.ndarray]
PairsOf = Callable[[nn.Module, Tensor], ExportedProgram]


class Gated(nn.Module):
    """Sums with and without a relu, a hard swish, a gate and a sigmoid between layers of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, 1, 1)) for _ in range(4)
        )
        self.reduce, self.expand = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            x = F.relu(x + block(x)) if number % 2 else x + block(x)
        y = F.hardswish(self.depthwise(x))
        x = x + y * F.hardsigmoid(self.expand(F.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        return self.head(torch.sigmoid(x).mean((2, 3)))


class Scaled(nn.Module):
    """Products and sums with numbers that float16 does not have, and a softmax."""

    def forward(self, x: Tensor) -> Tensor:
        return (x / 3.3 - 0.7) * torch.softmax(0.3333 * x, 1)


@pytest.fixture(scope="module")
def gated(pairs_of: PairsOf, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportedProgram, Infer]:
    """A program of pairs, and its package."""
    torch.manual_seed(0)
    pairs = pairs_of(Gated(), NOISE)
    return pairs, lowered(pairs, TensorSpec("scores", (1, 10)), tmp_path_factory.mktemp("gated"))


def lowered(pairs: ExportedProgram, output: TensorSpec, folder: Path) -> Infer:
    image = TensorSpec("photo", SHAPE, layout="nchw")
    job = LoweringJob("net", catalog.load_recipe("w8a8"), (image,), (output,), CoreMLOptions())
    TARGET.lower(pairs, job, folder / "model.mlpackage")
    return lambda x: evaluated(folder / "model.mlpackage", x)


def evaluated(file: Path, x: np.ndarray) -> np.ndarray:
    assert TARGET.reference is not None
    with TARGET.reference(file) as run:
        return run([x])[0]


def photos(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    return [generator.standard_normal(SHAPE).astype(np.float32) for _ in range(count)]


def test_the_package_gives_every_bit_of_its_simulation(gated: tuple[ExportedProgram, Infer]) -> None:
    pairs, package = gated
    run = simulate(pairs, kernels="coreml")
    for x in photos(6):
        assert np.array_equal(run([x])[0], package(x))


@pytest.mark.parametrize("activation", [nn.Hardswish(), nn.Hardsigmoid(), nn.LeakyReLU(0.3), Scaled()])
def test_what_no_integer_follows_is_equal_too(activation: nn.Module, pairs_of: PairsOf, tmp_path: Path) -> None:
    """Behind integers a wrong constant would hide: mostly both values round to the same one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), activation)
    pairs = pairs_of(net, NOISE)
    package = lowered(pairs, TensorSpec("map", (1, 8, 32, 32), layout="nchw"), tmp_path)
    run, x = simulate(pairs, kernels="coreml"), 3 * photos(1)[0]
    assert np.array_equal(run([x])[0], package(x))


def test_float32_between_the_integers_does_not(gated: tuple[ExportedProgram, Infer]) -> None:
    """What the float16 arithmetic is for: else the test above would hold without it."""
    pairs, package = gated
    run = simulate(pairs)
    assert not any(np.array_equal(run([x])[0], package(x)) for x in photos(6))


def test_numbers_are_those_of_float16() -> None:
    assert half_number(1 / 3) == float(np.float16(1 / 3)) != 1 / 3
    assert half_number(2.0**-25) == 0.0
