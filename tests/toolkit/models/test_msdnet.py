"""MSDNet: the published counts at every exit, a reading of the checkpoint by its keys alone, and the split at exits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.errors import UsageError
from acmix.toolkit.models._msdnet_layers import Transition
from acmix.toolkit.models.msdnet import MODELS, MSDNet, scales_after
from acmix.toolkit.rewrite import rewrite
from acmix.toolkit.source import at_inputs
from acmix.toolkit.spec import TensorSpec
from acmix.toolkit.weights import load_weights

Fill = Callable[[nn.Module], None]


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Iterator[None]:
    """Nothing here is trained."""
    with torch.no_grad():
        yield


def small(step: int = 4) -> MSDNet:
    """Every layer of the published network, a quarter as wide."""
    torch.manual_seed(0)
    return MSDNet(step, channels=8, growth=4, classes=10).double().eval()


def noise(*shape: int) -> Tensor:
    """Normal float64 values, the same every time."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def authors_operations(network: MSDNet) -> list[int]:
    """Cumulative count at each exit in the way of the authors' counter.

    Multiply-accumulates of convolutions and linear layers with their bias, one for each output of a ReLU, and one for
    each pixel that a pooling window reads (9 in the stem, 4 before a classifier).
    """
    counts, exits = [0], []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            counts[0] += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.ReLU):
            counts[0] += output.numel()
        elif isinstance(layer, nn.MaxPool2d):
            counts[0] += 9 * output.numel()
        elif isinstance(layer, nn.Linear):
            counts[0] += layer.weight.numel() + layer.bias.numel() + 4 * layer.in_features
            exits.append(counts[0])

    for layer in network.modules():
        layer.register_forward_hook(count)
    network.eval()(torch.zeros(1, 3, 224, 224))
    return exits


def test_the_costs_of_the_five_exits_are_the_published_ones() -> None:
    counts = authors_operations(MSDNet(4))
    assert [round(count / 1e6, 2) for count in counts] == [339.90, 685.46, 1008.16, 1254.47, 1360.53]


@pytest.mark.parametrize("name", MODELS)
def test_the_parameters_are_as_many_as_claimed(name: str) -> None:
    assert sum(p.numel() for p in MODELS[name].build().parameters()) == MODELS[name].claims.parameters


def test_the_keys_are_the_authors() -> None:
    state = MODELS["msdnet_step4"].build().state_dict()
    shapes = {
        "blocks.0.0.layers.0.0.weight": (32, 3, 7, 7),
        "blocks.0.0.layers.0.0.bias": (32,),
        "blocks.0.0.layers.0.1.running_mean": (32,),
        "blocks.0.0.layers.3.net.0.weight": (128, 128, 3, 3),
        "blocks.0.1.layers.0.conv_normal.net.0.weight": (16, 32, 1, 1),
        "blocks.0.1.layers.2.conv_down.net.0.weight": (64, 64, 1, 1),
        "blocks.0.4.layers.3.conv_normal.net.3.weight": (32, 128, 3, 3),
        "blocks.1.1.layers.0.conv_down.net.0.weight": (16, 112, 1, 1),
        "blocks.1.2.m.0.net.0.weight": (128, 256, 1, 1),
        "blocks.4.3.layers.0.conv_normal.net.4.bias": (64,),
        "classifier.0.m.1.net.0.weight": (384, 384, 3, 3),
        "classifier.4.linear.weight": (1000, 560),
    }
    assert {key: tuple(state[key].shape) if key in state else None for key in shapes} == shapes


def norm_relu(state: Mapping[str, Tensor], key: str, x: Tensor) -> Tensor:
    """A batch norm read by its keys, and a ReLU."""
    mean, var, weight, bias = (state[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(x, mean, var, weight, bias, eps=1e-5))


def layers_by_keys(state: Mapping[str, Tensor], key: str, x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Convolution, batch norm, ReLU for each stride: positions 0 and 3 of `key`.net."""
    for number, stride in enumerate(strides):
        weight = state[f"{key}.net.{3 * number}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        x = norm_relu(state, f"{key}.net.{3 * number + 1}", x)
    return x


def stem_by_keys(state: Mapping[str, Tensor], x: Tensor) -> list[Tensor]:
    """The four maps of the first layer."""
    key = "blocks.0.0.layers"
    x = F.conv2d(x, state[f"{key}.0.0.weight"], state[f"{key}.0.0.bias"], stride=2, padding=3)
    maps = [F.max_pool2d(norm_relu(state, f"{key}.0.1", x), 3, 2, 1)]
    for scale in range(1, 4):
        maps.append(layers_by_keys(state, f"{key}.{scale}", maps[-1], (2,)))
    return maps


def layer_by_keys(state: Mapping[str, Tensor], key: str, maps: list[Tensor]) -> list[Tensor]:
    """A dense layer or a halving: which one, and how many scales it keeps, is told by its keys."""
    if f"{key}.m.0.net.0.weight" in state:
        return [layers_by_keys(state, f"{key}.m.{i}", x, (1,)) for i, x in enumerate(maps)]
    kept = len({name.split(".")[4] for name in state if name.startswith(f"{key}.layers.")})
    grown = []
    for position, own in enumerate(maps[-kept:]):
        scale = len(maps) - kept + position
        sources = [own]
        if f"{key}.layers.{position}.conv_down.net.0.weight" in state:
            sources.append(layers_by_keys(state, f"{key}.layers.{position}.conv_down", maps[scale - 1], (1, 2)))
        sources.append(layers_by_keys(state, f"{key}.layers.{position}.conv_normal", own, (1, 1)))
        grown.append(torch.cat(sources, 1))
    return grown


def logits_by_keys(state: Mapping[str, Tensor], x: Tensor) -> list[Tensor]:
    """The published network as a function of its checkpoint, without any of our classes."""
    maps, logits = stem_by_keys(state, x), []
    for block in range(5):
        for layer in range(1 if block == 0 else 0, len(state)):
            key = f"blocks.{block}.{layer}"
            if not any(name.startswith(f"{key}.") for name in state):
                break
            maps = layer_by_keys(state, key, maps)
        key = f"classifier.{block}"
        pooled = layers_by_keys(state, f"{key}.m.1", layers_by_keys(state, f"{key}.m.0", maps[-1], (2,)), (2,))
        flat = F.avg_pool2d(pooled, 2).flatten(1)
        logits.append(F.linear(flat, state[f"{key}.linear.weight"], state[f"{key}.linear.bias"]))
    return logits


@pytest.mark.parametrize("step", [4, 7])
def test_the_outputs_follow_from_the_keys_of_the_checkpoint(step: int, fill: Fill) -> None:
    network, x = small(step), noise(1, 3, 224, 224)
    fill(network)
    for found, wanted in zip(network(x), logits_by_keys(network.state_dict(), x), strict=True):
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-12


@pytest.mark.parametrize("target", ["tflite", "executorch"])
def test_the_captured_program_is_the_same_network(target: str, fill: Fill) -> None:
    network, x = small(), noise(1, 3, 96, 127)
    fill(network)
    # Below zero, zeros around a map would win: the batch norm before the ReLU makes sure that such values occur.
    assert bool((network.blocks[0][0].layers[0][:2](x) < 0).any())  # type: ignore[index]
    program = torch.export.export(network.double(), (x,))
    applied = {rule.name for rule in rewrite(program, target)}
    for found, wanted in zip(program.module()(x), network(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert ("zero_padded_max" in applied) is (target == "tflite")


def test_the_network_splits_at_its_exits() -> None:
    network, x = small(), noise(1, 3, 96, 128)
    maps, logits, counts = x, [], []
    for block, classifier in zip(network.blocks, network.classifier, strict=True):
        maps = block(maps)
        counts.append(len(maps))
        logits.append(classifier(maps))
    assert counts == [4, 3, 2, 1, 1]
    assert all(torch.equal(a, b) for a, b in zip(logits, network(x), strict=True))


@pytest.mark.parametrize(("step", "total", "drops"), [(4, 20, [6, 11, 16]), (6, 28, [8, 15, 22]), (7, 32, [9, 17, 25])])
def test_the_finest_scale_goes_after_each_quarter(step: int, total: int, drops: list[int]) -> None:
    assert [n for n in range(1, total + 1) if scales_after(n, total) < scales_after(n - 1, total)] == drops
    halvings = [layer for layer in small(step).modules() if isinstance(layer, Transition)]
    widths = [layer.state_dict()["m.0.net.0.weight"].shape[:2] for layer in halvings]
    # The finest scale left is 2, 4 and 4 times as wide as the first one, whose width is halved and rounded down.
    assert [after for after, _ in widths] == [
        before // f // 2 * f for (_, before), f in zip(widths, (2, 4, 4), strict=True)
    ]


def test_a_random_network_keeps_its_scale_at_every_exit() -> None:
    torch.manual_seed(0)
    network = MODELS["msdnet_step7"].build().eval()
    first, second = torch.randn(1, 3, 160, 160), torch.randn(1, 3, 160, 160)
    for a, b in zip(network(first), network(second), strict=True):
        assert 0.1 < float(a.std()) < 10
        assert float((a - b).std()) > 0.01


def test_an_official_file_loads_and_another_step_is_refused() -> None:
    spec = MODELS["msdnet_step4"]
    module = spec.build()
    state = {key: torch.full_like(value, 2) for key, value in module.state_dict().items()}
    assert load_weights(module, spec, state).complete
    assert all(bool((value == 2).all()) for value in module.state_dict().values())
    with pytest.raises(UsageError, match="does not fit msdnet_step6"):
        load_weights(MODELS["msdnet_step6"].build(), MODELS["msdnet_step6"], state)


def test_every_size_of_image_reaches_the_classifiers() -> None:
    spec = at_inputs(MODELS["msdnet_step4"], (TensorSpec("image", (1, 3, 128, 160), layout="nchw"),))
    assert spec.preprocess is not None and spec.preprocess.crop == (128, 160)
    assert [tuple(logits.shape) for logits in small()(noise(1, 3, 64, 96))] == [(1, 10)] * 5
