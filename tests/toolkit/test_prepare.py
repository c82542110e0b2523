"""Preparation: a form that differs in any output is found, and equal forms are shared."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from acmix.toolkit.errors import UsageError
from acmix.toolkit.manifest import ChosenForm
from acmix.toolkit.prepare import chosen_forms, flat_tensors, prepare
from acmix.toolkit.spec import ModelSpec, TensorSpec
from acmix.toolkit.weights import digest

Function = Callable[[Tensor], object]


class Calls(nn.Module):
    """A network that is one function of its input."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def error_of(published: Function, form: Function) -> float:
    """What preparing measures between two functions of a [1, 3, 4, 4] map."""
    spec = ModelSpec(
        "net",
        lambda: Calls(published),
        (TensorSpec("x", (1, 3, 4, 4), layout="nchw"),),
        for_inference=lambda module, target: Calls(form),
    )
    error = prepare(spec.build(), spec, ["onnx"])["onnx"].error_float64
    assert error is not None
    return error


def test_the_error_is_relative_to_the_largest_value_of_each_output() -> None:
    found = error_of(lambda x: (1e6 * x, x), lambda x: (1e6 * x, x + 1e-11))
    largest = float(
        torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).abs().max()
    )
    assert found == pytest.approx(1e-11 / largest, rel=1e-4)


@pytest.mark.parametrize(
    ("published", "form", "sentence"),
    [
        (lambda x: x, lambda x: x * (1 + 1e-8), "differs from the published network by 1.0e-08"),
        (lambda x: (x, x), lambda x: (x, x * float("nan")), "differs from the published network by inf"),
        (lambda x: (x, x), lambda x: (x, x / 0), "differs from the published network by inf"),
        (lambda x: (x, x > 0), lambda x: (x, x >= 9), "differs from the published network by 1.0e"),
        (lambda x: x.mean((2, 3)), lambda x: x.mean((2, 3))[None], r"outputs of \[\(1, 1, 3\)\].*of \[\(1, 3\)\]"),
        (lambda x: (x, x), lambda x: x, "gives outputs of"),
    ],
    ids=["too far", "NaN later", "infinity later", "truth values", "a shape that broadcasts", "one less"],
)
def test_a_form_that_differs_is_refused(published: Function, form: Function, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        error_of(published, form)
    assert "for_inference of its ModelSpec" in str(caught.value)


def test_truth_values_and_integers_that_agree_are_equal() -> None:
    assert error_of(lambda x: (x > 0, x.argmax(1)), lambda x: (x > 0, x.argmax(1))) == 0.0


def test_a_network_that_is_not_finite_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match=r"gives NaN or infinity for normally distributed inputs.*\n.*clamp"):
        error_of(torch.log, torch.log)


def test_a_network_that_fails_in_float64_says_what_to_do() -> None:
    def mixed(x: Tensor) -> Tensor:
        return x.flatten(1) @ torch.ones(48, 2, dtype=torch.float32)

    with pytest.raises(UsageError, match=r"net cannot be computed in float64.*RuntimeError.*\n.*dtype=x\.dtype"):
        error_of(mixed, mixed)


class Form(nn.Module):
    """A layer that is the same in every form."""

    def __init__(self, chosen_form: str) -> None:
        super().__init__()
        self.chosen_form = chosen_form

    def forward(self, x: Tensor) -> Tensor:
        return x


def replaced(module: nn.Module, target: str) -> nn.Module:
    """The sequence with its second layer in one form for TFLite and another elsewhere."""
    form = copy.deepcopy(module)
    assert isinstance(form, nn.Sequential)
    form[1] = Form("tiles" if target == "tflite" else "whole")
    return form


def test_targets_of_equal_forms_share_one_module_and_the_network_is_kept() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity(), nn.BatchNorm2d(4)).eval()
    before = digest(network)
    spec = ModelSpec("net", lambda: network, (TensorSpec("x", (1, 3, 4, 4)),), for_inference=replaced)
    prepared = prepare(network, spec, ["coreml", "onnx", "tflite"])
    assert prepared["coreml"] is prepared["onnx"] is not prepared["tflite"]
    assert prepared["onnx"].forms == (ChosenForm("1", "whole"),)
    assert prepared["tflite"].forms == (ChosenForm("1", "tiles"),)
    assert digest(network) == before
    assert all(parameter.dtype == torch.float32 for form in prepared.values() for parameter in form.module.parameters())


def test_forms_that_differ_without_saying_so_are_not_shared() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1))

    def other_for_onnx(module: nn.Module, target: str) -> nn.Module:
        return nn.Sequential(copy.deepcopy(module), nn.Identity()) if target == "onnx" else copy.deepcopy(module)

    spec = ModelSpec("net", lambda: network, (TensorSpec("x", (1, 3, 4, 4)),), for_inference=other_for_onnx)
    prepared = prepare(network, spec, ["coreml", "onnx", "tflite"])
    assert prepared["coreml"] is prepared["tflite"] is not prepared["onnx"]


def test_a_network_without_a_form_is_taken_as_it_is() -> None:
    network = nn.Conv2d(3, 4, 1)
    prepared = prepare(network, ModelSpec("net", lambda: network, (TensorSpec("x", (1, 3, 4, 4)),)), ["onnx", "tflite"])
    assert all(form.module is network and form.error_float64 is None for form in prepared.values())


def test_a_form_that_is_no_text_is_no_choice() -> None:
    module = nn.Sequential(Form("tiles"), nn.Identity())
    module[1].chosen_form = 3  # type: ignore[assignment]
    assert chosen_forms(module) == (ChosenForm("0", "tiles"),)


def test_outputs_keep_the_order_in_which_they_are_returned() -> None:
    a, b, c = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    assert [float(t) for t in flat_tensors({"z": c, "a": [a, (b,)]})] == [2, 0, 1]


@pytest.mark.parametrize("outputs", [None, (torch.zeros(1), 2.5)], ids=["nothing", "a number"])
def test_an_output_that_is_no_tensor_is_refused(outputs: object) -> None:
    with pytest.raises(UsageError, match=r"the model returns a (NoneType|float).*\nReturn tensors"):
        flat_tensors(outputs)
