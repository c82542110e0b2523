"""One network of every family, captured: nothing in its program that a target refuses or that ruins it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from acmix.toolkit import capture, catalog
from acmix.toolkit.rewrites._graph import calls, constant_value, shape_of
from acmix.toolkit.source import ModelSource

ATEN = torch.ops.aten
LARGEST_RANK = 5
"""Core ML refuses tensors of a higher rank."""
SMALLEST = {
    family: min(
        (card for card in catalog.model_cards() if card.family == family), key=lambda card: card.claims.macs or 0
    ).name
    for family in {card.family for card in catalog.model_cards()}
}


def is_one_hot(weight: Tensor) -> bool:
    """Whether a dense filter does nothing but move pixels: one 1 in every row, and more than one place for it."""
    rows = weight.flatten(1)
    return rows.shape[1] > 1 and bool(((rows == 0) | (rows == 1)).all()) and bool((rows.sum(1) == 1).all())


def program_of(name: str) -> ExportedProgram:
    spec = catalog.load_model(name)
    network = capture.build(ModelSource(name, "zoo", spec), "random")
    return capture.capture(network, ["coreml"]).programs["coreml"].program


@pytest.mark.parametrize("family", sorted(SMALLEST))
def test_nothing_is_left_that_core_ml_refuses_or_that_costs_without_computing(family: str) -> None:
    program = program_of(SMALLEST[family])
    shapes = {node.name: shape for node in program.graph.nodes if (shape := shape_of(node)) is not None}
    assert {name: shape for name, shape in shapes.items() if len(shape) > LARGEST_RANK} == {}
    kinds = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not kinds & {"aten.im2col.default", "aten.roll.default", "aten.index_select.default", "aten.gru.input"}
    for conv in calls(program, ATEN.conv2d.default):
        weight, groups = constant_value(program, conv.args[1]), conv.args[6] if len(conv.args) > 6 else 1
        # On a map of one pixel it is a look-up that costs nothing: LSNet spreads its statistics so.
        if weight is not None and groups == 1 and shapes[conv.name][2:] != (1, 1):
            assert not is_one_hot(weight), conv.name


def test_a_one_hot_filter_is_known_when_it_is_seen() -> None:
    unfold = torch.zeros(9, 1, 3, 3)
    unfold.view(9, 9).fill_diagonal_(1)
    assert is_one_hot(unfold)
    assert not is_one_hot(torch.randn(4, 2, 3, 3))
    assert not is_one_hot(torch.ones(4, 1, 1, 1))
