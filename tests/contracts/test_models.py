"""Every model of the zoo keeps its promises. Adding a family adds its tests."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from acmix.toolkit import capture, catalog, weights
from acmix.toolkit.source import ModelSource, at_inputs, parameter_count
from acmix.toolkit.spec import ModelSpec, TensorSpec

NAMES = [card.name for card in catalog.model_cards()]


@cache
def spec_of(name: str) -> ModelSpec:
    return catalog.load_model(name)


def network_of(spec: ModelSpec) -> capture.Network:
    return capture.build(ModelSource(spec.name, "zoo", spec), "random")


def test_the_catalog_reads_the_same_names_as_python_does() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 14
    for card in catalog.model_cards():
        spec = spec_of(card.name)
        assert (spec.name, spec.claims, spec.weights is not None) == (card.name, card.claims, card.packaged_weights)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    spec = spec_of(name)
    network = network_of(spec)
    if spec.claims.parameters is not None:
        assert parameter_count(network.module) == spec.claims.parameters
    assert spec.claims.macs is not None
    macs = capture.count_macs(network)
    # Published to three digits at the most, and some counters add pooling and activations.
    assert macs == pytest.approx(spec.claims.macs, rel=0.06)


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_repeat_for_a_seed(name: str) -> None:
    spec = spec_of(name)
    digests = set()
    for _ in range(2):
        digests.add(network_of(spec).weights.digest)
    assert len(digests) == 1
    torch.manual_seed(1)
    assert weights.digest(spec.build()) not in digests


@pytest.mark.parametrize("name", NAMES)
def test_a_random_network_tells_inputs_apart(name: str) -> None:
    network = network_of(spec_of(name))
    generator = torch.Generator().manual_seed(0)
    outputs = [
        network([torch.randn(s.shape, generator=generator).numpy() for s in network.spec.inputs])[0] for _ in range(2)
    ]
    assert outputs[0].shape == (1, 1000)
    assert abs(outputs[0] - outputs[1]).max() > 1e-4


PREPARED = [name for name in NAMES if spec_of(name).for_inference is not None]


@pytest.mark.parametrize("name", PREPARED)
def test_the_inference_form_is_the_same_network_in_float64(name: str) -> None:
    _, error = capture.prepare(network_of(spec_of(name)))
    assert error is not None
    assert error < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_another_input_size_builds_and_runs(name: str) -> None:
    spec = at_inputs(spec_of(name), (TensorSpec("image", (1, 3, 160, 128), layout="nchw"),))
    network = network_of(spec)
    output = network([torch.zeros(1, 3, 160, 128).numpy()])[0]
    assert output.shape == (1, 1000)
    assert spec.preprocess is not None
    assert spec.preprocess.crop == (160, 128)
