"""Layers in a user's own network, replaced by their inference forms."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from acmix.toolkit import catalog
from acmix.toolkit.errors import UsageError
from acmix.toolkit.layers import inference
from acmix.toolkit.layers.acmix import ACmix
from acmix.toolkit.layers.inference import InferenceLayer, replace_layers, shapes_found_once
from acmix.toolkit.prepare import prepare
from acmix.toolkit.source import at_inputs
from acmix.toolkit.spec import ModelSpec, TensorSpec
from acmix.toolkit.target import LoweringJob


def network() -> nn.Sequential:
    """What a user might have, with some statistics."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), ACmix(16), nn.ReLU(), ACmix(16, 32, stride=2)
    )
    layers(torch.randn(2, 3, 32, 32))
    return layers


class Twice(nn.Module):
    """One layer on two sizes of map, or twice on one."""

    def __init__(self, shrinks: bool) -> None:
        super().__init__()
        self.mix = self.again = ACmix(8)
        self.shrinks = shrinks

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        z: Tensor = self.again(y[:, :, ::2] if self.shrinks else y)
        return z


def test_every_layer_is_replaced_and_the_network_stays_equal() -> None:
    module = network().double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    prepared = replace_layers(module, "executorch", (x,))
    assert not any(isinstance(layer, InferenceLayer) for layer in prepared.modules())
    assert [hasattr(layer, "chosen_form") for layer in prepared] == [False, False, False, True, False, True]
    with torch.no_grad():
        assert torch.allclose(prepared(x), module(x), rtol=1e-10, atol=1e-12)


def test_the_network_itself_stays_as_it_was() -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    prepared = replace_layers(module, "onnx", (torch.randn(1, 3, 32, 32),))
    assert module.training and prepared.training
    with torch.no_grad():
        for tensor in prepared.parameters():
            tensor.zero_()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_a_network_that_is_one_layer_is_replaced_too() -> None:
    layer = ACmix(16)
    assert not isinstance(replace_layers(layer, "tflite", (torch.zeros(1, 16, 8, 8),)), ACmix)


def test_a_layer_that_is_never_reached_stays() -> None:
    module = nn.ModuleDict({"used": ACmix(8), "unused": ACmix(8)})
    module.forward = lambda x: module["used"](x)  # type: ignore[method-assign, assignment]
    prepared = replace_layers(module, "tflite", (torch.zeros(1, 8, 8, 8),))
    assert isinstance(prepared.get_submodule("unused"), ACmix)


def test_a_layer_used_twice_gets_one_form() -> None:
    module = Twice(shrinks=False).double()
    x = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    prepared = replace_layers(module, "tflite", (x,))
    assert prepared.mix is prepared.again
    with torch.no_grad():
        assert torch.allclose(prepared(x), module(x), rtol=1e-10)


def test_without_computing_the_forms_are_the_same() -> None:
    module, x = network().eval(), torch.randn(1, 3, 32, 32)
    computed, shaped = (replace_layers(module, "executorch", (x,), computes) for computes in (True, False))
    assert [type(layer) for layer in shaped] == [type(layer) for layer in computed]
    with torch.no_grad():
        assert type(shaped(x)) is Tensor and torch.equal(shaped(x), computed(x))


def test_shapes_are_found_once_for_all_targets_and_anew_for_another_network_or_size() -> None:
    runs: list[tuple[int, ...]] = []
    one, other = network().eval(), network().eval()
    for module in (one, other):
        # A copy of the module runs, which keeps the hook.
        module.register_forward_pre_hook(lambda module, inputs: runs.append(tuple(inputs[0].shape)))
    small, large = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 48, 32)
    with shapes_found_once():
        forms = [replace_layers(one, target, (small,)) for target in ("tflite", "onnx", "tflite")]
        assert runs == [(1, 3, 32, 32)]
        replace_layers(other, "tflite", (small,))
        replace_layers(one, "tflite", (large,))
        assert runs == [(1, 3, 32, 32), (1, 3, 32, 32), (1, 3, 48, 32)]
    runs.clear()
    anew = [replace_layers(one, "tflite", (small,), computes) for computes in (True, False)]
    assert runs == [(1, 3, 32, 32)] * 2, "outside of the block they are found each time"
    with torch.no_grad():
        x = torch.randn(1, 3, 32, 32)
        assert all(torch.equal(forms[0](x), form(x)) for form in anew)


@pytest.mark.parametrize("name", ["acmix_resnet26", "of a user"])
def test_preparing_for_all_targets_looks_at_shapes_once_a_precision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []
    look = inference._input_shapes

    def count(module: nn.Module, inputs: Sequence[Tensor], computes: bool) -> inference.Shapes:
        looked.append(computes)
        return look(module, inputs, computes)

    monkeypatch.setattr(inference, "_input_shapes", count)
    image = TensorSpec("image", (1, 3, 64, 64), layout="nchw")
    if name == "of a user":
        spec = ModelSpec(name=name, build=network, inputs=(image,), outputs=("output",), classifies=False)
    else:
        spec = at_inputs(catalog.load_model(name), (image,))
    prepare(spec.build().eval(), spec, catalog.stems("targets"))
    assert looked == [name == "of a user"] * 2


class Cached(nn.Module):
    """Keeps a table in its class, and asks for a number."""

    table: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.mix = ACmix(8)

    def forward(self, x: Tensor) -> Tensor:
        if Cached.table is None:
            Cached.table = torch.ones(x.shape[1:])
        y: Tensor = self.mix(x) + Cached.table * float(x.abs().sum() >= 0)
        return y


def test_a_users_network_that_caches_and_asks_for_numbers_is_prepared() -> None:
    module, x = Cached().eval(), torch.randn(1, 8, 16, 16)
    prepared = replace_layers(module, "onnx", (torch.zeros(1, 8, 16, 16),))
    assert not any(isinstance(layer, InferenceLayer) for layer in prepared.modules())
    with torch.no_grad():
        assert type(prepared(x)) is Tensor and torch.allclose(prepared(x), module(x), atol=1e-4)


def test_a_layer_on_two_sizes_is_refused_by_its_name() -> None:
    with pytest.raises(UsageError, match=r"'mix' gets both \(1, 8, 8, 8\) and \(1, 8, 4, 8\)"):
        replace_layers(Twice(shrinks=True), "tflite", (torch.zeros(1, 8, 8, 8),))


def test_executorch_takes_the_whole_network_in_one_piece(tmp_path: Path) -> None:
    module = network().eval()
    x = torch.randn(1, 3, 64, 64)
    target = catalog.load_target("executorch")
    program = torch.export.export(replace_layers(module, "executorch", (x,)), (x,))
    job = LoweringJob(
        "network",
        catalog.load_recipe("float32"),
        (TensorSpec("image", (1, 3, 64, 64), layout="nchw"),),
        (TensorSpec("output", (1, 32, 16, 16), layout="nchw"),),
        target.options(),
    )
    placement = target.lower(program, job, tmp_path / "model.pte").placement
    assert placement is not None
    assert placement.fallbacks == ()
    assert placement.partitions == 1
    with target.runner(tmp_path / "model.pte", 1) as run, torch.no_grad():
        found = torch.from_numpy(run([x.numpy()])[0])
        assert float((found - module(x)).abs().max() / module(x).abs().max()) < 1e-5
