"""MobileNetV3: the reference manifests, the reference output, and the published sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acmix.toolkit.models.mobilenet_v3 import LARGE, MODELS, SMALL, MobileNetV3, SqueezeExcite

Fill = Callable[[nn.Module], None]
Macs = Callable[[nn.Module, tuple[int, ...]], int]
Golden = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize("width", ["100", "125"])
def test_the_large_networks_have_the_reference_keys_shapes_and_dtypes(
    manifest: Callable[[str], dict[str, list[Any]]], width: str
) -> None:
    state = MODELS[f"mobilenet_v3_large_{width}"].build().state_dict()
    found = {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()}
    assert found == manifest(f"gfnet_backbone_mobilenetv3_large_{width}_96")


def test_the_feature_vector_is_the_reference_output(
    fill: Fill, golden: Golden, golden_input: Callable[[tuple[int, ...]], Tensor]
) -> None:
    expected = golden("gfnet_backbone_mobilenetv3_large_100_96")
    module = MobileNetV3(LARGE)
    fill(module)
    with torch.no_grad():
        features = module.eval().embedding(golden_input((1, 3, 96, 96)))[0]
    # 3e-4 would let an ordinary sigmoid pass for the gate, which the reference fill hardly stretches.
    tolerance = 1e-5 * float(features.abs().max())
    assert features.shape == (expected["out_len"],)
    assert torch.allclose(features[:8], torch.tensor(expected["first8"]), rtol=0, atol=tolerance)
    assert float(features.sum()) == pytest.approx(expected["sum"], rel=1e-6)
    assert float(features.norm()) == pytest.approx(expected["l2"], rel=1e-6)
    assert int(features.argmax()) == expected["argmax"]


def test_the_small_network_squeezes_in_its_first_block_and_ends_in_1024_features() -> None:
    state = MODELS["mobilenet_v3_small_100"].build().state_dict()
    shapes = {
        "blocks.0.0.conv_dw.weight": (16, 1, 3, 3),
        "blocks.0.0.se.conv_reduce.weight": (8, 16, 1, 1),
        "blocks.1.0.conv_pw.weight": (72, 16, 1, 1),
        "blocks.1.1.conv_pw.weight": (88, 24, 1, 1),
        "blocks.2.0.se.conv_reduce.bias": (24,),
        "blocks.2.2.conv_dw.weight": (240, 1, 5, 5),
        "blocks.4.2.conv_pwl.weight": (96, 576, 1, 1),
        "blocks.5.0.conv.weight": (576, 96, 1, 1),
        "conv_head.weight": (1024, 576, 1, 1),
        "conv_head.bias": (1024,),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


@pytest.mark.parametrize(("layout", "sizes"), [(LARGE, (64, 32, 16, 8, 8, 4, 4)), (SMALL, (32, 16, 8, 8, 4, 4))])
def test_the_stages_halve_where_the_paper_says(layout: Any, sizes: tuple[int, ...]) -> None:
    module = MobileNetV3(layout, width=0.25).eval()
    found = []
    for stage in module.blocks:
        stage.register_forward_hook(lambda _, __, output: found.append(output.shape[-1]))
    with torch.no_grad():
        module(torch.zeros(1, 3, 128, 128))
    assert tuple(found) == sizes


# The paper's own counts, which round and squeeze slightly differently from every released network.
@pytest.mark.parametrize("name", MODELS)
def test_the_multiply_accumulates_are_the_papers_within_a_hundredth(macs: Macs, name: str) -> None:
    claimed = MODELS[name].claims.macs
    assert claimed is not None
    assert macs(MODELS[name].build(), (1, 3, 224, 224)) == pytest.approx(claimed, rel=0.012)


def test_the_gate_is_piecewise_linear_and_saturates() -> None:
    torch.manual_seed(0)
    module = SqueezeExcite(16).double()
    x = 20 * torch.randn(2, 16, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        reduced = (x.mean((2, 3)) @ module.conv_reduce.weight.flatten(1).T + module.conv_reduce.bias).clamp(min=0)
        gate = ((reduced @ module.conv_expand.weight.flatten(1).T + module.conv_expand.bias + 3) / 6).clamp(0, 1)
        assert torch.allclose(module(x), x * gate[:, :, None, None], rtol=0, atol=1e-12)


def test_the_pooled_map_is_what_the_head_reads() -> None:
    torch.manual_seed(0)
    module = MobileNetV3(SMALL, width=0.5).eval()
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        pooled = module.feature_map(x).mean((2, 3))
        head = pooled @ module.conv_head.weight.flatten(1).T + module.conv_head.bias
        expected = head * (head + 3).clamp(0, 6) / 6
        assert torch.allclose(module.embedding(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [LARGE, SMALL])
@pytest.mark.parametrize("width", [1.0, 1.25])
def test_random_logits_have_a_scale_and_follow_the_input(layout: Any, width: float) -> None:
    torch.manual_seed(0)
    module = MobileNetV3(layout, width).eval()
    with torch.no_grad():
        logits = module(torch.randn(2, 3, 128, 128))
    assert 0.1 < float(logits.std()) < 1000
    assert float((logits[0] - logits[1]).std()) > 0.05
