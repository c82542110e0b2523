"""GELU spelled out by erf or tanh, as the one operator that runtimes have for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._graph import calls, emit_before, remove_unused, replace, shape_of
from acmix.toolkit.rewrites._memory import is_written_between
from acmix.toolkit.rewrites._polynomial import Polynomial, above, below, is_same, polynomial

ATEN = torch.ops.aten
RATE = math.sqrt(2 / math.pi)
ARGUMENTS: dict[OpOverload, Polynomial] = {
    ATEN.erf.default: {(1,): math.sqrt(0.5)},
    ATEN.tanh.default: {(1,): RATE, (3,): RATE * 0.044715},
}
APPROXIMATIONS: dict[OpOverload, str] = {ATEN.erf.default: "none", ATEN.tanh.default: "tanh"}


@dataclass(frozen=True)
class Gelu:
    """Replace a spelled-out GELU by `gelu(x)` or `gelu(x, approximate="tanh")`.

    1. The expression equals x / 2 + x e / 2 where e = erf(x / sqrt(2)), or e = tanh(sqrt(2 / pi) (x + 0.044715 x^3)),
       in any order of its products and sums.
    2. Every constant is right to 6e-8, half a unit of float32's last place. x sigmoid(1.702 x) is no GELU.

        x * 0.5 * (1 + erf(x / 1.41421356237))   becomes   gelu(x)

    XNNPACK in ExecuTorch 1.5.1 has no erf and no third power, so each spelling left its delegate; litert-torch
    made 30 operators of the erf.
    """

    name: str = "gelu"
    claim: str = "exact, constants to 6e-8"
    targets: tuple[str, ...] = ()

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        times = sum(_replace(program, node) for node in calls(program, *ARGUMENTS))
        if times:
            remove_unused(program)
        return times


def _replace(program: ExportedProgram, inner: Node) -> int:
    variable = _variable(inner)
    if variable is None:
        return 0
    half: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
    for outer in above(inner):
        if shape_of(outer) != shape_of(variable) or is_written_between(variable, variable, outer):
            continue
        if is_same(polynomial(outer, (variable, inner)), half):
            emit = emit_before(program, outer)
            replace(program, outer, emit(ATEN.gelu.default, variable, approximate=_approximation(inner)))
            return 1
    return 0


def _approximation(inner: Node) -> str:
    return next(name for operator, name in APPROXIMATIONS.items() if inner.target is operator)


def _variable(inner: Node) -> Node | None:
    """The x of erf(x / sqrt(2)), or of the tanh's cubic."""
    wanted = next(argument for operator, argument in ARGUMENTS.items() if inner.target is operator)
    for candidate in below(inner.args[0]):
        if is_same(polynomial(inner.args[0], (candidate,)), wanted):
            return candidate
    return None


REWRITE = Gelu()
