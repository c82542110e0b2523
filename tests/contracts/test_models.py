"""Every model of the zoo keeps its promises. Adding a family adds its tests."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from acmix.toolkit import capture, catalog, weights
from acmix.toolkit.errors import UsageError
from acmix.toolkit.prepare import prepare
from acmix.toolkit.source import ModelSource, at_inputs, parameter_count
from acmix.toolkit.spec import ModelSpec, TensorSpec

NAMES = [card.name for card in catalog.model_cards()]
TARGETS = catalog.stems("targets")


@cache
def spec_of(name: str) -> ModelSpec:
    return catalog.load_model(name)


def network_of(spec: ModelSpec) -> capture.Network:
    return capture.build(ModelSource(spec.name, "zoo", spec), "random")


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest) -> capture.Network:
    """A model with random weights: pytest runs all its tests together, so it is built once."""
    return network_of(spec_of(request.param))


def over(names: list[str]) -> pytest.MarkDecorator:
    """Once for each of these models."""
    return pytest.mark.parametrize("network", names, indirect=True, scope="module")


def at_size(published: ModelSpec, height: int, width: int) -> ModelSpec:
    """The same model for another size; raises UsageError where it takes none such."""
    image = published.inputs[0]
    return at_inputs(published, (TensorSpec(image.name, (*image.shape[:2], height, width), layout="nchw"),))


def published_digits(count: int, claim: int) -> int:
    """The count, rounded to the digits of the claim that are not trailing zeros."""
    zeros = len(str(claim)) - len(str(claim).rstrip("0"))
    return round(count, -zeros)


def test_the_catalog_reads_the_same_names_as_python_does() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 14
    for card in catalog.model_cards():
        spec = spec_of(card.name)
        assert (spec.name, spec.claims, spec.weights is not None) == (card.name, card.claims, card.packaged_weights)


@over(NAMES)
def test_parameters_and_macs_are_the_published_ones(network: capture.Network) -> None:
    claims = network.spec.claims
    if claims.parameters is not None:
        assert published_digits(parameter_count(network.module), claims.parameters) == claims.parameters
    if claims.macs is None:
        assert claims.macs_note, "a model without a published count says why"
        return
    macs = capture.count_macs(network)
    if claims.macs_note:
        assert published_digits(macs, claims.macs) != claims.macs, "the note is stale: the counts agree"
        assert macs == pytest.approx(claims.macs, rel=0.06)
    else:
        assert published_digits(macs, claims.macs) == claims.macs


@over(NAMES)
def test_random_weights_repeat_for_a_seed(network: capture.Network) -> None:
    assert network_of(network.spec).weights.digest == network.weights.digest
    torch.manual_seed(1)
    assert weights.digest(network.spec.build()) != network.weights.digest


@over(NAMES)
def test_a_random_network_tells_inputs_apart(network: capture.Network) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = [
        network([torch.randn(s.shape, generator=generator).numpy() for s in network.spec.inputs])[0] for _ in range(2)
    ]
    assert all(np.isfinite(output).all() for output in outputs)
    if network.spec.classifies:
        assert outputs[0].shape == (1, 1000)
    assert abs(outputs[0] - outputs[1]).max() > 1e-4


SIZED = [name for name in NAMES if spec_of(name).preprocess is not None and len(spec_of(name).inputs) == 1]
PREPARED = [name for name in NAMES if spec_of(name).for_inference is not None]


@over(PREPARED)
def test_the_inference_forms_are_the_same_network_in_float64(network: capture.Network) -> None:
    spec = network.spec
    if spec.name in SIZED and spec.resized is None and min(spec.inputs[0].shape[2:]) > 128:
        # The same module; float64 is slow.
        spec = at_size(spec, 128, 128)
    before = weights.digest(network.module)
    prepared = prepare(network.module, spec, TARGETS)
    assert weights.digest(network.module) == before, "for_inference changed its argument"
    for form in prepared.values():
        assert form.error_float64 is not None
        assert form.error_float64 < 1e-10


@over(SIZED)
def test_another_input_size_builds_and_runs_or_is_refused_with_those_that_do(network: capture.Network) -> None:
    try:
        other = network_of(at_size(network.spec, 160, 128))
    except UsageError as refusal:
        assert "multiples of 224" in str(refusal)
        other = network_of(at_size(network.spec, 224, 448))
    shape = other.spec.inputs[0].shape
    output = other([torch.zeros(shape).numpy()])[0]
    if other.spec.classifies:
        assert output.shape == (1, 1000)
    assert other.spec.preprocess is not None
    assert other.spec.preprocess.crop == shape[2:]
