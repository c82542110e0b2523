"""MobileNetV2: torchvision's keys, the published size, and a forward pass written out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.models.mobilenet_v2 import MODELS, MobileNetV2

Fill = Callable[[nn.Module], None]
Macs = Callable[[nn.Module, tuple[int, ...]], int]

# Of torchvision's mobilenet_v2().state_dict(): one of each kind of position.
TORCHVISION_SHAPES = {
    "features.0.0.weight": (32, 3, 3, 3),
    "features.0.1.running_mean": (32,),
    "features.1.conv.0.0.weight": (32, 1, 3, 3),
    "features.1.conv.1.weight": (16, 32, 1, 1),
    "features.1.conv.2.running_var": (16,),
    "features.2.conv.0.0.weight": (96, 16, 1, 1),
    "features.2.conv.1.0.weight": (96, 1, 3, 3),
    "features.2.conv.1.1.weight": (96,),
    "features.2.conv.2.weight": (24, 96, 1, 1),
    "features.2.conv.3.bias": (24,),
    "features.14.conv.2.weight": (160, 576, 1, 1),
    "features.17.conv.2.weight": (320, 960, 1, 1),
    "features.18.0.weight": (1280, 320, 1, 1),
    "features.18.1.num_batches_tracked": (),
    "classifier.1.weight": (1000, 1280),
    "classifier.1.bias": (1000,),
}


def test_the_keys_are_torchvisions() -> None:
    state = MODELS["mobilenet_v2"].build().state_dict()
    assert len(state) == 314
    assert {key: tuple(state[key].shape) for key in TORCHVISION_SHAPES} == TORCHVISION_SHAPES


def test_the_multiply_accumulates_are_torchvisions(macs: Macs) -> None:
    assert macs(MODELS["mobilenet_v2"].build(), (1, 3, 224, 224)) == 300_774_272


def by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published network straight from the state dict, one line a layer."""

    def layer(conv: str, norm: str, x: Tensor, stride: int = 1, active: bool = True) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])
        statistics = [state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(x, *statistics, eps=1e-5)
        return x.clamp(0, 6) if active else x

    x = layer("features.0.0", "features.0.1", x, 2)
    x = layer("features.1.conv.0.0", "features.1.conv.0.1", x)
    x = layer("features.1.conv.1", "features.1.conv.2", x, active=False)
    for block in range(2, 18):
        name, stride = f"features.{block}.conv", 2 if block in (2, 4, 7, 14) else 1
        y = layer(f"{name}.0.0", f"{name}.0.1", x)
        y = layer(f"{name}.1.0", f"{name}.1.1", y, stride)
        y = layer(f"{name}.2", f"{name}.3", y, active=False)
        x = y if block in (2, 4, 7, 11, 14, 17) else x + y
    x = layer("features.18.0", "features.18.1", x)
    return F.linear(x.mean((2, 3)), state["classifier.1.weight"], state["classifier.1.bias"])


@pytest.mark.parametrize("size", [64, 97])
def test_the_forward_pass_is_the_published_one_in_float64(
    fill: Fill, golden_input: Callable[[tuple[int, ...]], Tensor], size: int
) -> None:
    module = MobileNetV2().double()
    fill(module)
    module.eval()
    x = golden_input((2, 3, size, size)).double()
    expected = by_hand(dict(module.state_dict()), x)
    with torch.no_grad():
        assert torch.allclose(module(x), expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def test_random_logits_have_a_scale_and_follow_the_input() -> None:
    torch.manual_seed(0)
    module = MobileNetV2().eval()
    with torch.no_grad():
        logits = module(torch.randn(2, 3, 96, 96))
    assert 0.1 < float(logits.std()) < 100
    assert float((logits[0] - logits[1]).std()) > 0.05


def test_width_and_classes_are_free() -> None:
    with torch.no_grad():
        assert MobileNetV2(width=0.25, classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
