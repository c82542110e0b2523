"""What inspect says before an export: true of the file that the export then writes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acmix.apps.requests import target_requests
from acmix.toolkit import capture, catalog
from acmix.toolkit.forecast import Forecast, census, forecast
from acmix.toolkit.source import ModelSource
from acmix.toolkit.spec import ModelSpec, TensorSpec


class Awkward(nn.Module):
    """A group norm and an unfold, which XNNPACK has no kernels for."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)
        self.mix = nn.Conv2d(36, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        taps = F.unfold(self.norm(x), 3, padding=1)
        y: Tensor = self.mix(taps.reshape(1, 36, 8, 8))
        return y


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Forecast:
    spec = ModelSpec("awkward", Awkward, (TensorSpec("x", (1, 4, 8, 8), layout="nchw"),), classifies=False)
    network = capture.build(ModelSource("awkward", "module", spec), None)
    request = target_requests("executorch", {})[0]
    return forecast(network, request, catalog.load_recipe("float32"), tmp_path_factory.mktemp("forecast") / "log")


def test_what_falls_back_is_named_and_mended(seen: Forecast) -> None:
    assert seen.stock is not None
    assert seen.prepared is not None
    kinds = {operator.kind for operator in seen.stock.fallbacks}
    assert "aten.native_group_norm.default" in kinds
    assert seen.stock.partitions is not None
    assert seen.stock.partitions > 1
    assert seen.prepared.fallbacks == ()
    assert seen.prepared.partitions == 1


def test_each_rule_says_what_it_removes_and_costs(seen: Forecast) -> None:
    effects = {effect.name: effect for effect in seen.rules}
    assert effects["unfold"].removed == {"im2col": 1}
    assert effects["group_norm"].removed == {"group_norm": 1}
    assert effects["unfold"].elements_change > 0
    assert seen.macs == 4 * 36 * 64
    assert seen.prepared_macs - seen.macs == sum(effect.macs_change for effect in seen.rules)


class Split(nn.Module):
    """Operators of several results, and one view."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(x, 2, 1)
        values, _ = (first + second).flatten(2).topk(3, 2)
        return values


def test_operators_of_several_results_are_counted_by_their_names() -> None:
    spec = ModelSpec("split", Split, (TensorSpec("x", (1, 4, 8, 8), layout="nchw"),), classifies=False)
    network = capture.build(ModelSource("split", "module", spec), None)
    found = census(capture.capture_published(network))
    assert found.operators == {"split": 1, "add": 1, "flatten": 1, "topk": 1}
    # The sum, and the values and places of the six largest; the others are views.
    assert found.elements == 2 * 64 + 6 + 6


def test_the_network_itself_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    module = Awkward()
    spec = ModelSpec("awkward", lambda: module, (TensorSpec("x", (1, 4, 8, 8), layout="nchw"),), classifies=False)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    capture.capture(capture.build(ModelSource("awkward", "module", spec), None), ["executorch"])
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
