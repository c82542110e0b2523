"""Pairs that a program brought along, against networks of pairs written by hand here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib  # noqa: F401
from torch.export import ExportedProgram
from torch.nn import functional as F

from acmix.toolkit import catalog
from acmix.toolkit.errors import UsageError
from acmix.toolkit.grid import integers
from acmix.toolkit.pairs import (
    are_own,
    check_request,
    check_untouched,
    has_pairs,
    read_pairs,
    unfit_for_fusion,
    unfit_for_ranges,
)
from acmix.toolkit.program import copy_program
from acmix.toolkit.quantize import graph_module
from acmix.toolkit.ranges import QuantizedTensor, Range
from acmix.toolkit.rewrite import rewrite

Q = torch.ops.quantized_decomposed
SIZE = (1, 3, 8, 8)
SIGNED, UNSIGNED = (-128, 127, torch.int8), (0, 255, torch.uint8)


@dataclass(frozen=True)
class Form:
    """How the network of this file is quantized; each field is one thing that quantizers do differently."""

    kind: tuple[int, int, torch.dtype] = SIGNED
    shift: int = 0
    per_channel: bool = True
    weight_zero: int = 0
    lowest_weight: int = -127
    second_entry_scale: float = 0.0
    before_activation: float = 0.0
    padded: bool = False
    float_result: bool = False
    dynamic: bool = False
    pretended: bool = False
    integer_bias: bool = False


def pair(x: Tensor, scale: float, zero_point: int, form: Form) -> Tensor:
    grid = (scale, zero_point + form.shift, *form.kind)
    return Q.dequantize_per_tensor(Q.quantize_per_tensor(x, *grid), *grid)


def float32(value: float) -> float:
    return float(np.float32(value))


class Hand(nn.Module):
    """One strided convolution, its activation and a spatial mean, with pairs; and a weight that nothing reads."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        generator = torch.Generator().manual_seed(3)
        weight = torch.randint(-90, 91, (4, 3, 3, 3), generator=generator, dtype=torch.int8)
        weight[0, 0, 0, 0] = form.lowest_weight
        self.register_buffer("weight", weight)
        self.register_buffer("scales", torch.tensor([0.01, 0.02, 0.003, 0.04]))
        self.register_buffer("zeros", torch.full((4,), form.weight_zero, dtype=torch.int64))
        self.register_buffer("bias_integers", torch.tensor([5, -7, 100, 0], dtype=torch.int32))
        self.bias = nn.Parameter(torch.randn(4, generator=generator))
        self.trained = nn.Parameter(torch.randn(4, 3, 3, 3, generator=generator))

    def weights(self) -> Tensor:
        limits = (-128 if self.form.lowest_weight < -127 else -127, 127, torch.int8)
        if self.form.per_channel:
            return Q.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, *limits)
        return Q.dequantize_per_tensor(self.weight, 0.02, self.form.weight_zero, *limits)

    def biases(self) -> Tensor:
        if not self.form.integer_bias:
            return self.bias
        return Q.dequantize_per_tensor(self.bias_integers, 0.001, 0, -(2**31), 2**31 - 1, torch.int32)

    def entry(self, x: Tensor, scale: float) -> Tensor:
        if self.form.dynamic:
            found = Q.choose_qparams(x, -128, 127, 1e-6, torch.int8)
            return Q.dequantize_per_tensor.tensor(Q.quantize_per_tensor.tensor(x, *found, *SIGNED), *found, *SIGNED)
        if self.form.pretended:
            return torch.fake_quantize_per_tensor_affine(x, scale, 0, -128, 127)
        return pair(x, scale, -5, self.form)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1)) if self.form.padded else x
        y = F.conv2d(self.entry(x, float32(0.03)), self.weights(), self.biases(), 2, 1)
        if self.form.second_entry_scale:
            y = y + F.conv2d(self.entry(x, self.form.second_entry_scale), self.weights(), self.biases(), 2, 1)
        if self.form.before_activation:
            y = pair(y, self.form.before_activation, -128, self.form)
        y = F.relu(y)
        if self.form.float_result:
            return y.mean((2, 3))
        y = pair(y, float32(0.05), -128, self.form)
        return pair(y.mean((2, 3)), float32(0.02), -128, self.form)


def program(form: Form) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(Hand(form).eval(), (torch.zeros(SIZE),))


def outputs(made: ExportedProgram, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = made.module()(x)
    return result


def noise(seed: int = 0) -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) * 2


def test_scales_and_zero_points_are_read_as_they_stand() -> None:
    read = read_pairs(program(Form()))
    found = sorted((t.scale, t.zero_point) for t in read.grid.tensors.values())
    assert found == [(float32(0.02), -128), (float32(0.03), -5), (float32(0.05), -128)]
    assert "x" in read.grid.tensors and len(read.grid.weights) == 1
    ranges = read.calibrated.ranges
    assert ranges is not None and are_own(ranges)
    assert all(integers(ranges.tensors[n], n) == t for n, t in read.grid.tensors.items())


def test_every_grid_is_found_again_from_its_range() -> None:
    random = np.random.default_rng(5)
    for scale in np.float32(10.0 ** random.uniform(-6, 3, 400)):
        for zero_point in (-128, -1, 0, 127, int(random.integers(-128, 128))):
            low, high = (-128 - zero_point) * float(scale), (127 - zero_point) * float(scale)
            assert integers(Range(low, high), "x") == QuantizedTensor("x", float(scale), zero_point)


@pytest.mark.parametrize(
    "form",
    [
        Form(),
        Form(kind=UNSIGNED, shift=128),
        Form(per_channel=False),
        Form(integer_bias=True),
        Form(lowest_weight=-128),
        Form(second_entry_scale=float32(0.1)),
    ],
    ids=["int8", "uint8", "one weight scale", "integer bias", "weights to -128", "two grids"],
)
def test_the_program_read_gives_the_same_bits(form: Form) -> None:
    given = program(form)
    read = read_pairs(given)
    for seed in range(3):
        assert torch.equal(outputs(read.pairs, noise(seed)), outputs(given, noise(seed)))
    nodes = [n for n in graph_module(read.pairs).graph.nodes if n.op == "call_function"]
    kinds = {node.args[-1] for node in nodes if "quantize" in str(node.target)}
    assert kinds == {torch.int8}


def test_the_float_program_is_the_network_without_rounding_of_activations() -> None:
    hand = Hand(Form())
    read = read_pairs(program(Form()))
    weight = hand.weight.double() * hand.scales.double().reshape(-1, 1, 1, 1)
    wanted = F.relu(F.conv2d(noise().double(), weight, hand.bias.detach().double(), 2, 1)).mean((2, 3))
    found = outputs(read.calibrated.program, noise())
    assert not has_pairs(read.calibrated.program)
    assert float((found.double() - wanted).abs().max()) < 1e-6 * float(wanted.abs().max())


def test_float_weights_left_from_training_are_dropped() -> None:
    read = read_pairs(program(Form()))
    assert "trained" in dict(program(Form()).named_parameters())
    assert all("trained" not in made.state_dict for made in (read.pairs, read.calibrated.program))


@pytest.mark.parametrize("target", catalog.stems("targets"))
def test_the_exact_rules_keep_every_pair(target: str) -> None:
    given = program(Form())
    changed = copy_program(given)
    applied = rewrite(changed, target)
    assert "keep_mean_dims" in {rule.name for rule in applied}
    assert torch.equal(outputs(changed, noise()), outputs(given, noise()))
    before, after = read_pairs(given).grid.tensors, read_pairs(changed).grid.tensors
    assert sorted((t.scale, t.zero_point) for t in after.values()) == sorted(
        (t.scale, t.zero_point) for t in before.values()
    )


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        (Form(dynamic=True), "'choose_qparams.*finds a range at run time"),
        (Form(pretended=True), "'fake_quant.*only pretends to quantize"),
        (Form(weight_zero=3), "'dequantize_per_channel.*zero points"),
        (Form(kind=(-127, 127, torch.int8)), "'dequantize_per_tensor.*integers from -127 to 127"),
    ],
    ids=["dynamic", "not converted", "asymmetric weights", "a narrow range"],
)
def test_pairs_that_no_runtime_takes_are_refused_by_name(form: Form, sentence: str) -> None:
    given = program(form)
    assert has_pairs(given)
    with pytest.raises(UsageError, match=sentence):
        read_pairs(given)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (Form(), ""),
        (Form(kind=UNSIGNED, shift=128), ""),
        (Form(lowest_weight=-128), "reach -128"),
        (Form(second_entry_scale=float32(0.1)), "float"),
        (Form(float_result=True), "result of 'conv2d' is float"),
    ],
    ids=["fits", "uint8 fits", "weights to -128", "a float sum", "a float result"],
)
def test_what_one_range_a_tensor_cannot_say_is_told(form: Form, reason: str) -> None:
    found = unfit_for_ranges(read_pairs(program(form)))
    assert reason in found and bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (Form(), ""),
        (Form(before_activation=float32(0.05)), ""),
        (Form(before_activation=float32(0.4)), "'relu' is rounded before and after on two grids"),
        (Form(float_result=True), "the result of 'conv2d' is float"),
    ],
    ids=["fused", "one grid twice", "two grids", "a float result"],
)
def test_what_fused_kernels_cannot_keep_is_told(form: Form, reason: str) -> None:
    read = read_pairs(program(form))
    found = unfit_for_fusion(read.pairs.graph)
    assert reason in found and bool(found) == bool(reason)
    assert unfit_for_ranges(read) == found


def test_the_range_of_a_padded_input_is_that_of_its_pair() -> None:
    ranges = read_pairs(program(Form(padded=True))).calibrated.ranges
    assert ranges is not None
    assert integers(ranges.tensors["x"], "x") == QuantizedTensor("x", float32(0.03), -5)


def test_a_float_program_has_no_pairs() -> None:
    with torch.no_grad():
        made = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(SIZE),))
    assert not has_pairs(made)


@pytest.mark.parametrize("precision", ["float32", "float16", "w8"])
def test_another_precision_is_refused_and_names_w8a8(precision: str) -> None:
    with pytest.raises(UsageError, match="--precision w8a8"):
        check_request(catalog.load_recipe(precision), False)


def test_a_calibration_is_refused() -> None:
    recipe = catalog.load_recipe("w8a8")
    check_request(recipe, False)
    with pytest.raises(UsageError, match="Leave --calibration out"):
        check_request(recipe, True)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: replace(t, scale=t.scale * 1.01),
        lambda t: replace(t, node="other"),
        lambda t: replace(t, zero_point=1),
    ],
)
def test_a_file_with_another_grid_is_refused(change: Callable[[QuantizedTensor], QuantizedTensor]) -> None:
    read = read_pairs(program(Form()))
    ranges, held = read.calibrated.ranges, tuple(read.grid.tensors.values())
    assert ranges is not None
    check_untouched(ranges, held, "tflite")
    with pytest.raises(UsageError, match="tflite would hold"):
        check_untouched(ranges, (change(held[0]), *held[1:]), "tflite")
