"""LSNet: the authors' names and numbers, an independent reading of the paper, and an equal exported form."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.errors import UsageError
from acmix.toolkit.models._lsnet_convolution import (
    FusedLSConv,
    LSConv,
    RowBands,
    small_kernel_aggregation,
    tap_major_aggregation,
)
from acmix.toolkit.models._lsnet_layers import Attention, ConvBN, FusedAttention, RepVGGDW, distance_indices
from acmix.toolkit.models.lsnet import (
    MODELS,
    BNLinear,
    FusedLSNet,
    LSNet,
    for_inference,
    resize_attention_biases,
    silence_pointwise_branches,
)
from acmix.toolkit.source import at_inputs
from acmix.toolkit.spec import ModelSpec, TensorSpec
from acmix.toolkit.weights import load_weights

Fill = Callable[[nn.Module], None]
IMAGE = (1, 3, 224, 224)


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Any:
    """Nothing here is trained."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def naive() -> ModuleType:
    """The benchmark's stock port, which shares no code with ours."""
    path = Path(__file__).parents[2] / "benchmarks" / "naive" / "lsnet.py"
    spec = importlib.util.spec_from_file_location("naive_lsnet", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(*shape: int) -> Tensor:
    """Normal float64 values, the same every time."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest magnitude."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def filled(layer: nn.Module, fill: Fill) -> nn.Module:
    """The layer with reference values, in float64, at evaluation."""
    fill(layer)
    return layer.double().eval()


def small(size: tuple[int, int] = (96, 128), distilled: bool = False) -> LSNet:
    """Every kind of block of every stage, in a tenth of the work."""
    return LSNet((32, 64, 96, 128), (1, 2, 2, 2), distilled, size, classes=10)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_the_authors_name_shape_and_order(
    name: str, manifest: Callable[[str], dict[str, list[Any]]]
) -> None:
    ours = {
        k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in MODELS[name].build().state_dict().items()
    }
    assert list(ours.items()) == list(manifest(name).items())


@pytest.mark.parametrize("name", MODELS)
def test_the_parameters_are_as_many_as_claimed(name: str) -> None:
    assert sum(p.numel() for p in MODELS[name].build().parameters()) == MODELS[name].claims.parameters


# LSNet-B's reference output was computed in float32, where this fill (values near 1e6 after 48 residuals)
# leaves 1e-3 to 7e-3 of rounding noise whatever the order of operations; float64 tells more.
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("lsnet_t", torch.float32, 3e-4),
        ("lsnet_s_distill", torch.float32, 3e-4),
        ("lsnet_b", torch.float64, 1e-3),
    ],
)
def test_the_outputs_are_those_of_the_authors_code(
    name: str,
    dtype: torch.dtype,
    tolerance: float,
    fill: Fill,
    golden_input: Callable[[tuple[int, ...]], Tensor],
    golden: Callable[[str], dict[str, Any]],
) -> None:
    module = MODELS[name].build()
    fill(module)
    logits = module.to(dtype).eval()(golden_input(IMAGE).to(dtype))[0]
    reference = golden(name)
    assert float((logits[:8] - torch.tensor(reference["first8"])).abs().max() / logits.abs().max()) < tolerance
    assert int(logits.argmax()) == reference["argmax"]
    assert float(logits.norm()) == pytest.approx(reference["l2"], rel=1e-3)


@pytest.mark.parametrize("channels", [16, 40])
def test_the_aggregation_is_an_unfolded_weighted_sum(channels: int) -> None:
    sets, height, width = channels // 8, 5, 6
    x, kernels = noise(2, channels, height, width), noise(2, sets, 9, height, width).flip(0)
    patches = F.unfold(x, 3, padding=1).view(2, 8, sets, 9, height, width)
    wanted = torch.einsum("bgskhw,bskhw->bgshw", patches, kernels).reshape(x.shape)
    assert relative_error(small_kernel_aggregation(x, kernels), wanted) < 1e-14
    tap_major = kernels[:1].transpose(1, 2).reshape(1, 9 * sets, height, width)
    assert relative_error(tap_major_aggregation(x[:1], tap_major), wanted[:1]) < 1e-14


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7), (9, 12)])
def test_three_bands_of_rows_are_one_7x7_depthwise_convolution(size: tuple[int, int]) -> None:
    x, weight, bias = noise(1, 4, *size), noise(4, 1, 7, 7), noise(4)
    wanted = F.conv2d(x, weight, bias, padding=3, groups=4)
    assert relative_error(RowBands(weight, bias, torch.float64)(x), wanted) < 1e-14


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (ConvBN(6, 10, 3, stride=2), (1, 6, 7, 9)),
        (RepVGGDW(6), (1, 6, 5, 4)),
        (LSConv(16), (1, 16, 6, 5)),
        (LSConv(40), (1, 40, 1, 2)),
        (Attention(32, (3, 2)), (1, 32, 3, 2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_fused_layer_equals_its_source_in_float64(layer: Any, shape: tuple[int, ...], fill: Fill) -> None:
    source = filled(copy.deepcopy(layer), fill)
    fused = source.fused()  # type: ignore[operator]
    assert relative_error(fused(noise(*shape)), source(noise(*shape))) < 1e-12


def test_a_group_norm_without_gain_leaves_the_static_kernels(fill: Fill) -> None:
    layer = LSConv(16)
    filled(layer, fill)
    layer.lkp.norm.weight[::2] = 0
    assert relative_error(FusedLSConv(layer)(noise(1, 16, 6, 5)), layer(noise(1, 16, 6, 5))) < 1e-12


@pytest.mark.parametrize("distilled", [False, True])
def test_the_inference_form_is_the_same_network(distilled: bool, fill: Fill) -> None:
    source = filled(small(distilled=distilled), fill)
    x = noise(1, 3, 96, 128)
    assert relative_error(for_inference(source)(x), source(x)) < 1e-12
    single = source.float()
    assert relative_error(for_inference(single)(x.float()), single(x.float())) < 1e-4


def test_the_whole_of_lsnet_t_is_the_same_network(fill: Fill, naive: ModuleType) -> None:
    source = filled(MODELS["lsnet_t"].build(), fill)
    stock = naive.NaiveLSNet("lsnet_t").double().eval()
    stock.load_state_dict(source.state_dict())
    x = noise(*IMAGE)
    wanted = source(x)
    assert relative_error(stock(x), wanted) < 1e-12
    assert relative_error(for_inference(source)(x), wanted) < 1e-12


def test_the_inference_form_leaves_its_source_and_the_random_numbers_alone() -> None:
    source = small().eval()
    before = copy.deepcopy(source.state_dict())
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    fused = for_inference(source)
    assert torch.equal(torch.rand(1), wanted)
    for parameter in fused.parameters():
        parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    assert all(parameter.requires_grad for parameter in source.parameters())


def test_nothing_but_fused_layers_is_left_for_inference() -> None:
    fused = for_inference(small(distilled=True).eval())
    kinds = {type(module) for module in fused.modules()}
    assert isinstance(fused, FusedLSNet) and not fused.training
    assert {FusedLSConv, FusedAttention} < kinds
    assert not kinds & {nn.BatchNorm2d, nn.BatchNorm1d, nn.GroupNorm, ConvBN, RepVGGDW, LSConv, Attention, BNLinear}
    assert max(p.dim() for p in fused.parameters()) <= 4


@pytest.mark.parametrize("name", MODELS)
def test_only_the_large_networks_may_lack_their_pointwise_branches(name: str) -> None:
    spec = MODELS[name]
    state = {key: value for key, value in spec.build().state_dict().items() if ".mixer.conv1." not in key}
    module = spec.build()
    if not name.startswith("lsnet_b"):
        with pytest.raises(UsageError, match="missing"):
            load_weights(module, spec, state)
        return
    report = load_weights(module, spec, state)
    branches = [layer.conv1 for layer in module.modules() if isinstance(layer, RepVGGDW)]
    assert len(report.tolerated) == 5 * len(branches) == 5 * 14
    # 15,360 parameters: the gap between the authors' training logs and their code.
    assert sum(p.numel() for branch in branches for p in branch.parameters()) == 15_360
    assert all(torch.equal(b.eval()(x := torch.randn(1, b.c.in_channels, 3, 3)), torch.zeros_like(x)) for b in branches)


def test_half_a_branch_is_refused() -> None:
    module = small()
    with pytest.raises(UsageError, match=r"blocks1\.0\.mixer\.conv1\.c\.weight but not the rest"):
        silence_pointwise_branches(module, frozenset({"blocks1.0.mixer.conv1.bn.weight"}))


def at_size(spec: ModelSpec, height: int, width: int) -> ModelSpec:
    """The spec for another input."""
    return at_inputs(spec, (TensorSpec("image", (1, 3, height, width), layout="nchw"),))


def test_a_checkpoint_of_224_loads_at_another_size() -> None:
    state = MODELS["lsnet_t"].build().state_dict()
    key = "blocks4.3.mixer.m.attention_biases"
    # A bias that grows with |dx| alone still does so after resizing.
    state[key] = torch.arange(4.0).repeat(4, 4)
    spec = at_size(MODELS["lsnet_t"], 256, 384)
    module = spec.build()
    load_weights(module, spec, state)
    resized = module.state_dict()[key].view(4, 4, 6)
    assert torch.equal(resized, resized[:, :1].expand_as(resized))
    assert bool((resized.diff(dim=2) > 0).all())
    x = noise(1, 3, 256, 384)
    module.double().eval()
    assert relative_error(for_inference(module)(x), module(x)) < 1e-10
    assert spec.preprocess is not None and spec.preprocess.crop == (256, 384)


def test_at_its_own_size_a_checkpoint_stays_as_it_is() -> None:
    state = small((224, 224)).state_dict()
    adapted = resize_attention_biases(state, (224, 224))
    assert all(torch.equal(adapted[key], state[key]) for key in state)


def test_a_table_of_biases_that_is_no_square_is_refused() -> None:
    with pytest.raises(UsageError, match="no square"):
        resize_attention_biases({"m.attention_biases": torch.zeros(4, 12)}, (224, 224))


def test_distances_count_rows_times_columns() -> None:
    assert distance_indices((2, 3))[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert distance_indices((2, 3))[5].tolist() == [5, 4, 3, 2, 1, 0]
