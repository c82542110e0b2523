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


def published_digits(count: int, claim: int) -> int:
    """The count, rounded to the digits of the claim that are not trailing zeros."""
    zeros = len(str(claim)) - len(str(claim).rstrip("0"))
    return round(count, -zeros)


def test_the_catalog_reads_the_same_names_as_python_does() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 14
    for card in catalog.model_cards():
        spec = spec_of(card.name)
        assert (spec.name, spec.claims, spec.weights is not None) == (card.name, card.claims, card.packaged_weights)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    spec = spec_of(name)
    claims = spec.claims
    network = network_of(spec)
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
    assert all(np.isfinite(output).all() for output in outputs)
    if network.spec.classifies:
        assert outputs[0].shape == (1, 1000)
    assert abs(outputs[0] - outputs[1]).max() > 1e-4


PREPARED = [name for name in NAMES if spec_of(name).for_inference is not None]


@pytest.mark.parametrize("name", PREPARED)
def test_the_inference_forms_are_the_same_network_in_float64(name: str) -> None:
    spec = spec_of(name)
    module = network_of(spec).module
    before = weights.digest(module)
    prepared = prepare(module, spec, TARGETS)
    assert weights.digest(module) == before, "for_inference changed its argument"
    for form in prepared.values():
        assert form.error_float64 is not None
        assert form.error_float64 < 1e-10


SIZED = [name for name in NAMES if spec_of(name).preprocess is not None and len(spec_of(name).inputs) == 1]


@pytest.mark.parametrize("name", SIZED)
def test_another_input_size_builds_and_runs_or_is_refused_with_those_that_do(name: str) -> None:
    published = spec_of(name)
    image = published.inputs[0]

    def at_size(height: int, width: int) -> ModelSpec:
        return at_inputs(published, (TensorSpec(image.name, (*image.shape[:2], height, width), layout="nchw"),))

    try:
        spec = at_size(160, 128)
        network = network_of(spec)
    except UsageError as refusal:
        assert "multiples of 224" in str(refusal)
        spec = at_size(224, 448)
        network = network_of(spec)
    shape = spec.inputs[0].shape
    output = network([torch.zeros(shape).numpy()])[0]
    if spec.classifies:
        assert output.shape == (1, 1000)
    assert spec.preprocess is not None
    assert spec.preprocess.crop == shape[2:]
