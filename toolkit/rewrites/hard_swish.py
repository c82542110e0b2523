"""Hard-swish and hard-sigmoid spelled out, as the one operator that runtimes have for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments, is_floating
from acmix.toolkit.rewrites._graph import calls, emit_before, remove_unused, replace, shape_of
from acmix.toolkit.rewrites._memory import is_written_between
from acmix.toolkit.rewrites._polynomial import Polynomial, above, below, is_same, polynomial

ATEN = torch.ops.aten
IN_PLACE = (ATEN.relu6_.default, ATEN.hardtanh_.default, ATEN.clamp_.default)
CLIPS = (ATEN.relu6.default, ATEN.hardtanh.default, ATEN.clamp.default, ATEN.clip.default, *IN_PLACE)


@dataclass(frozen=True)
class HardSwish:
    """Replace a spelled-out hard-swish by `hardswish(x)`, a hard-sigmoid by `hardsigmoid(x)`.

    1. c = min(max(a x + b, low), high), by relu6, hardtanh or clamp; then x c s with s a = 1 / 6, s b = 1 / 2,
       s low = 0 and s high = 1, in any order of the products, is hardswish(x). s c alone is hardsigmoid(x).
    2. x hardsigmoid(x) is hardswish(x).
    3. Every constant is right to 6e-8, half a unit of float32's last place.

        x * relu6(x + 3) / 6   becomes   hardswish(x)

    One kernel in place of four on ExecuTorch and ONNX Runtime, three operators on Core ML; litert-torch finds
    some spellings by itself.
    """

    name: str = "hard_swish"
    claim: str = "exact, constants to 6e-8"
    targets: tuple[str, ...] = ()

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        times = sum(_replace_clip(program, node) for node in calls(program, *CLIPS))
        times += sum(_replace_gate(program, node) for node in calls(program, ATEN.hardsigmoid.default))
        if times:
            remove_unused(program)
        return times


def _replace_clip(program: ExportedProgram, clip: Node) -> int:
    """Outermost first: the hard-sigmoid inside a hard-swish goes with it, unless something else reads it."""
    times = 0
    for variable, scale in _readings(clip):
        for outer in above(clip):
            if shape_of(outer) != shape_of(variable) or is_written_between(variable, variable, outer):
                continue
            found = polynomial(outer, (variable, clip))
            operator = ATEN.hardswish.default if is_same(found, {(1, 1): scale}) else None
            operator = ATEN.hardsigmoid.default if is_same(found, {(0, 1): scale}) else operator
            if operator is not None and outer.users:
                replace(program, outer, emit_before(program, outer)(operator, variable))
                times += 1
    return times


def _replace_gate(program: ExportedProgram, gate: Node) -> int:
    x = gate.args[0]
    if not isinstance(x, Node):
        return 0
    for outer in above(gate, 1):
        if is_same(polynomial(outer, (x, gate)), {(1, 1): 1.0}) and not is_written_between(x, gate, outer):
            replace(program, outer, emit_before(program, outer)(ATEN.hardswish.default, x))
            return 1
    return 0


def _readings(clip: Node) -> list[tuple[Node, float]]:
    """Each x, and the s that makes s clip(a x + b) the hard-sigmoid of x."""
    bounds, operand = _bounds(clip), clip.args[0]
    if not isinstance(operand, Node) or (clip.target in IN_PLACE and len(operand.users) > 1):
        return []
    if bounds is None or bounds[0] != 0 or bounds[1] <= 0 or not is_floating(clip):
        return []
    scale = 1 / bounds[1]
    wanted: Polynomial = {(1,): 1 / (6 * scale), (0,): 1 / (2 * scale)}
    return [(x, scale) for x in below(operand) if is_same(polynomial(operand, (x,)), wanted)]


def _bounds(clip: Node) -> tuple[float, float] | None:
    given = arguments(clip)
    if clip.target in (ATEN.relu6.default, ATEN.relu6_.default):
        return 0.0, 6.0
    low, high = given.get("min_val", given.get("min")), given.get("max_val", given.get("max"))
    return (float(low), float(high)) if isinstance(low, int | float) and isinstance(high, int | float) else None


REWRITE = HardSwish()
