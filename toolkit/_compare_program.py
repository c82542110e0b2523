"""A captured program as steps with the user's own names and lines, and its values in eager float32."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from acmix.toolkit.target import Array

FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


@dataclass(frozen=True)
class Step:
    """One node that depends on an input.

    module: path in the prepared network, '' for the network itself; kind: its class. line: file:line of the source.
    inputs: the nodes that it reads, weights left out. weighted: it reads a weight of rank 2 or more.
    """

    node: str
    operator: str
    module: str
    kind: str
    line: str
    inputs: tuple[str, ...]
    weighted: bool


def steps_of(program: ExportedProgram) -> dict[str, Step]:
    """Every step by its node's name, in order of execution."""
    given = set(program.graph_signature.user_inputs)
    live: set[str] = set()
    steps: dict[str, Step] = {}
    before: tuple[str, str, str] = ("", "", "")
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in given:
            live.add(node.name)
        if node.op != "call_function" or not any(source.name in live for source in node.all_input_nodes):
            continue
        live.add(node.name)
        before = _origin(node) or before
        stored = [source for source in node.all_input_nodes if source.name not in live]
        inputs = tuple(source.name for source in node.all_input_nodes if source.name in live)
        steps[node.name] = Step(node.name, _operator(node), *before, inputs, any(map(_is_matrix, stored)))
    return steps


def _operator(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def _is_matrix(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() >= 2


def _origin(node: fx.Node) -> tuple[str, str, str] | None:
    """Module, class and line of a node; None for one that a rule made without saying where it comes from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return None
    path, kind = stack[-1]
    return str(path), str(getattr(kind, "__qualname__", kind)).split(".")[-1], _line(node.meta.get("stack_trace") or "")


def _line(trace: str) -> str:
    """The innermost line that is not torch's own."""
    library = str(Path(torch.__file__).parent)
    frames = [f for f in FRAME.finditer(trace) if not f["file"].startswith((library, "<"))]
    if not frames:
        return ""
    file = frames[-1]["file"]
    inside = os.path.relpath(file)
    return f"{file if inside.startswith('..') else inside}:{frames[-1]['line']}"


class _Recorder(fx.Interpreter):
    """Keeps every floating-point result. Copies: a later operator may work in place."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__(program.graph_module)
        self.values: dict[str, Array] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, torch.Tensor) and result.is_floating_point():
            self.values[n.name] = np.array(result.detach().numpy(), order="C")
        return result


def values_of(program: ExportedProgram, inputs: Sequence[Array]) -> dict[str, Array]:
    """The value of every node on one sample, by torch in the program's own precision."""
    given = iter(inputs)
    arguments: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            arguments.append(torch.from_numpy(np.ascontiguousarray(next(given))))
        elif spec.target in program.state_dict:
            # A copy: an operator that works in place would change the program.
            arguments.append(program.state_dict[spec.target].detach().clone())
        else:
            arguments.append(program.constants[str(spec.target)])
    recorder = _Recorder(program)
    with torch.no_grad():
        recorder.run(*arguments)
    return recorder.values
