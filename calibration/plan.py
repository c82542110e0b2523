"""The plan that a ladder ends with: what `mixed` does to every target's program, in the names of modules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch.export import ExportedProgram
from torch.fx import Graph

from acmix.calibration.calibrate import mend
from acmix.calibration.collect import collect
from acmix.calibration.simulation import units
from acmix.calibration.steadiness import STRAY
from acmix.calibration.tradeoff import Tradeoff, digest, file_name
from acmix.toolkit.quantize import graph_module
from acmix.toolkit.quantized import Calibrated
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.samples import Samples


@dataclass(frozen=True)
class Plan:
    """What the ladder found, in words that hold for every target's program: module names, not nodes."""

    recipe: Recipe
    kept: tuple[str, ...]
    tradeoff: Tradeoff


def in_words(plan: Plan) -> tuple[str, ...]:
    """What the manifest says of the ladder."""
    t, rung = plan.tradeoff, plan.tradeoff.best
    said: tuple[str, ...] = (
        f"mixed: {rung.name!r}, rung {(t.chosen or 0) + 1} of {len(t.rungs)} tried, drops {rung.drop_points:.2f} points"
        f" of {t.measure} on {t.photos_count} photos of {t.photos_name}, simulated; {t.max_drop:g} were allowed",
        f"mixed: {file_name(t)} has sha256 {digest(t)}",
    )
    if rung.steady_db is not None and rung.steady_db < steady_from(plan.recipe):
        said += (
            f"mixed: {rung.name!r} keeps {rung.steady_db:.1f} dB of its outputs when float operators stray by "
            f"{STRAY:g}, and no rung within the budget keeps {steady_from(plan.recipe):g}: runtimes will differ",
        )
    return (*said, f"mixed: kept float: {', '.join(plan.kept)}") if plan.kept else said


def nodes_of(graph: Graph, modules: Collection[str]) -> tuple[str, ...]:
    """The layers of some modules, by node, in one program; of modules inside them, where a form is split into parts."""
    found: list[str] = []
    for name, layers in units(graph).items():
        if any(name == module or name.startswith(f"{module}.") for module in modules):
            found.extend(layer.name for layer in layers)
    return tuple(found)


def apply(plan: Plan, program: ExportedProgram, samples: Samples, asked: Sequence[str] = ()) -> Calibrated:
    """Calibrate another program of the same network by the plan. asked: nodes that are float in any case."""
    kept = nodes_of(graph_module(program).graph, plan.kept)
    mended = mend(program, plan.recipe, samples, (*asked, *kept))
    return Calibrated(mended.program, collect(mended.program, samples, plan.recipe.observer), mended.repairs, kept)


def steady_from(recipe: Recipe) -> float:
    """What a rung has to keep of its own outputs, in dB: as much as its files have to keep of their simulation."""
    return (recipe.conversion or recipe.tolerance).snr_db
