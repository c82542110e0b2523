"""ACmix-ResNet: the authors' names and numbers, an independent reading of the paper, and equal exported forms."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acmix.toolkit.errors import UsageError
from acmix.toolkit.layers.acmix import ACmix
from acmix.toolkit.models.acmix_resnet import MODELS, ACmixResNet, Bottleneck, JoinedBottleneck, for_inference
from acmix.toolkit.source import at_inputs
from acmix.toolkit.spec import TensorSpec

Fill = Callable[[nn.Module], None]
TARGETS = ("tflite", "onnx", "executorch", "coreml")
IMAGE = (1, 3, 224, 224)


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Iterator[None]:
    """Nothing here is trained."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def naive() -> ModuleType:
    """The benchmark's stock port, which shares no code with ours."""
    path = Path(__file__).parents[2] / "benchmarks" / "naive" / "acmix_resnet.py"
    spec = importlib.util.spec_from_file_location("naive_acmix_resnet", path)
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


def small(fill: Fill) -> ACmixResNet:
    """Every kind of block, in a hundredth of the work, with reference values in float64."""
    module = ACmixResNet((1, 2, 2, 1), classes=10, widths=(16, 16, 32, 32))
    fill(module)
    return module.double().eval()


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_the_authors_name_shape_and_order(
    name: str, manifest: Callable[[str], dict[str, list[Any]]]
) -> None:
    ours = {
        k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in MODELS[name].build().state_dict().items()
    }
    assert list(ours.items()) == list(manifest(name).items())


def test_the_outputs_are_those_of_the_authors_code(
    fill: Fill,
    golden_input: Callable[[tuple[int, ...]], Tensor],
    golden: Callable[[str], dict[str, Any]],
    naive: ModuleType,
) -> None:
    module = MODELS["acmix_resnet26"].build()
    fill(module)
    logits = module.eval()(golden_input(IMAGE))[0]
    reference = golden("acmix_resnet26")
    assert float((logits[:8] - torch.tensor(reference["first8"])).abs().max() / logits.abs().max()) < 3e-4
    assert int(logits.argmax()) == reference["argmax"]
    assert float(logits.norm()) == pytest.approx(reference["l2"], rel=1e-3)
    stock = naive.NAIVE["acmix_resnet26"]()
    stock.load_state_dict(module.state_dict())
    assert relative_error(stock.eval()(golden_input(IMAGE))[0], logits) < 1e-4


def test_the_block_alone_gives_the_authors_outputs(
    fill: Fill, golden_input: Callable[[tuple[int, ...]], Tensor], golden: Callable[[str], dict[str, Any]]
) -> None:
    block = ACmix(64)
    fill(block)
    output = block(golden_input((1, 64, 14, 14))).flatten()
    reference = golden("acmix_module_64_h4_k7_14x14")
    assert float((output[:8] - torch.tensor(reference["first8"])).abs().max() / output.abs().max()) < 3e-4
    assert int(output.argmax()) == reference["argmax"]
    assert float(output.norm()) == pytest.approx(reference["l2"], rel=1e-4)
    assert sum(p.numel() for p in block.parameters()) == reference["params"]


def test_the_block_has_the_authors_names(manifest: Callable[[str], dict[str, list[Any]]]) -> None:
    wanted = manifest("acmix_module_64_h4_k7_14x14")
    ours = {name: list(tensor.shape) for name, tensor in ACmix(64).state_dict().items()}
    assert list(ours.items()) == [(name, shape) for name, (shape, _) in wanted.items()]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [(128, 128), (160, 128)])
def test_the_inference_form_is_the_same_network(target: str, size: tuple[int, int], fill: Fill) -> None:
    module, x = small(fill), noise(1, 3, *size)
    prepared = for_inference(module, target, size)
    assert relative_error(prepared(x), module(x)) < 1e-11
    assert not any(isinstance(layer, ACmix) for layer in prepared.modules())


def test_the_whole_of_resnet26_is_the_same_network_in_single_precision(fill: Fill) -> None:
    module = MODELS["acmix_resnet26"].build()
    fill(module)
    module.eval()
    x = noise(*IMAGE).float()
    wanted = module(x)
    for target in TARGETS:
        assert relative_error(for_inference(module, target)(x), wanted) < 1e-4


def test_the_norm_behind_each_block_is_folded_and_the_others_are_left() -> None:
    module = ACmixResNet((1, 1, 1, 1), widths=(16, 16, 16, 16)).eval()
    prepared = for_inference(module, "onnx", (128, 128))
    blocks = [layer for layer in prepared.modules() if isinstance(layer, Bottleneck)]
    assert len(blocks) == 4
    assert all(isinstance(block.bn2, nn.Identity) for block in blocks)
    assert all(isinstance(block.bn1, nn.BatchNorm2d) for block in blocks)
    assert all(isinstance(getattr(block.conv2, "chosen_form", None), str) for block in blocks)


def test_tflite_adds_the_shortcut_inside_the_last_convolution() -> None:
    module = ACmixResNet((1, 2, 1, 1), widths=(16, 16, 16, 16)).eval()
    prepared = for_inference(module, "tflite", (128, 128))
    joined = [name for name, layer in prepared.named_modules() if isinstance(layer, JoinedBottleneck)]
    assert joined == ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    assert isinstance(prepared.get_submodule("layer2.1"), Bottleneck)


def test_the_core_ml_form_has_few_constants_beside_the_published_weights() -> None:
    module = MODELS["acmix_resnet26"].build()
    prepared = for_inference(module, "coreml")
    tensors = [*prepared.parameters(), *prepared.buffers()]
    # float16 in a Core ML package, which must stay below 25 MB.
    assert 2 * sum(t.numel() for t in tensors) < 24e6
    assert max(t.dim() for t in tensors) <= 4


def test_a_network_of_another_size_gets_the_forms_of_that_size() -> None:
    spec = at_inputs(MODELS["acmix_resnet26"], (TensorSpec("image", (1, 3, 160, 128), layout="nchw"),))
    assert spec.for_inference is not None
    prepared = spec.for_inference(spec.build().eval(), "tflite")
    assert prepared(torch.zeros(1, 3, 160, 128)).shape == (1, 1000)


def test_an_image_too_small_for_the_last_window_is_refused() -> None:
    with pytest.raises(UsageError, match="map of 2 x 2"):
        ACmixResNet((1, 1, 1, 2), widths=(16, 16, 16, 16)).eval()(torch.zeros(1, 3, 64, 64))
