"""ECA-MobileNetV2: the authors' keys and both published counts explained, the attention by hand, its exported form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from acmix.toolkit.models.eca_mobilenet_v2 import (
    MODELS,
    ChannelAttention,
    ECAMobileNetV2,
    FusedChannelAttention,
    for_inference,
)
from acmix.toolkit.models.mobilenet_v2 import MobileNetV2

Fill = Callable[[nn.Module], None]
MEBI = 2**20

# Of the authors' network: MobileNetV2's own positions, and the attention that follows the last norm of a block.
SHAPES = {
    "features.0.0.weight": (32, 3, 3, 3),
    "features.1.conv.1.weight": (16, 32, 1, 1),
    "features.1.conv.3.conv.weight": (1, 1, 1),
    "features.2.conv.3.bias": (24,),
    "features.13.conv.4.conv.weight": (1, 1, 1),
    "features.14.conv.4.conv.weight": (1, 1, 3),
    "features.17.conv.4.conv.weight": (1, 1, 3),
    "classifier.1.weight": (1000, 1280),
}


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Iterator[None]:
    """Nothing here is trained."""
    with torch.no_grad():
        yield


def noise(*shape: int) -> Tensor:
    """Normal float64 values, the same every time."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest magnitude."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def gate_by_hand(x: Tensor, taps: list[float]) -> Tensor:
    """Each channel by the sigmoid of the taps times the means of its neighbours, one channel at a time."""
    y, reach = torch.empty_like(x), len(taps) // 2
    for image in range(x.shape[0]):
        means = [float(x[image, c].mean()) for c in range(x.shape[1])]
        for c in range(x.shape[1]):
            seen = [(c + k - reach, tap) for k, tap in enumerate(taps)]
            total = sum(means[n] * tap for n, tap in seen if 0 <= n < len(means))
            y[image, c] = x[image, c] / (1 + torch.exp(torch.tensor(-total, dtype=torch.float64)))
    return y


def test_the_keys_are_the_authors() -> None:
    state = MODELS["eca_mobilenet_v2"].build().state_dict()
    assert {key: tuple(state[key].shape) for key in SHAPES} == SHAPES
    assert len(state) == 314 + 17


def test_both_published_counts_are_explained() -> None:
    """3.34 M and 319.9 M, in units of 2^20, by a tool that counts norms, ReLU6, pooling and additions as well."""
    module = ECAMobileNetV2().eval()
    parameters = sum(p.numel() for p in module.parameters())
    assert f"{parameters / MEBI:.2f}" == "3.34"
    extra: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        match layer:
            case nn.BatchNorm2d():
                extra.append(4 * output.numel())
            case nn.ReLU6():
                extra.append(output.numel())
            case ChannelAttention():
                extra.append(inputs[0].numel() + inputs[0].shape[1])
            case nn.Linear():
                extra.append(output.numel() * (layer.in_features - 1))

    for layer in module.modules():
        layer.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, 224, 224))
    assert f"{(counter.get_total_flops() // 2 + sum(extra)) / MEBI:.1f}" == "319.9"


@pytest.mark.parametrize("taps", [[0.7], [0.5, -1.5, 0.25]])
def test_the_attention_looks_at_neighbouring_channels(taps: list[float]) -> None:
    layer = ChannelAttention(len(taps)).double()
    layer.conv.weight.copy_(torch.tensor(taps, dtype=torch.float64))
    x = noise(2, 7, 3, 4) + 0.5
    wanted = gate_by_hand(x, taps)
    assert relative_error(layer(x), wanted) < 1e-12
    assert relative_error(FusedChannelAttention(layer)(x), wanted) < 1e-12


def test_attention_that_passes_everything_leaves_mobilenet_v2(fill: Fill) -> None:
    module = ECAMobileNetV2()
    fill(module)
    plain = MobileNetV2()
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if not k.endswith(".conv.weight")})
    for layer in module.modules():
        if isinstance(layer, ChannelAttention):
            layer.register_forward_hook(lambda _, inputs, __: inputs[0])
    x = noise(1, 3, 64, 64)
    assert torch.equal(module.double().eval()(x), plain.double().eval()(x))


def test_the_inference_form_is_the_same_network(fill: Fill) -> None:
    source = ECAMobileNetV2()
    fill(source)
    source.double().eval()
    before = copy.deepcopy(source.state_dict())
    fused, x = for_inference(source, "onnx"), noise(1, 3, 64, 96)
    assert relative_error(fused(x), source(x)) < 1e-12
    assert not any(isinstance(layer, nn.Conv1d | ChannelAttention) for layer in fused.modules())
    for parameter in fused.parameters():
        parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())


def test_a_bright_channel_changes_the_gate_of_its_neighbour_only_in_wide_blocks() -> None:
    module = ECAMobileNetV2()
    kernels = [layer.conv.kernel_size[0] for layer in module.modules() if isinstance(layer, ChannelAttention)]
    assert kernels == [1] * 13 + [3] * 4
