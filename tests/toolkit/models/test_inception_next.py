"""InceptionNeXt: timm's keys and count, block and head written out by hand, and an equal exported form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from acmix.toolkit import capture
from acmix.toolkit.models.inception_next import MODELS, Block, FusedHead, Head, InceptionNeXt, for_inference
from acmix.toolkit.source import ModelSource
from acmix.toolkit.spec import TensorSpec

Fill = Callable[[nn.Module], None]
State = dict[str, Tensor]

# Of timm's inception_next_atto: one of each kind of position.
SHAPES = {
    "stem.0.weight": (40, 3, 4, 4),
    "stem.1.running_mean": (40,),
    "stages.0.blocks.1.token_mixer.dwconv_hw.weight": (10, 1, 3, 3),
    "stages.0.blocks.1.token_mixer.dwconv_w.weight": (10, 1, 1, 9),
    "stages.0.blocks.1.token_mixer.dwconv_h.bias": (10,),
    "stages.1.downsample.0.weight": (40,),
    "stages.1.downsample.1.weight": (80, 40, 2, 2),
    "stages.2.blocks.5.norm.running_var": (160,),
    "stages.2.blocks.5.mlp.fc1.weight": (640, 160, 1, 1),
    "stages.3.blocks.1.mlp.fc2.weight": (320, 960, 1, 1),
    "stages.3.blocks.1.gamma": (320,),
    "head.fc1.weight": (960, 320),
    "head.norm.bias": (960,),
    "head.fc2.weight": (1000, 960),
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


def small() -> InceptionNeXt:
    """Two stages, one of them halving, in a thousandth of the work."""
    return InceptionNeXt((8, 16), (1, 2), band=5, ratio=0.25, classes=10)


def norm(state: State, key: str, x: Tensor) -> Tensor:
    """A batch norm at evaluation, by its definition."""
    mean, variance, gain, shift = (
        state[f"{key}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(variance + 1e-5) * gain + shift


def one_depthwise_kernel(state: State, key: str, channels: int) -> tuple[Tensor, Tensor]:
    """The mixer as one square depthwise kernel: an impulse, a square, a row and a column, by channel."""
    square, row, column = (state[f"{key}.dwconv_{name}.weight"] for name in ("hw", "w", "h"))
    branch, size = row.shape[0], row.shape[3]
    middle, whole = size // 2, channels - 3 * branch
    kernel = torch.zeros(channels, 1, size, size, dtype=torch.float64)
    kernel[:whole, 0, middle, middle] = 1
    kernel[whole : whole + branch, :, middle - 1 : middle + 2, middle - 1 : middle + 2] = square
    kernel[whole + branch : whole + 2 * branch, :, middle : middle + 1, :] = row
    kernel[whole + 2 * branch :, :, :, middle : middle + 1] = column
    biases = [state[f"{key}.dwconv_{name}.bias"] for name in ("hw", "w", "h")]
    return kernel, torch.cat([torch.zeros(whole, dtype=torch.float64), *biases])


def block_by_hand(state: State, key: str, x: Tensor) -> Tensor:
    """One block straight from the state dict, its mixer as a single depthwise convolution."""
    kernel, bias = one_depthwise_kernel(state, f"{key}token_mixer", x.shape[1])
    y = F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2, groups=x.shape[1])
    y = F.conv2d(norm(state, f"{key}norm", y), state[f"{key}mlp.fc1.weight"], state[f"{key}mlp.fc1.bias"])
    y = F.conv2d(F.gelu(y), state[f"{key}mlp.fc2.weight"], state[f"{key}mlp.fc2.bias"])
    return x + y * state[f"{key}gamma"][:, None, None]


def head_by_hand(state: State, key: str, x: Tensor) -> Tensor:
    """Mean, linear, GELU, layer norm, linear."""
    hidden = F.gelu(F.linear(x.flatten(2).mean(2), state[f"{key}fc1.weight"], state[f"{key}fc1.bias"]))
    centred = hidden - hidden.mean(1, keepdim=True)
    normal = centred / torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-6)
    normal = normal * state[f"{key}norm.weight"] + state[f"{key}norm.bias"]
    return F.linear(normal, state[f"{key}fc2.weight"], state[f"{key}fc2.bias"])


def network_by_hand(state: State, x: Tensor) -> Tensor:
    """The whole of small()."""
    x = norm(state, "stem.1", F.conv2d(x, state["stem.0.weight"], state["stem.0.bias"], 4))
    x = norm(state, "stages.1.downsample.0", block_by_hand(state, "stages.0.blocks.0.", x))
    x = F.conv2d(x, state["stages.1.downsample.1.weight"], state["stages.1.downsample.1.bias"], 2)
    x = block_by_hand(state, "stages.1.blocks.1.", block_by_hand(state, "stages.1.blocks.0.", x))
    return head_by_hand(state, "head.", x)


def test_the_keys_are_timms() -> None:
    state = MODELS["inception_next_atto"].build().state_dict()
    assert {key: tuple(state[key].shape) for key in SHAPES} == SHAPES


def test_the_parameters_are_as_many_as_published() -> None:
    parameters = sum(p.numel() for p in MODELS["inception_next_atto"].build().parameters())
    assert parameters == MODELS["inception_next_atto"].claims.parameters
    assert round(parameters / 1e6, 1) == 4.2


def test_the_papers_macs_are_ours_with_biases_and_norms() -> None:
    with torch.device("meta"):
        module = MODELS["inception_next_atto"].build().eval()
    extra: list[int] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        extra.append(2 * output.numel() if isinstance(layer, nn.BatchNorm2d) else output.numel())

    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.Conv2d):
            layer.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, 224, 224, device="meta"))
    assert round((counter.get_total_flops() // 2 + sum(extra)) / 1e9, 2) == 0.51


@pytest.mark.parametrize(("channels", "branch", "band"), [(16, 4, 9), (16, 2, 11), (12, 4, 3)])
def test_a_block_mixes_by_one_sparse_depthwise_kernel(channels: int, branch: int, band: int, fill: Fill) -> None:
    block, x = filled(Block(channels, 4, branch, band), fill), noise(2, channels, 7, 5)
    assert relative_error(block(x), block_by_hand(block.state_dict(), "", x)) < 1e-12


def test_the_head_and_its_spelled_out_norm_are_the_published_one(fill: Fill) -> None:
    head, x = Head(8, 10), noise(2, 8, 3, 4)
    filled(head, fill)
    wanted = head_by_hand(head.state_dict(), "", x)
    assert relative_error(head(x), wanted) < 1e-12
    assert relative_error(FusedHead(head)(x), wanted) < 1e-12


def test_the_network_and_its_inference_form_are_the_published_one(fill: Fill) -> None:
    network, x = filled(small(), fill), noise(1, 3, 40, 56)
    wanted = network_by_hand(network.state_dict(), x)
    assert relative_error(network(x), wanted) < 1e-12
    assert relative_error(for_inference(network, "tflite")(x), wanted) < 1e-12


def test_the_inference_form_leaves_its_source_alone() -> None:
    source = small().eval()
    before = copy.deepcopy(source.state_dict())
    fused = for_inference(source, "coreml")
    for parameter in fused.parameters():
        parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    assert all(parameter.requires_grad for parameter in source.parameters())


def test_no_norm_and_no_split_are_left_in_the_captured_program() -> None:
    image = TensorSpec("image", (1, 3, 64, 64), layout="nchw")
    spec = replace(MODELS["inception_next_atto"], build=small, inputs=(image,))
    captured = capture.capture(capture.build(ModelSource(spec.name, "zoo", spec), "random"), ["executorch"])
    graph = captured.programs["executorch"].program.graph
    names = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert not {name for name in names if "norm" in name or "split" in name}
    assert max(node.meta["val"].dim() for node in graph.nodes if node.op == "call_function") <= 4
