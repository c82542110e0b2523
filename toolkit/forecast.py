"""A forecast: what a target would make of a network as it is, and of what acmix makes of it, before any export.

Both are lowered into a scratch folder by the target's own converter, so the placement is read, not guessed.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from acmix.toolkit import catalog, machine
from acmix.toolkit.errors import AcmixError, UsageError
from acmix.toolkit.lower import LoweringRequest, start_lowering
from acmix.toolkit.manifest import ChosenForm
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.request import TargetRequest
from acmix.toolkit.target import Placement
from acmix.toolkit.warm import kept_warm

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from acmix.toolkit.capture import Captured, Network


@dataclass(frozen=True)
class RuleEffect:
    """What one rewrite does to the published network, after the rules before it.

    removed, added: operators of the captured program by name, with their counts.
    macs_change: multiply-accumulates that it adds (negative: saves).  elements_change: of elements written, too.
    """

    name: str
    claim: str
    times: int
    removed: dict[str, int]
    added: dict[str, int]
    macs_change: int
    elements_change: int


@dataclass(frozen=True)
class Forecast:
    """stock: where the operators of the published network would run; None with stock_error when it cannot be lowered.

    prepared, prepared_error: the same for the network as acmix would export it.
    macs, prepared_macs: multiply-accumulates of both.
    """

    model: str
    target: str
    stock: Placement | None
    stock_error: str
    prepared: Placement | None
    prepared_error: str
    macs: int
    prepared_macs: int
    rules: tuple[RuleEffect, ...]
    forms: tuple[ChosenForm, ...]


def forecast(network: Network, target: TargetRequest, recipe: Recipe, log: Path) -> Forecast:
    """Lower the network twice into a scratch folder, as published and as prepared, and compare.

    Raises UsageError when the network cannot be captured.
    """
    from acmix.toolkit import capture

    if network.spec.float_only:
        raise UsageError(
            f"{network.source.reference} as published cuts patches outside of any graph: there is none to forecast.\n"
            "Export it, then acmix inspect its folder."
        )
    published = capture.capture_published(network)
    captured = capture.capture(network, [target.name])
    made = captured.programs[target.name]
    with kept_warm():
        stock, stock_error = _placement(published, captured, target, recipe, log)
        prepared, prepared_error = _placement(made.program, captured, target, recipe, log)
    macs, prepared_macs = census(published).macs, census(made.program).macs
    return Forecast(
        network.spec.name,
        target.name,
        stock,
        stock_error,
        prepared,
        prepared_error,
        macs,
        prepared_macs,
        tuple(_effects(published, target.name)),
        made.preparation.forms,
    )


def _placement(
    program: ExportedProgram, captured: Captured, target: TargetRequest, recipe: Recipe, log: Path
) -> tuple[Placement | None, str]:
    from acmix.toolkit.program import save_program

    with tempfile.TemporaryDirectory(prefix="acmix-") as folder:
        saved, file = Path(folder) / "captured.pt2", Path(folder) / f"model{catalog.load_target(target.name).suffix}"
        save_program(program, saved)
        request = LoweringRequest(
            str(saved),
            str(file),
            "forecast",
            recipe,
            captured.inputs,
            captured.outputs,
            dataclasses.asdict(target.options),
        )
        try:
            with start_lowering(target.name, log, len(machine.usable_cpus())) as lowering:
                lowered, _ = lowering.lower(request)
            return lowered.placement or catalog.load_target(target.name).placement(file), ""
        except AcmixError as error:
            return None, str(error).partition("\n")[0]


@dataclass(frozen=True)
class Census:
    """Operators of a program by name, its multiply-accumulates, and the elements that it writes (views write none)."""

    operators: Counter[str]
    macs: int
    elements: int


def census(program: ExportedProgram) -> Census:
    """Count what one inference of a program does."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # Not the items taken from an operator's several results: Python's getitem, which computes nothing.
    nodes = [n for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        program.module()(*program.example_inputs[0])
    return Census(
        Counter(n.target.overloadpacket.__name__ for n in nodes),
        counter.get_total_flops() // 2,
        sum(_elements(n.meta.get("val")) for n in nodes if not n.target.is_view),
    )


def _elements(results: object) -> int:
    import torch.utils._pytree as pytree

    return sum(
        math.prod(shape) for r in pytree.tree_leaves(results) if (shape := getattr(r, "shape", None)) is not None
    )


def _effects(published: ExportedProgram, target: str) -> list[RuleEffect]:
    from acmix.toolkit.rewrite import applications

    effects = []
    before = census(published)
    for rule, times in applications(published, target):
        after = census(published)
        removed, added = before.operators - after.operators, after.operators - before.operators
        macs, elements = after.macs - before.macs, after.elements - before.elements
        effects.append(RuleEffect(rule.name, rule.claim, times, dict(removed), dict(added), macs, elements))
        before = after
    return effects
