"""SimpleNet: the authors' keys and sizes, and a forward pass written out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from acmix.toolkit.models.simplenet import MODELS, SimpleNet

Fill = Callable[[nn.Module], None]

# Places in the authors' Sequential: convolution, norm, ReLU, dropout; pooling, dropout.
CONVOLUTIONS = (0, 4, 8, 12, 16, 20, 26, 30, 34, 38, 44, 48, 52)
POOLED_BEFORE = (26, 44)
# Millions of parameters in the authors' tables.
PUBLISHED = {"small_m1_05": 1.51, "small_m1_075": 3.29, "5m_m1": 5.75, "9m_m1": 9.51}


def by_hand(state: dict[str, Tensor], x: Tensor, strided: tuple[int, ...]) -> Tensor:
    """The published network straight from the state dict; `strided` are the convolutions of stride 2, from 0."""
    for index, place in enumerate(CONVOLUTIONS):
        if place in POOLED_BEFORE:
            x = F.max_pool2d(x, 2)
        weight = state[f"features.{place}.weight"]
        stride = 2 if index in strided else 1
        x = F.conv2d(x, weight, state[f"features.{place}.bias"], stride, weight.shape[-1] // 2)
        statistics = [
            state[f"features.{place + 1}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        ]
        x = F.batch_norm(x, *statistics).clamp(min=0)
    return F.linear(x.flatten(2).amax(2), state["classifier.weight"], state["classifier.bias"])


@pytest.mark.parametrize(("variant", "millions"), PUBLISHED.items())
def test_both_modes_of_a_width_have_the_published_parameters(variant: str, millions: float) -> None:
    shapes = []
    for name in (variant, variant.replace("m1", "m2")):
        with torch.device("meta"):
            module = MODELS[f"simplenetv1_{name}"].build()
        assert round(sum(p.numel() for p in module.parameters()) / 1e6, 2) == millions
        shapes.append({key: tuple(value.shape) for key, value in module.state_dict().items()})
    assert shapes[0] == shapes[1]


def test_the_keys_are_the_authors() -> None:
    state = MODELS["simplenetv1_5m_m2"].build().state_dict()
    kernels = {key: tuple(state[key].shape) for key in state if state[key].dim() == 4}
    assert tuple(kernels) == tuple(f"features.{place}.weight" for place in CONVOLUTIONS)
    assert kernels["features.0.weight"] == (64, 3, 3, 3)
    assert kernels["features.38.weight"] == (512, 256, 3, 3)
    assert kernels["features.44.weight"] == (2048, 512, 1, 1)
    assert kernels["features.48.weight"] == (256, 2048, 1, 1)
    assert kernels["features.52.weight"] == (256, 256, 3, 3)
    assert state["features.53.running_mean"].shape == (256,)
    assert state["classifier.weight"].shape == (1000, 256)


@pytest.mark.parametrize(("mode", "strided"), [(1, (0, 1, 2)), (2, (0, 1, 3))])
@pytest.mark.parametrize("size", [(64, 64), (97, 75)])
def test_the_forward_pass_is_the_published_one_in_float64(
    mode: int, strided: tuple[int, ...], size: tuple[int, int], fill: Fill
) -> None:
    module = SimpleNet(scale=0.125, mode=mode, classes=10)
    fill(module)
    module.double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = by_hand(module.state_dict(), x, strided)
        assert float((module(x) - wanted).abs().max()) < 1e-12 * float(wanted.abs().max())


def test_the_faster_mode_has_a_fifth_fewer_multiply_accumulates() -> None:
    counts = []
    for mode in (1, 2):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            SimpleNet(mode=mode).eval()(torch.zeros(1, 3, 224, 224))
        counts.append(counter.get_total_flops() // 2)
    # The third convolution and no other gives a map of 28 x 28 instead of 56 x 56: 9 * 128 * 128 products a pixel.
    assert counts[1] - counts[0] == 9 * 128 * 128 * (56**2 - 28**2)
