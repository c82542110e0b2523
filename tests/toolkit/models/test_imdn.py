"""IMDN: exact published counts, the authors' keys, and its blocks written out by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from acmix.toolkit.models.imdn import (
    IMDN,
    MODELS,
    ContrastAttention,
    Distillation,
    HalfSizeIMDN,
    RealTimeIMDN,
    TwoPartFusion,
    for_inference,
    quarter_distillation,
)

Fill = Callable[[nn.Module], None]
State = dict[str, Tensor]

# Published with the authors' checkpoints.
PARAMETERS = {"imdn_x2": 694_404, "imdn_x3": 703_059, "imdn_x4": 715_176, "imdn_rtc": 20_190, "imdn_rte": 89_748}
# Published for a result of 1280 x 720, in units of 10^9.
GIGA_MACS = {"imdn_x2": 158.8, "imdn_x3": 71.5, "imdn_x4": 40.9}
SHAPES = {
    "imdn_x4": {
        "fea_conv.weight": (64, 3, 3, 3),
        "IMDB1.c1.weight": (64, 64, 3, 3),
        "IMDB1.c2.weight": (64, 48, 3, 3),
        "IMDB6.c4.weight": (16, 48, 3, 3),
        "IMDB6.c5.weight": (64, 64, 1, 1),
        "IMDB6.cca.conv_du.0.weight": (4, 64, 1, 1),
        "IMDB6.cca.conv_du.2.bias": (64,),
        "c.0.weight": (64, 384, 1, 1),
        "LR_conv.bias": (64,),
        "upsampler.0.weight": (48, 64, 3, 3),
    },
    "imdn_rtc": {
        "model.0.weight": (12, 3, 3, 3),
        "model.1.sub.0.c1.weight": (12, 12, 3, 3),
        "model.1.sub.4.c4.weight": (3, 9, 3, 3),
        "model.1.sub.4.c5.bias": (12,),
        "model.1.sub.5.weight": (12, 12, 1, 1),
        "model.2.weight": (12, 12, 3, 3),
    },
    "imdn_rte": {
        "fea_conv.0.bias": (20,),
        "fea_conv.2.weight": (20, 20, 3, 3),
        "block1.c4.weight": (15, 15, 3, 3),
        "block6.c5.weight": (10, 10, 3, 3),
        "block6.c6.weight": (5, 5, 3, 3),
        "block6.c7.weight": (20, 30, 1, 1),
        "LR_conv.weight": (20, 20, 1, 1),
        "upsampler.0.bias": (48,),
    },
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


def filled(module: nn.Module, fill: Fill) -> nn.Module:
    """The module with reference values, in float64, at evaluation."""
    fill(module)
    return module.double().eval()


def convolved(state: State, key: str, x: Tensor, stride: int = 1) -> Tensor:
    """The convolution of that name."""
    weight = state[f"{key}.weight"]
    return F.conv2d(x, weight, state.get(f"{key}.bias"), stride, weight.shape[-1] // 2)


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.05 * x)


def attention_by_hand(state: State, key: str, x: Tensor) -> Tensor:
    """Section 3.2, with torch's own standard deviation."""
    pixels = x.flatten(2)
    summary = (pixels.std(2, correction=0) + pixels.mean(2))[..., None, None]
    hidden = convolved(state, f"{key}.0", summary).clamp(min=0)
    return x * torch.sigmoid(convolved(state, f"{key}.2", hidden))


def block_by_hand(state: State, key: str, x: Tensor) -> Tensor:
    """Section 3.1: the block with a gate where the state dict has one."""
    kept = x.shape[1] // 4
    first, rest = leaky(convolved(state, f"{key}c1", x)).split((kept, 3 * kept), 1)
    second, rest = leaky(convolved(state, f"{key}c2", rest)).split((kept, 3 * kept), 1)
    third, rest = leaky(convolved(state, f"{key}c3", rest)).split((kept, 3 * kept), 1)
    y = torch.cat((first, second, third, convolved(state, f"{key}c4", rest)), 1)
    if f"{key}cca.conv_du.0.weight" in state:
        y = attention_by_hand(state, f"{key}cca.conv_du", y)
    return x + convolved(state, f"{key}c5", y)


def large_block_by_hand(state: State, key: str, x: Tensor) -> Tensor:
    """The block of IMDN-RTE: five channels are kept at each of six steps, ReLU after every one."""
    kept, rest = [], x
    for step in range(1, 6):
        y = convolved(state, f"{key}c{step}", rest).clamp(min=0)
        kept.append(y[:, :5])
        rest = y[:, 5:]
    kept.append(convolved(state, f"{key}c6", rest).clamp(min=0))
    return x + convolved(state, f"{key}c7", torch.cat(kept, 1))


def enlarged(maps: Tensor, factor: int) -> Tensor:
    """Row i and column j of each enlarged pixel of colour c from channel (c * factor + i) * factor + j."""
    batch, _, height, width = maps.shape
    picture = torch.empty(batch, 3, factor * height, factor * width, dtype=maps.dtype)
    for channel in range(maps.shape[1]):
        colour, place = divmod(channel, factor**2)
        row, column = divmod(place, factor)
        picture[:, colour, row::factor, column::factor] = maps[:, channel]
    return picture


@pytest.mark.parametrize("name", MODELS)
def test_the_parameters_are_exactly_the_published_ones(name: str) -> None:
    assert sum(p.numel() for p in MODELS[name].build().parameters()) == PARAMETERS[name]
    assert MODELS[name].claims.parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", GIGA_MACS)
def test_the_macs_for_a_picture_of_1280_by_720_are_the_published_ones(name: str) -> None:
    factor = int(name[-1])
    with torch.device("meta"):
        module = MODELS[name].build().eval()
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, 48, 48, device="meta"))
    a_pixel = (counter.get_total_flops() // 2) / 48**2
    pixels = math.ceil(1280 / factor) * math.ceil(720 / factor)
    assert round(a_pixel * pixels / 1e9, 1) == GIGA_MACS[name]


@pytest.mark.parametrize("name", SHAPES)
def test_the_keys_are_the_authors(name: str) -> None:
    state = MODELS[name].build().state_dict()
    assert {key: tuple(state[key].shape) for key in SHAPES[name]} == SHAPES[name]


def test_the_real_time_variant_has_biases_only_where_the_authors_has() -> None:
    keys = MODELS["imdn_rte"].build().state_dict()
    assert {key for key in keys if key.endswith("bias")} == {"fea_conv.0.bias", "upsampler.0.bias"}


def test_the_gate_sees_standard_deviation_plus_mean(fill: Fill) -> None:
    layer, x = filled(ContrastAttention(32), fill), noise(2, 32, 5, 7)
    assert relative_error(layer(x), attention_by_hand(layer.state_dict(), "conv_du", x)) < 1e-12


def test_the_contrast_of_a_large_bright_map_is_finite_in_float16(fill: Fill) -> None:
    layer = ContrastAttention(16)
    fill(layer)
    x = 20 * torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(0)) + 10
    assert float((x * x).sum((2, 3)).min()) > torch.finfo(torch.float16).max
    found = layer.half()(x.half())
    assert bool(torch.isfinite(found).all())
    wanted = layer.double()(x.half().double())
    assert relative_error(found.double(), wanted) < 0.02


@pytest.mark.parametrize("gated", [True, False])
def test_a_block_is_the_published_one(gated: bool, fill: Fill) -> None:
    block, x = filled(quarter_distillation(16, gated), fill), noise(2, 16, 6, 5)
    assert relative_error(block(x), block_by_hand(block.state_dict(), "", x)) < 1e-12


def test_the_block_of_the_half_size_variant_is_the_published_one(fill: Fill) -> None:
    block = HalfSizeIMDN().get_submodule("block1")
    assert isinstance(block, Distillation)
    filled(block, fill)
    x = noise(1, 20, 6, 5)
    assert relative_error(block(x), large_block_by_hand(block.state_dict(), "", x)) < 1e-12


def test_the_network_is_the_published_one(fill: Fill) -> None:
    module, x = filled(IMDN(3, channels=16), fill), noise(1, 3, 6, 5)
    state = module.state_dict()
    shallow = deep = convolved(state, "fea_conv", x)
    maps = []
    for i in range(1, 7):
        deep = block_by_hand(state, f"IMDB{i}.", deep)
        maps.append(deep)
    deep = convolved(state, "LR_conv", leaky(convolved(state, "c.0", torch.cat(maps, 1)))) + shallow
    wanted = enlarged(convolved(state, "upsampler.0", deep), 3)
    assert relative_error(module(x), wanted) < 1e-12


def test_the_real_time_network_is_the_published_one(fill: Fill) -> None:
    module, x = filled(RealTimeIMDN(), fill), noise(1, 3, 6, 5)
    state = module.state_dict()
    shallow = deep = convolved(state, "model.0", x)
    for i in range(5):
        deep = block_by_hand(state, f"model.1.sub.{i}.", deep)
    deep = convolved(state, "model.1.sub.5", deep) + shallow
    assert relative_error(module(x), enlarged(convolved(state, "model.2", deep), 2)) < 1e-12


def test_the_half_size_network_is_the_published_one(fill: Fill) -> None:
    module, x = filled(HalfSizeIMDN(), fill), noise(1, 3, 8, 6)
    state = module.state_dict()
    shallow = deep = convolved(state, "fea_conv.2", convolved(state, "fea_conv.0", x).clamp(min=0), stride=2)
    for i in range(1, 7):
        deep = large_block_by_hand(state, f"block{i}.", deep)
    wanted = enlarged(convolved(state, "upsampler.0", convolved(state, "LR_conv", deep) + shallow), 4)
    assert module(x).shape == (1, 3, 16, 12)
    assert relative_error(module(x), wanted) < 1e-12


@pytest.mark.parametrize(
    ("build", "fusions"),
    [(partial(IMDN, 2, channels=16), 1), (RealTimeIMDN, 0), (HalfSizeIMDN, 6)],
    ids=["x2", "rtc", "rte"],
)
def test_only_litert_joins_six_maps_in_two_parts(build: Callable[[], nn.Module], fusions: int, fill: Fill) -> None:
    source, x = filled(build(), fill), noise(1, 3, 8, 6)
    before = copy.deepcopy(source.state_dict())
    fused = for_inference(source, "tflite")
    assert sum(isinstance(layer, TwoPartFusion) for layer in fused.modules()) == fusions
    assert relative_error(fused(x), source(x)) < 1e-12
    kept = for_inference(source, "executorch")
    assert torch.equal(kept(x), source(x))
    assert not any(isinstance(layer, TwoPartFusion) for layer in kept.modules())
    for parameter in fused.parameters():
        parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
