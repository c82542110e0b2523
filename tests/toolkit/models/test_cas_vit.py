"""CAS-ViT: the authors' keys and numbers, a block written out by hand, and an equal exported form."""

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
from acmix.toolkit.models._folding import absorb_norm
from acmix.toolkit.models.cas_vit import MODELS, Block, CASViT, for_inference
from acmix.toolkit.source import ModelSource
from acmix.toolkit.spec import TensorSpec

Fill = Callable[[nn.Module], None]
State = dict[str, Tensor]

PARAMETERS = {"cas_vit_xs": 3_200_700, "cas_vit_s": 5_764_224, "cas_vit_m": 12_421_520, "cas_vit_t": 21_763_120}

# Of the authors' rcvit_xs: one of each kind of position.
SHAPES_XS = {
    "patch_embed.0.weight": (24, 3, 3, 3),
    "patch_embed.4.running_mean": (48,),
    "network.0.1.local_perception.network.0.weight": (48, 48, 1, 1),
    "network.0.1.local_perception.network.1.bias": (48,),
    "network.0.1.local_perception.network.2.weight": (48, 1, 3, 3),
    "network.0.1.local_perception.network.4.bias": (48,),
    "network.1.proj.weight": (56, 48, 3, 3),
    "network.1.norm.weight": (56,),
    "network.4.3.norm1.running_var": (112,),
    "network.4.3.attn.qkv.weight": (336, 112, 1, 1),
    "network.4.3.attn.oper_q.0.block.0.weight": (112, 1, 3, 3),
    "network.4.3.attn.oper_q.0.block.1.weight": (112,),
    "network.4.3.attn.oper_k.0.block.3.weight": (1, 112, 1, 1),
    "network.4.3.attn.oper_k.1.block.1.weight": (112, 112, 1, 1),
    "network.6.1.attn.dwc.bias": (220,),
    "network.6.1.attn.proj.weight": (220, 1, 3, 3),
    "network.6.1.mlp.fc1.weight": (880, 220, 1, 1),
    "network.6.1.mlp.fc2.bias": (220,),
    "norm.running_mean": (220,),
    "head.weight": (1000, 220),
    "dist_head.bias": (1000,),
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


def small() -> CASViT:
    """Two stages and both kinds of residual, in a thousandth of the work."""
    return CASViT((8, 12), (1, 2), classes=10)


def filled(module: nn.Module, fill: Fill) -> nn.Module:
    """The module with reference values, in float64, at evaluation."""
    fill(module)
    return module.double().eval()


def norm(state: State, key: str, x: Tensor) -> Tensor:
    """A batch norm at evaluation, by its definition."""
    mean, variance, gain, shift = (
        state[f"{key}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(variance + 1e-5) * gain + shift


def convolved(state: State, key: str, x: Tensor, stride: int = 1) -> Tensor:
    """The convolution of that name; its groups follow from the shapes."""
    weight = state[f"{key}.weight"]
    groups = x.shape[1] // weight.shape[1]
    return F.conv2d(x, weight, state.get(f"{key}.bias"), stride, weight.shape[-1] // 2, groups=groups)


def gated(state: State, key: str, x: Tensor) -> Tensor:
    """The spatial, then the channel gate of q or k."""
    inner = norm(state, f"{key}.0.block.1", convolved(state, f"{key}.0.block.0", x)).clamp(min=0)
    x = x / (1 + torch.exp(-convolved(state, f"{key}.0.block.3", inner)))
    means = x.flatten(2).sum(2) / x[0, 0].numel()
    return x * torch.sigmoid(means @ state[f"{key}.1.block.1.weight"][:, :, 0, 0].t())[..., None, None]


def block_by_hand(state: State, key: str, x: Tensor) -> Tensor:
    """One block of section 3, straight from the state dict."""
    local = f"{key}local_perception.network"
    y = norm(state, f"{local}.1", convolved(state, f"{local}.0", x))
    x = x + convolved(state, f"{local}.4", F.gelu(convolved(state, f"{local}.2", y)))
    q, k, v = convolved(state, f"{key}attn.qkv", norm(state, f"{key}norm1", x)).chunk(3, 1)
    mixed = gated(state, f"{key}attn.oper_q", q) + gated(state, f"{key}attn.oper_k", k)
    x = x + convolved(state, f"{key}attn.proj", convolved(state, f"{key}attn.dwc", mixed) * v)
    y = F.gelu(convolved(state, f"{key}mlp.fc1", norm(state, f"{key}norm2", x)))
    return x + convolved(state, f"{key}mlp.fc2", y)


def network_by_hand(state: State, x: Tensor) -> Tensor:
    """The whole of small(): stem, a block, an embedding, two blocks, the mean of two heads."""
    for conv, after in (("patch_embed.0", "patch_embed.1"), ("patch_embed.3", "patch_embed.4")):
        x = norm(state, after, convolved(state, conv, x, stride=2)).clamp(min=0)
    x = block_by_hand(state, "network.0.0.", x)
    x = norm(state, "network.1.norm", convolved(state, "network.1.proj", x, stride=2))
    x = block_by_hand(state, "network.2.1.", block_by_hand(state, "network.2.0.", x))
    vector = norm(state, "norm", x).flatten(2).mean(-1)
    logits = [F.linear(vector, state[f"{head}.weight"], state[f"{head}.bias"]) for head in ("head", "dist_head")]
    return (logits[0] + logits[1]) / 2


def test_the_keys_are_the_authors() -> None:
    state = MODELS["cas_vit_xs"].build().state_dict()
    assert {key: tuple(state[key].shape) for key in SHAPES_XS} == SHAPES_XS


@pytest.mark.parametrize("name", MODELS)
def test_the_parameters_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        module = MODELS[name].build()
    parameters = sum(p.numel() for p in module.parameters())
    assert parameters == PARAMETERS[name]
    assert round(parameters / 1e6, 2) == {"xs": 3.20, "s": 5.76, "m": 12.42, "t": 21.76}[name.rpartition("_")[2]]


@pytest.mark.parametrize("name", MODELS)
def test_the_papers_macs_are_ours_with_biases_and_norms(name: str) -> None:
    with torch.device("meta"):
        module = MODELS[name].build().eval()
    extra: list[int] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        extra.append(2 * output.numel() if isinstance(layer, nn.BatchNorm2d) else output.numel())

    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) or (isinstance(layer, nn.Conv2d) and layer.bias is not None):
            layer.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, 224, 224, device="meta"))
    published = MODELS[name].claims.macs
    assert published is not None
    assert (counter.get_total_flops() // 2 + sum(extra)) / published == pytest.approx(1, abs=1e-3)


def test_a_block_is_the_published_one(fill: Fill) -> None:
    block, x = filled(Block(12), fill), noise(2, 12, 6, 5)
    assert relative_error(block(x), block_by_hand(block.state_dict(), "", x)) < 1e-12


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


def test_no_norm_no_split_and_one_head_are_left_in_the_captured_program() -> None:
    image = TensorSpec("image", (1, 3, 64, 64), layout="nchw")
    spec = replace(MODELS["cas_vit_xs"], build=small, inputs=(image,))
    captured = capture.capture(capture.build(ModelSource(spec.name, "zoo", spec), "random"), ["executorch"])
    graph = captured.programs["executorch"].program.graph
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert names.count("aten.linear.default") == 1
    assert not {name for name in names if "norm" in name or "split" in name or "chunk" in name}


def test_a_padded_convolution_cannot_absorb_the_norm_before_it() -> None:
    with pytest.raises(AssertionError):
        absorb_norm(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))
