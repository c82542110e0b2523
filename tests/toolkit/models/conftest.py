"""The deterministic fill and the reference outputs that every re-implemented network is held against."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

SPECS = Path(__file__).resolve().parents[4] / "shared" / "specs" / "manifests"
LEFT_ALONE = ("attn_mask", "_mask", "_count", "_stage", "sfr.index")
BIAS_TABLES = ("attention_biases", "relative_position_bias_table")


def filled(key: str, value: Tensor, n: int) -> Tensor:
    """What the rule puts in place of `value`, the n-th tensor of the sorted state dict."""
    s = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.37 + n).float().reshape(value.shape)
    if key.endswith("running_var"):
        return 1 + 0.3 * s
    if key.endswith(("running_mean", "bias")):
        return 0.1 * s
    if value.dim() >= 2 and not key.endswith(BIAS_TABLES):
        return s * math.sqrt(2 / (value.numel() / value.shape[0]))
    if key.endswith("weight"):
        return 1 + 0.1 * s
    if key.endswith(("rate1", "rate2")):
        return 0.5 + 0.1 * s
    return 0.1 * s


def filled_index(key: str, value: Tensor) -> Tensor | None:
    """The channel indices of CondenseNetV2, which the sine would leave without meaning."""
    if key.endswith("conv_1.index"):
        return (7 * torch.arange(value.numel()) + 3) % value.numel()
    if key.endswith("sfr.index"):
        rows = torch.arange(value.shape[0])
        matrix = torch.zeros_like(value)
        matrix[rows, (5 * rows + 1) % value.shape[1]] = 1
        return matrix
    return None


def fill_module(module: nn.Module) -> None:
    """Overwrite every float tensor of the state dict in place (seed_models.md, 0.3)."""
    with torch.no_grad():
        for n, (key, value) in enumerate(sorted(module.state_dict().items())):
            index = filled_index(key, value)
            if index is not None:
                value.copy_(index)
            elif value.is_floating_point() and not key.endswith(LEFT_ALONE):
                value.copy_(filled(key, value, n))


def sine_input(shape: tuple[int, ...]) -> Tensor:
    """The reference input of any shape whose product counts the elements: sin(0.01 i), float32."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 0.01).float().reshape(shape)


def read_spec(file: str) -> dict[str, Any]:
    """A JSON file of the shared specs, or a skip that says which one is missing."""
    path = SPECS / file
    if not path.is_file():
        pytest.skip(f"the reference file {file} is not beside this checkout (shared/specs/manifests)")
    decoded: dict[str, Any] = json.loads(path.read_text())
    return decoded


def multiply_accumulates(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Of every convolution and linear layer in one forward pass, from the shapes that come out of them."""
    counts: list[int] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            counts.append(output.numel() * layer.weight[0].numel())

    hooks = [layer.register_forward_hook(count) for layer in module.modules()]
    with torch.no_grad():
        module.eval()(torch.zeros(shape))
    for hook in hooks:
        hook.remove()
    return sum(counts)


@pytest.fixture(scope="session")
def macs() -> Callable[[nn.Module, tuple[int, ...]], int]:
    """macs(module, shape): multiply-accumulates of the convolutions and linear layers."""
    return multiply_accumulates


@pytest.fixture(scope="session")
def fill() -> Callable[[nn.Module], None]:
    """fill(module): every float tensor becomes the reference fill. Call .eval() after it."""
    return fill_module


@pytest.fixture(scope="session")
def golden_input() -> Callable[[tuple[int, ...]], Tensor]:
    """golden_input(shape): the input that the reference outputs were computed on."""
    return sine_input


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Any]]:
    """golden(name): params, keys, first8, sum, l2 and argmax of the reference network's output."""
    return lambda name: dict(read_spec("golden.json")[name])


@pytest.fixture(scope="session")
def manifest() -> Callable[[str], dict[str, list[Any]]]:
    """manifest(name): {key: [shape, dtype]} of the reference network's whole state dict."""
    return lambda name: read_spec(f"{name}.json")
