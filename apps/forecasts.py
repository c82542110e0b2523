"""`acmix inspect --model`: what a target would make of a network, before any export."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from acmix.apps import tables
from acmix.apps.output import console, print_json
from acmix.apps.requests import target_requests
from acmix.toolkit import catalog
from acmix.toolkit.errors import UsageError
from acmix.toolkit.source import find_model, parse_input

if TYPE_CHECKING:
    from rich.table import Table

    from acmix.toolkit.forecast import Forecast, RuleEffect
    from acmix.toolkit.target import Placement


def show(
    artifact: Path | None, model: str | None, target: str | None, inputs: tuple[str, ...], every: bool, as_json: bool
) -> None:
    """Print the forecast of one model on one target.

    Raises UsageError unless there is a model, exactly one target, no artifact, and no flag that is for artifacts.
    """
    if model is None or target is None or artifact is not None:
        raise UsageError(
            "acmix inspect looks at an artifact, or at a model before its export.\n"
            "Write `acmix inspect build/lsnet_t-tflite-float32`, or `acmix inspect --model lsnet_t --target tflite`."
        )
    if every:
        raise UsageError("--every lists the operators of an artifact: leave it out, or export the model first.")
    requests = target_requests(target, {})
    if len(requests) != 1:
        raise UsageError(f"acmix inspect --model takes one target, not {target!r}.\nAsk for them one by one.")
    catalog.require_packages(requests[0].name)
    source = find_model(model, tuple(parse_input(text, i) for i, text in enumerate(inputs)))
    from acmix.toolkit import capture
    from acmix.toolkit.forecast import forecast

    screen = console()
    recipe = catalog.load_recipe("float32")
    with tempfile.TemporaryDirectory() as folder, screen.status(f"lowering {model} for {target}, twice"):
        result = forecast(capture.build(source, None), requests[0], recipe, Path(folder) / "log")
    if as_json:
        print_json("forecast", forecast=result)
    screen.print(_placements(result))
    screen.print(_fallbacks(result))
    if result.rules:
        screen.print(_rules(result.rules))
    for form, times in Counter(chosen.form for chosen in result.forms).items():
        screen.print(f"form chosen for {times} layers: {form}")
    change = result.prepared_macs - result.macs
    screen.print(
        f"multiply-accumulates: {result.macs / 1e6:.1f} M as published, {change / 1e6:+.1f} M as acmix exports"
    )


def _placements(result: Forecast) -> Table:
    made = tables.table("", ">operators", ">outside the delegate", ">partitions", ">% of MACs outside", "")
    rows = (
        ("as it is", result.stock, result.stock_error),
        ("as acmix exports it", result.prepared, result.prepared_error),
    )
    for name, placement, error in rows:
        if placement is None:
            made.add_row(name, "-", "-", "-", "-", f"refused: {error}")
            continue
        partitions = "-" if placement.partitions is None else str(placement.partitions)
        outside = "unknown" if _unknown(placement) else str(len(placement.fallbacks))
        share = "" if _unknown(placement) else f"{100 * placement.macs_outside_share:.1f}"
        made.add_row(name, str(len(placement.operators)), outside, partitions, share, placement.determined_by)
    return made


def _unknown(placement: Placement) -> bool:
    return all(op.delegated is None for op in placement.operators)


def _fallbacks(result: Forecast) -> Table:
    made = tables.table("falls back", ">as it is", ">as acmix exports it", "why")
    reasons: dict[str, str] = {}
    counts: list[Counter[str]] = []
    for placement in (result.stock, result.prepared):
        outside = placement.fallbacks if placement else ()
        counts.append(Counter(op.kind for op in outside))
        reasons |= {op.kind: op.reason for op in outside}
    for kind in sorted(reasons, key=lambda k: (-counts[0][k], k)):
        made.add_row(kind, str(counts[0][kind]), str(counts[1][kind]), reasons[kind])
    return made


def _rules(rules: tuple[RuleEffect, ...]) -> Table:
    made = tables.table("rule that helps", ">times", "removes", "adds", ">MMAC", ">elements written, M", "claim")
    for rule in rules:
        removed, added = (", ".join(f"{n} {op}" for op, n in ops.items()) for ops in (rule.removed, rule.added))
        costs = (f"{rule.macs_change / 1e6:+.2f}", f"{rule.elements_change / 1e6:+.2f}")
        made.add_row(rule.name, str(rule.times), removed, added, *costs, rule.claim)
    return made
