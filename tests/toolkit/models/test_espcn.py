"""ESPCN: the keys and counts of PyTorch's example, and where each sub-pixel goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.models.espcn import ESPCN, MODELS

Fill = Callable[[nn.Module], None]

SHAPES_X3 = {
    "conv1.weight": (64, 1, 5, 5),
    "conv1.bias": (64,),
    "conv2.weight": (64, 64, 3, 3),
    "conv2.bias": (64,),
    "conv3.weight": (32, 64, 3, 3),
    "conv3.bias": (32,),
    "conv4.weight": (9, 32, 3, 3),
    "conv4.bias": (9,),
}


def by_hand(state: dict[str, Tensor], x: Tensor, factor: int) -> Tensor:
    """Four convolutions, then row i and column j of each enlarged pixel from channel i * factor + j."""
    for number in (1, 2, 3, 4):
        weight = state[f"conv{number}.weight"]
        x = F.conv2d(x, weight, state[f"conv{number}.bias"], padding=weight.shape[-1] // 2)
        x = x.clamp(min=0) if number < 4 else x
    picture = torch.empty(x.shape[0], 1, factor * x.shape[2], factor * x.shape[3], dtype=x.dtype)
    for row in range(factor):
        for column in range(factor):
            picture[:, 0, row::factor, column::factor] = x[:, row * factor + column]
    return picture


def test_the_keys_are_those_of_pytorchs_example() -> None:
    state = MODELS["espcn_x3"].build().state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == SHAPES_X3


@pytest.mark.parametrize(("name", "parameters"), [("espcn_x2", 58_212), ("espcn_x3", 59_657), ("espcn_x4", 61_680)])
def test_the_parameters_follow_from_the_shapes(name: str, parameters: int) -> None:
    assert sum(p.numel() for p in MODELS[name].build().parameters()) == parameters


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_forward_pass_is_the_published_one_in_float64(factor: int, fill: Fill) -> None:
    module = ESPCN(factor)
    fill(module)
    module.double().eval()
    x = torch.randn(2, 1, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = by_hand(module.state_dict(), x, factor)
        assert module(x).shape == (2, 1, 7 * factor, 5 * factor)
        assert float((module(x) - wanted).abs().max()) < 1e-12 * float(wanted.abs().max())


def test_four_channels_become_two_rows_of_two() -> None:
    pixels = torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [4.0, 8.0]]).view(1, 4, 1, 2)
    assert ESPCN(2).pixel_shuffle(pixels).tolist() == [[[[1, 2, 5, 6], [3, 4, 7, 8]]]]
