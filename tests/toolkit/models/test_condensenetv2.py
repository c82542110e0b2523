"""CondenseNetV2: the authors' names and numbers, both forms of a checkpoint, and an equal exported form."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.errors import UsageError
from acmix.toolkit.models import _condensenetv2_algebra as algebra
from acmix.toolkit.models._condensenetv2_checkpoint import released_form
from acmix.toolkit.models._condensenetv2_fused import FusedLayer, FusedStem
from acmix.toolkit.models._condensenetv2_grouped import grouped_convolution
from acmix.toolkit.models._condensenetv2_layers import DenseLayer, Form, LearnedGroupConv, MaskedConv, Reactivation
from acmix.toolkit.models.condensenetv2 import MODELS, A, B, C, CondenseNetV2, Variant, for_inference
from acmix.toolkit.weights import load_weights

Fill = Callable[[nn.Module], None]
IMAGE = (1, 3, 224, 224)
VARIANTS = {"a": A, "b": B, "c": C}
SMALL = Variant((1, 2, 1, 2, 1), (4, 4, 8, 16, 16), 4, 12)
DEEP_START = replace(SMALL, stages=(2, 1, 1, 1, 1))


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Any:
    """Nothing here is trained."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def naive() -> ModuleType:
    """The benchmark's stock port, which shares no code with ours."""
    path = Path(__file__).parents[2] / "benchmarks" / "naive" / "condensenetv2.py"
    spec = importlib.util.spec_from_file_location("naive_condensenetv2", path)
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


def vary_norms(module: nn.Module) -> None:
    """Batch norms of every kind, negative and zero scales among them; a channel's copies stay equal."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for name in ("weight", "bias", "running_mean"):
                layer.state_dict()[name].normal_(generator=generator)
            layer.weight[0] = 0
            layer.state_dict()["running_var"].uniform_(0.5, 1.5, generator=generator)
    for layer in module.modules():
        if isinstance(layer, LearnedGroupConv):
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensor = layer.norm.state_dict()[name]
                tensor.copy_(tensor[layer.index])


def small(variant: Variant = SMALL, form: Form = "converted") -> CondenseNetV2:
    """Every kind of layer in a hundredth of the work, in float64, at evaluation."""
    torch.manual_seed(0)
    module = CondenseNetV2(variant, form, classes=10).double().eval()
    vary_norms(module)
    return module


def prune(module: nn.Module, groups: int) -> None:
    """Masks as they are at the end of training: one channel in `groups` is left to each group."""
    generator = torch.Generator().manual_seed(2)
    for name, layer in module.named_modules():
        if isinstance(layer, MaskedConv):
            mask = layer.get_buffer("_mask")
            mask.zero_()
            rows = mask if name.endswith("conv_1") else mask.transpose(0, 1)
            for group in range(groups):
                kept = torch.randperm(rows.shape[1], generator=generator)[: rows.shape[1] // groups]
                rows[group::groups, kept] = 1


@pytest.mark.parametrize("form", ["trained", "converted"])
@pytest.mark.parametrize("letter", VARIANTS)
def test_every_tensor_has_the_authors_name_shape_and_order(
    letter: str, form: Form, manifest: Callable[[str], dict[str, list[Any]]]
) -> None:
    state = CondenseNetV2(VARIANTS[letter], form).state_dict().items()
    ours = {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in state}
    name = f"cdnv2_{letter}" if form == "trained" else f"converted_cdnv2_{letter}"
    assert list(ours.items()) == list(manifest(name).items())


@pytest.mark.parametrize("name", ["cdnv2_a", "converted_cdnv2_a", "converted_cdnv2_b", "cdnv2_c"])
def test_the_outputs_are_those_of_the_authors_code(
    name: str,
    fill: Fill,
    golden_input: Callable[[tuple[int, ...]], Tensor],
    golden: Callable[[str], dict[str, Any]],
) -> None:
    module = CondenseNetV2(VARIANTS[name[-1]], "converted" if name.startswith("converted") else "trained")
    fill(module)
    logits = module.eval()(golden_input(IMAGE))[0]
    reference = golden(name)
    assert float((logits[:8] - torch.tensor(reference["first8"])).abs().max() / logits.abs().max()) < 3e-4
    assert int(logits.argmax()) == reference["argmax"]
    assert float(logits.norm()) == pytest.approx(reference["l2"], rel=1e-3)
    assert sum(p.numel() for p in module.parameters()) == reference["params"]


@pytest.mark.parametrize("name", MODELS)
def test_the_multiplications_are_those_of_the_published_code(
    name: str, macs: Callable[[nn.Module, tuple[int, ...]], int]
) -> None:
    assert round(macs(MODELS[name].build(), IMAGE), -5) == MODELS[name].claims.macs


def test_the_whole_of_a_is_the_same_network(fill: Fill, naive: ModuleType) -> None:
    source = MODELS["condensenetv2_a"].build()
    # The reference fill gives copies of one channel different batch norms, which no released file does.
    fill(source)
    stock = naive.NAIVE["condensenetv2_a"]()
    stock.load_state_dict(source.state_dict())
    source, x = source.double().eval(), noise(*IMAGE)
    assert relative_error(source(x), wanted := stock.double().eval()(x)) < 1e-12
    assert relative_error(for_inference(source, "tflite")(x), wanted) < 1e-12


@pytest.mark.parametrize("target", ["tflite", "onnx"])
@pytest.mark.parametrize("form", ["trained", "converted"])
@pytest.mark.parametrize("variant", [SMALL, DEEP_START], ids=["one layer first", "two layers first"])
def test_the_inference_form_is_the_same_network(variant: Variant, form: Form, target: str) -> None:
    source = small(variant, form)
    for size in ((64, 96), (63, 66), (65, 97), (66, 95)):
        x = noise(2, 3, *size)
        assert relative_error(for_inference(source, target)(x), source(x)) < 1e-11


def test_in_float32_the_inference_form_differs_by_rounding_only() -> None:
    source = small().float()
    x, fused = noise(1, 3, 64, 96).float(), for_inference(source, "tflite")
    assert {p.dtype for p in fused.parameters()} == {torch.float32}
    assert relative_error(fused(x), source(x)) < 1e-4


@pytest.mark.parametrize("variant", [SMALL, DEEP_START])
def test_a_checkpoint_of_training_loads_into_the_released_form(variant: Variant) -> None:
    trained = small(variant, "trained")
    prune(trained, variant.groups)
    spec = replace(MODELS["condensenetv2_a"], adapt_checkpoint=lambda s: released_form(s, variant.groups))
    released = CondenseNetV2(variant, classes=10).double().eval()
    assert load_weights(released, spec, trained.state_dict()).complete
    x = noise(1, 3, 64, 96)
    assert relative_error(released(x), wanted := trained(x)) < 1e-12
    fused = for_inference(released, "tflite")
    assert relative_error(fused(x), wanted) < 1e-11
    forms = {layer.chosen_form for layer in fused.modules() if isinstance(layer, FusedLayer)}
    assert forms == {"gather in the weights"}


def test_a_checkpoint_of_the_released_form_stays_as_it_is() -> None:
    state = small().state_dict()
    adapted = released_form(state, SMALL.groups)
    assert list(adapted) == list(state) and all(adapted[k] is state[k] for k in state)


def test_masks_that_are_not_those_of_the_released_network_are_refused() -> None:
    module = small(form="trained")
    with pytest.raises(UsageError, match=r"conv_1 is not pruned to the end: a group still keeps 8 of 8 .* and 2 are"):
        released_form(module.state_dict(), SMALL.groups)
    prune(module, SMALL.groups)
    with pytest.raises(UsageError, match="5 groups cannot share"):
        released_form(module.state_dict(), 5)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("conv_1.index", lambda t: t + t.numel(), "between 0 and 7"),
        ("conv_1.index", lambda t: -1 - t, "between 0 and 7"),
        ("conv_1.index", lambda t: t.double(), "as integers"),
        ("sfr.index", lambda t: t * 0.5, "single 1 in each row"),
        ("sfr.index", lambda t: t * 0, "single 1 in each row"),
        ("sfr.index", lambda t: t.clamp_min(1), "single 1 in each row"),
        ("sfr.index", lambda t: t[:4], "square"),
    ],
)
def test_an_index_that_is_none_is_refused(key: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    state = dict(small().state_dict())
    whole = f"features.denseblock_1.denselayer_1.{key}"
    state[whole] = change(state[whole])
    with pytest.raises(UsageError, match=message):
        released_form(state, SMALL.groups)


def grouped(inputs: int, outputs: int, groups: int) -> nn.Conv2d:
    """A grouped 3 x 3 convolution in float64."""
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False).double()


@pytest.mark.parametrize("size", [(6, 4), (5, 4), (4, 7), (5, 1)])
@pytest.mark.parametrize(
    ("convolution", "target", "form"),
    [
        (grouped(32, 8, 8), "tflite", "1 x depthwise 3 x 3, then 1 x 1"),
        (grouped(48, 12, 6), "onnx", "2 x depthwise 3 x 3, then 1 x 1"),
        (grouped(96, 24, 6), "executorch", "tiles of 2 x 2"),
        (grouped(128, 32, 8), "onnx", "2 groups of 3 x 3"),
        (grouped(64, 16, 4), "onnx", "dense 3 x 3"),
        (grouped(256, 64, 2), "tflite", "2 groups of 3 x 3"),
    ],
)
def test_each_form_of_a_grouped_convolution_is_the_same(
    convolution: nn.Conv2d, target: str, form: str, size: tuple[int, int]
) -> None:
    fused, x = grouped_convolution(convolution, target), noise(2, convolution.in_channels, *size)
    assert fused.chosen_form == form
    assert relative_error(fused(x), convolution(x)) < 1e-13


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5), (4, 11)])
def test_a_convolution_and_the_pooling_after_it_are_one_kernel(size: tuple[int, int]) -> None:
    weight, x = noise(4, 3, 3, 3), noise(1, 3, *size)
    wanted = F.avg_pool2d(F.conv2d(x, weight, stride=2, padding=1), 2)
    assert relative_error(F.conv2d(x, algebra.pooled_kernel(weight), stride=4, padding=1), wanted) < 1e-14


@pytest.mark.parametrize("same_norms", [True, False])
def test_a_gather_is_absorbed_only_where_copies_of_a_channel_have_one_norm(same_norms: bool) -> None:
    torch.manual_seed(0)
    layer = LearnedGroupConv(12, 8, 4, "hardswish").double().eval()
    layer.index.copy_(torch.tensor([0, 3, 5, 0, 0, 7, 2, 5, 11, 1, 0, 3]))
    vary_norms(layer)
    layer.norm.bias[3] += 0 if same_norms else 1
    entry = algebra.entry(layer)
    assert entry.is_ordered == same_norms
    # Channel 0, read by three groups under one norm and by a fourth under another, is gathered twice.
    assert entry.index.tolist().count(0) == (1 if same_norms else 2)
    x = noise(1, 12, 3, 2)
    found = F.conv2d(F.hardswish(entry.norm(torch.float64)(x)), entry.weight[:, :, None, None])
    assert relative_error(found, layer(x)) < 1e-13


def test_a_reactivation_adds_where_its_index_says() -> None:
    torch.manual_seed(0)
    layer = Reactivation(8, 12, 4, "relu").double().eval()
    x = noise(2, 8, 3, 2)
    active = layer.activated(x)
    # Straight from the definition: a grouped product of shuffled channels, times the index matrix.
    dealt = torch.stack([active[:, j + step * 4] for j in range(4) for step in range(2)], 1)
    product = torch.einsum("nrhw,ri->nihw", layer.conv(dealt), layer.index)
    assert relative_error(layer(x), product) < 1e-14
    assert relative_error(F.conv2d(active, algebra.reactivation_matrix(layer)[:, :, None, None]), product) < 1e-13


def test_the_inference_form_leaves_its_source_and_the_random_numbers_alone() -> None:
    source = small()
    before, random_state = copy.deepcopy(source.state_dict()), torch.get_rng_state()
    fused = for_inference(source, "tflite")
    assert torch.equal(torch.get_rng_state(), random_state)
    for parameter in fused.parameters():
        parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    assert all(parameter.requires_grad for parameter in source.parameters())


def test_no_gather_shuffle_or_batch_norm_is_left_for_inference() -> None:
    fused = for_inference(small(), "executorch").eval()
    assert isinstance(fused.get_submodule("stem"), FusedStem)
    assert not {type(m) for m in fused.modules()} & {nn.BatchNorm2d, DenseLayer, LearnedGroupConv, Reactivation}
    program = torch.export.export(fused, (noise(1, 3, 64, 96),))
    kinds = {str(node.target).split(".")[1] for node in program.graph.nodes if node.op == "call_function"}
    assert not kinds & {"index_select", "gather", "index_add", "index", "view", "reshape", "transpose", "matmul"}
    assert max(node.meta["val"].dim() for node in program.graph.nodes if node.op == "call_function") <= 4


def test_targets_that_differ_in_their_form_say_so() -> None:
    source = small()
    forms = {
        target: [getattr(m, "chosen_form", "") for m in for_inference(source, target).modules()]
        for target in ("tflite", "executorch", "coreml", "onnx")
    }
    assert forms["tflite"] == forms["executorch"] == forms["coreml"] != forms["onnx"]
