"""Swin-ACmix: the authors' names and numbers, an independent port, and equal forms for every target."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.errors import UsageError
from acmix.toolkit.models._acmix_swin_convolution import ConvForm, ConvolutionPath
from acmix.toolkit.models._acmix_swin_inference import FORMS, Gelu, InferenceMerging, Normalise, rolled
from acmix.toolkit.models._acmix_swin_layers import PatchMerging, WindowACmix, shift_mask
from acmix.toolkit.models.acmix_swin import MODELS, AcmixSwin, for_inference
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
    path = Path(__file__).parents[2] / "benchmarks" / "naive" / "acmix_swin.py"
    spec = importlib.util.spec_from_file_location("naive_acmix_swin", path)
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


def small(fill: Fill, size: tuple[int, int] = (112, 168)) -> AcmixSwin:
    """Shifted and unshifted blocks, a merging, and maps that are not square; eight channels a head."""
    network = filled(AcmixSwin((2, 2), size, channels=16, heads=(2, 4), classes=10), fill)
    assert isinstance(network, AcmixSwin)
    return network


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


def test_the_outputs_are_those_of_the_authors_code(
    fill: Fill, golden_input: Callable[[tuple[int, ...]], Tensor], golden: Callable[[str], dict[str, Any]]
) -> None:
    module = MODELS["acmix_swin_tiny"].build()
    fill(module)
    logits = module.eval()(golden_input(IMAGE))[0]
    reference = golden("acmix_swin_tiny")
    assert float((logits[:8] - torch.tensor(reference["first8"])).abs().max() / logits.abs().max()) < 1e-5
    assert int(logits.argmax()) == reference["argmax"]
    assert float(logits.norm()) == pytest.approx(reference["l2"], rel=1e-5)


def test_the_whole_of_swin_tiny_is_a_stock_users_port(fill: Fill, naive: ModuleType) -> None:
    source = filled(MODELS["acmix_swin_tiny"].build(), fill)
    stock = naive.NAIVE["acmix_swin_tiny"]().double().eval()
    stock.load_state_dict(source.state_dict())
    x = noise(*IMAGE)
    wanted = stock(x)
    assert relative_error(source(x), wanted) < 1e-12
    assert relative_error(for_inference(source, "executorch")(x), wanted) < 1e-12


@pytest.mark.parametrize("target", FORMS)
def test_the_inference_form_is_the_same_network(target: str, fill: Fill) -> None:
    source = small(fill)
    x = noise(1, 3, 112, 168)
    assert relative_error(for_inference(source, target)(x), source(x)) < 1e-12
    single = copy.deepcopy(source).float()
    assert relative_error(for_inference(single, target)(x.float()), source(x)) < 1e-4


@pytest.mark.parametrize("form", get_args(ConvForm))
def test_every_form_of_the_convolution_path_has_its_biases_at_the_border(form: ConvForm, fill: Fill) -> None:
    layer, norm = filled(WindowACmix(24, 3), fill), filled(nn.LayerNorm(24), fill)
    assert isinstance(layer, WindowACmix) and isinstance(norm, nn.LayerNorm)
    x = noise(1, 7, 14, 24)
    wanted = layer.rate2 * layer.convolution(layer.qkv(norm(x)))
    path = ConvolutionPath(layer, norm, (7, 14), form)
    assert path.chosen_form == form
    assert relative_error(path(F.layer_norm(x, (24,))[0]), wanted[0]) < 1e-13


def test_a_norm_by_matrix_products_survives_a_large_mean() -> None:
    norm = nn.LayerNorm(96).double()
    x = noise(20, 96) + 1000
    assert relative_error(Normalise(norm, "matrix products")(x), norm(x)) < 1e-10


def test_the_spelled_gelu_is_the_exact_one() -> None:
    x = 3 * noise(1000)
    assert relative_error(Gelu("error function")(x), F.gelu(x)) < 1e-15


def test_merging_normalises_four_tokens_of_different_means_together(fill: Fill) -> None:
    layer = filled(PatchMerging(8), fill)
    assert isinstance(layer, PatchMerging)
    x = noise(1, 4, 6, 8) + 5 * noise(1, 4, 6, 1)
    merged = InferenceMerging(layer, (4, 6), FORMS["executorch"])(x[0].reshape(-1, 8))
    assert relative_error(merged, layer(x).reshape(-1, 16)) < 1e-12


@pytest.mark.parametrize("shift", [3, -3])
def test_two_slices_and_a_concatenation_roll_a_map(shift: int) -> None:
    x = noise(7, 14, 4)
    assert torch.equal(rolled(x, shift), x.roll((-shift, -shift), (0, 1)))


def test_the_mask_parts_what_the_shift_brings_together() -> None:
    mask = shift_mask((14, 21))
    assert mask.shape == (6, 49, 49)
    # Only the windows of the last row and column straddle the border of the unshifted map.
    assert [bool(window.any()) for window in mask] == [False, False, True, True, True, True]
    corner = mask[5].view(7, 7, 7, 7)
    for y in range(7):
        for x in range(7):
            same = ((torch.arange(7) < 4) == (y < 4))[:, None] & ((torch.arange(7) < 4) == (x < 4))
            assert torch.equal(corner[y, x], torch.where(same, 0.0, -100.0))


def test_the_inference_form_leaves_its_source_and_the_random_numbers_alone(fill: Fill) -> None:
    source = small(fill)
    before = copy.deepcopy(source.state_dict())
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    prepared = for_inference(source, "onnx")
    assert torch.equal(torch.rand(1), wanted)
    for parameter in (*prepared.parameters(), *prepared.buffers()):
        parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    assert all(parameter.requires_grad for parameter in source.parameters())


@pytest.mark.parametrize("target", FORMS)
def test_no_tensor_of_the_exported_form_is_above_rank_4(target: str, fill: Fill) -> None:
    network = for_inference(small(fill).float(), target).eval()
    program = torch.export.export(network, (torch.zeros(1, 3, 112, 168),))
    nodes = [node for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert len(nodes) > 100
    assert max(node.meta["val"].dim() for node in nodes) == 4
    kinds = {str(node.target) for node in nodes}
    assert not [kind for kind in kinds if "roll" in kind or "unfold" in kind or "index" in kind]


def at_size(spec: ModelSpec, height: int, width: int) -> ModelSpec:
    """The spec for another input."""
    return at_inputs(spec, (TensorSpec("image", (1, 3, height, width), layout="nchw"),))


def test_a_checkpoint_of_224_loads_at_another_size() -> None:
    state = MODELS["acmix_swin_tiny"].build().state_dict()
    spec = at_size(MODELS["acmix_swin_tiny"], 224, 448)
    module = spec.build()
    report = load_weights(module, spec, state)
    assert report.loaded == len(module.state_dict()) == 250
    assert torch.equal(module.state_dict()["layers.0.blocks.1.attn_mask"], shift_mask((56, 112)))
    assert module.eval()(torch.zeros(1, 3, 224, 448)).shape == (1, 1000)


def test_a_checkpoint_without_tables_and_masks_loads() -> None:
    spec = MODELS["acmix_swin_tiny"]
    tables = (".relative_position_index", ".attn_mask")
    state = {k: v for k, v in spec.build().state_dict().items() if not k.endswith(tables)}
    assert load_weights(spec.build(), spec, state).loaded == 250


def test_a_size_that_is_not_whole_windows_is_refused() -> None:
    with pytest.raises(UsageError, match=r"256 x 224.*\n.*multiples of 224"):
        at_size(MODELS["acmix_swin_tiny"], 256, 224)
