"""Which module of the user's network a kernel computes: by the numbers of its result, never by a guess."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from acmix.toolkit._compare_layers import MATCHED_ON, Work, by_name, least_match_db, open_tapped
from acmix.toolkit._compare_match import match_values
from acmix.toolkit._compare_program import Step, steps_of, values_of
from acmix.toolkit.artifact import Artifact, probes_of
from acmix.toolkit.execute import snapped
from acmix.toolkit.joining import own_file
from acmix.toolkit.kernels import KernelTime
from acmix.toolkit.layer_times import OperatorTime

if TYPE_CHECKING:
    from acmix.toolkit.capture import Captured

PRODUCT = re.compile("conv|gemm|fully ?connected|matmul|matrix|linear", re.IGNORECASE)
"""Kernels that multiply by weights, as the runtimes name them."""


def place(kernels: Sequence[KernelTime], steps: Mapping[str, Step], nodes: Mapping[str, str]) -> list[OperatorTime]:
    """Kernels with their modules. nodes: the captured program's node of a value by the value's name."""
    known = {nodes[kernel.value] for kernel in kernels if kernel.value in nodes}
    placed = []
    for kernel in kernels:
        step = _step(kernel, steps, nodes, known)
        module, source = (None, "") if step is None else (step.module, step.line)
        placed.append(
            OperatorTime(kernel.value, kernel.kind, module, source, kernel.runs_on, kernel.delegated, kernel.times_ns)
        )
    return placed


def _step(kernel: KernelTime, steps: Mapping[str, Step], nodes: Mapping[str, str], known: set[str]) -> Step | None:
    node = nodes.get(kernel.value)
    if node is None or node not in steps:
        return None
    if steps[node].weighted or not PRODUCT.search(kernel.kind):
        return steps[node]
    # A convolution with its activation gives the activation's value: it is named after the module with the weights,
    # where there is one alone behind it.
    behind, waiting = {node}, list(steps[node].inputs)
    while waiting:
        name = waiting.pop()
        if name in steps and name not in behind and name not in known:
            behind.add(name)
            waiting += steps[name].inputs
    weighted = [steps[name] for name in behind if steps[name].weighted]
    return weighted[0] if len(weighted) == 1 else steps[node]


def nodes_of(artifact: Artifact, captured: Captured, folder: Path, log: Path) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps of the captured program, and the node of every value of the file that has its numbers.

    folder: an empty one, for a copy of the file. Raises UsageError, GateError as reading the values does.
    """
    program = captured.programs[artifact.manifest.target.name].program
    probes = probes_of(artifact)
    grid = artifact.manifest.preprocess if artifact.manifest.pixel_grid else None
    pairs = zip(probes.identifiers, probes, strict=True)
    samples = [snapped(inputs, grid) for name, inputs in pairs if name in MATCHED_ON]
    steps = steps_of(program)
    values = by_name([values_of(program, inputs) for inputs in samples])
    values = {name: arrays for name, arrays in values.items() if name in steps}
    with contextlib.ExitStack() as stack:
        tapped = open_tapped(
            Work(artifact, captured, folder, log), own_file(artifact, "reading its values"), "saved", stack
        )
        found = match_values(by_name([tapped(inputs) for inputs in samples]), values, least_match_db(artifact))
    nodes = {value: match.node for value, match in found.items()}
    outputs = {f"output.{i}": name for i, name in enumerate(program.graph_signature.user_outputs)}
    return steps, {**nodes, **outputs}
