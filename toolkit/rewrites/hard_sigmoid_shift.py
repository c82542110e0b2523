"""The + 3 of a hard-sigmoid taken into the bias of the layer before it: one converter does so by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments
from acmix.toolkit.rewrites._graph import (
    add_constant,
    calls,
    constant_value,
    emit_before,
    remove_unused,
    replace,
)
from acmix.toolkit.rewrites._memory import is_written_between

ATEN = torch.ops.aten
LAYERS = (ATEN.conv2d.default, ATEN.linear.default)
SHIFT, TOP = 3.0, 6.0


@dataclass(frozen=True)
class HardSigmoidShift:
    """Replace `hardsigmoid(layer(x))` by a layer with a larger bias, relu6 and a factor.

    1. The layer is a convolution or linear layer with constant weights, with a constant bias or none.
    2. Only the hard-sigmoid reads it. Its arguments stand by their places, as torch.export writes them.

    litert-torch folds the + 3 so, and fuses the relu6: what is rounded to integers is then relu6's result, a value
    that a program with hardsigmoid does not have, and the file's integers part from those of its simulation.

        hardsigmoid(conv2d(x, w, b))   becomes   relu6(conv2d(x, w, b + 3)) / 6
    """

    name: str = "hard_sigmoid_shift"
    claim: str = "exact, the factor to 6e-8"
    targets: tuple[str, ...] = ("tflite",)

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        times = sum(_replace(program, gate) for gate in calls(program, ATEN.hardsigmoid.default))
        if times:
            remove_unused(program)
        return times


def _replace(program: ExportedProgram, gate: Node) -> bool:
    layer = gate.args[0]
    if not isinstance(layer, Node) or layer.target not in LAYERS or len(layer.users) != 1 or layer.kwargs:
        return False
    given = arguments(layer)
    weight, bias = constant_value(program, given["weight"]), constant_value(program, given["bias"])
    if weight is None or (bias is None) != (given["bias"] is None):
        return False
    if is_written_between(layer.args[0], layer, gate):  # type: ignore[arg-type]
        return False
    shifted = weight.new_full(weight.shape[:1], SHIFT) if bias is None else (bias.double() + SHIFT).to(bias.dtype)
    constant = add_constant(program, "shifted_bias", shifted)
    # In the layer's own place: it keeps the name of its module.
    made = emit_before(program, layer)(layer.target, *layer.args[:2], constant, *layer.args[3:])
    emit = emit_before(program, gate)
    replace(program, gate, emit(ATEN.mul.Tensor, emit(ATEN.relu6.default, made), 1 / TOP))
    return True


REWRITE = HardSigmoidShift()
