"""From figures for each node to figures for each module, and which module parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from acmix.toolkit._compare_program import Step
from acmix.toolkit.compare import ModuleAgreement
from acmix.toolkit.verify import SNR_LIMIT_DB

JUMP_DB = 10.0
"""Rounding gathers slowly: a module parts where the SNR falls by more than this against the module's own inputs."""


def modules_of(
    steps: Mapping[str, Step],
    kept: Sequence[str],
    ratios: Mapping[str, Sequence[float | None]],
    samples: Sequence[str],
    asked_db: float,
) -> tuple[ModuleAgreement, ...]:
    """The modules in order of execution. kept: nodes that both sides have; ratios: their SNR, sample by sample."""
    shown = last_of_each_run(steps, kept)
    rows = []
    for name in shown:
        covered, inputs = _since(steps, name, set(shown))
        rows.append(_row(steps, name, covered, [ratios[one] for one in inputs], ratios[name], samples, asked_db))
    return tuple(rows)


def last_of_each_run(steps: Mapping[str, Step], kept: Sequence[str]) -> list[str]:
    """Of values that one line of one module makes in a row, the last."""
    places = [(steps[name].module, steps[name].line) for name in kept]
    following = [*places[1:], None]
    return [name for name, own, after in zip(kept, places, following, strict=False) if own != after]


def _since(steps: Mapping[str, Step], node: str, known: set[str]) -> tuple[list[str], list[str]]:
    """The steps from which a value is computed since values that are known, and those values."""
    covered, inputs, waiting = {node}, set(), list(steps[node].inputs)
    while waiting:
        name = waiting.pop()
        if name in known:
            inputs.add(name)
        elif name in steps and name not in covered:
            covered.add(name)
            waiting += steps[name].inputs
    return [name for name in steps if name in covered], sorted(inputs)


def _row(
    steps: Mapping[str, Step],
    node: str,
    covered: Sequence[str],
    inputs: Sequence[Sequence[float | None]],
    own: Sequence[float | None],
    samples: Sequence[str],
    asked_db: float,
) -> ModuleAgreement:
    """Named after the module with the weights, where several are computed together."""
    before = [[one[i] for one in inputs if one[i] is not None] for i in range(len(own))]
    floors = [min([SNR_LIMIT_DB, *(db for db in some if db is not None)]) for some in before]
    broken = [i for i, db in enumerate(own) if db is not None and db < asked_db and floors[i] - db > JUMP_DB]
    known = [i for i, db in enumerate(own) if db is not None]
    worst = min(broken or known, key=lambda i: own[i] or 0.0, default=None)
    step = steps[next((name for name in covered if steps[name].weighted), node)]
    modules = dict.fromkeys(steps[name].module for name in covered)
    return ModuleAgreement(
        step.module,
        step.kind,
        step.line,
        step.operator,
        tuple(module for module in modules if module != step.module),
        None if worst is None else own[worst],
        None if worst is None else floors[worst],
        "" if worst is None else samples[worst],
        bool(broken),
    )
