"""The time of every kernel of an ExecuTorch program, as the runtime tells its event tracer: here that of ETDump."""

from __future__ import annotations

import re
import struct
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from acmix.targets.formats import executorch_runtime, executorch_taps
from acmix.targets.formats.xnnpack_events import GraphNode, align
from acmix.toolkit.errors import UsageError
from acmix.toolkit.kernels import KernelTime, KernelTimes, Noted, Notes, same_in_every_run
from acmix.toolkit.target import Array

BACKENDS = {"XnnpackBackend": "XNNPACK"}
NUMBERED = re.compile(r" #\d+$")
CONCATENATE = re.compile(r"XNNConcatenate(\d)$")
MEASURED_BY = (
    "the event tracer of {runtime}: portable kernels in nanoseconds, XNNPACK's operators in whole microseconds"
)


class ProfiledProgram:
    """A program that was loaded with an event tracer."""

    def __init__(self, runtime: Any, file: Path) -> None:
        self.file, self.runs = file, 0
        try:
            self.program: Any = runtime._load_for_executorch(str(file), enable_etdump=True)
        except RuntimeError as error:
            raise UsageError(f"ExecuTorch cannot load {file.name}: {error}. Export it again.") from error
        if not self.program.has_etdump():
            raise UsageError("this ExecuTorch has no event tracer: pip install 'acmix[executorch]' brings one.")

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        self.runs += 1
        made = self.program.forward(executorch_runtime.tensors(inputs), clone_outputs=False)
        return [np.array(output.numpy(), order="C") for output in made]

    def kernels(self) -> KernelTimes:
        from executorch.devtools.etdump.serialize import deserialize_from_etdump_flatcc

        with tempfile.TemporaryDirectory(prefix="acmix-") as folder:
            dump = Path(folder, "program.etdp")
            self.program.write_etdump_result_to_file(str(dump))
            found = deserialize_from_etdump_flatcc(dump.read_bytes())
        notes = notes_of([run.events for run in found.run_data if run.name == "Execute"])
        return kernel_times(self.file, notes, self.runs, f"executorch {version('executorch')}")


def notes_of(blocks: Sequence[Sequence[Any]]) -> Notes:
    """The kernels of each run in order; what only encloses others (the call of a delegate, the method) is left out."""
    places: dict[Noted, int] = {}
    runs = []
    for block in blocks:
        run = []
        for one in (event.profile_event for event in block if event.profile_event is not None):
            place, ns = (one.chain_index, one.instruction_id), one.end_time - one.start_time
            if one.delegate_debug_id_str:
                noted = Noted(one.delegate_debug_id_str, delegated=True, place=place)
            elif one.name and one.name.startswith("native_call_"):
                noted = Noted(one.name.removeprefix("native_call_"), place=place)
            else:
                continue
            run.append((places.setdefault(noted, len(places)), ns))
        runs.append(tuple(run))
    return Notes(tuple(places), tuple(runs))


def kernel_times(file: Path, notes: Notes, runs: int, runtime: str) -> KernelTimes:
    """See Target."""
    found = same_in_every_run(notes, runs, runtime)
    return KernelTimes(tuple(_kernels(found, _instructions(file))), MEASURED_BY.format(runtime=runtime))


@dataclass(frozen=True)
class Instruction:
    """backend: '' for a portable kernel.  nodes: of a delegate's graph.  values: the results by the taps' names."""

    backend: str
    nodes: tuple[GraphNode, ...]
    values: tuple[str, ...]


def _kernels(
    found: Sequence[tuple[Noted, tuple[int, ...]]], program: dict[tuple[int, int], Instruction]
) -> list[KernelTime]:
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (noted, _) in enumerate(found):
        groups[noted.place].append(index)
    made = []
    for place, members in groups.items():
        names = [NUMBERED.sub("", found[index][0].name) for index in members]
        called = program.get(place, Instruction("", (), ()))
        nodes = align(names, called.nodes) if called.backend else [0 if called.values else None] * len(names)
        for index, name, node in zip(members, names, nodes, strict=True):
            value = "" if node is None else called.values[node]
            runs_on = BACKENDS.get(called.backend, called.backend) or "portable"
            made.append(KernelTime(name, value, runs_on, bool(called.backend), found[index][1]))
    return made


def _instructions(file: Path) -> dict[tuple[int, int], Instruction]:
    """The instructions of the forward method that compute something, by chain and place."""
    from executorch.exir._serialize._program import deserialize_pte_binary
    from executorch.exir.schema import DelegateCall, KernelCall

    program = deserialize_pte_binary(file.read_bytes()).program
    plan = next(plan for plan in program.execution_plan if plan.name == "forward")
    outputs = {value: f"output.{i}" for i, value in enumerate(plan.outputs)}
    found = {}
    for chain_place, chain in enumerate(plan.chains):
        for place, instruction in enumerate(chain.instructions):
            call = instruction.instr_args
            if isinstance(call, KernelCall):
                value = call.args[-1]
                found[chain_place, place] = Instruction("", (), (outputs.get(value, f"value.{value}"),))
            elif isinstance(call, DelegateCall):
                found[chain_place, place] = _delegate(program, plan, call, outputs)
    return found


def _delegate(program: Any, plan: Any, call: Any, outputs: dict[int, str]) -> Instruction:
    delegate = plan.delegates[call.delegate_index]
    if delegate.id not in BACKENDS:
        return Instruction(delegate.id, (), ())
    blob = bytes(program.backend_delegate_data[delegate.processed.index].data)
    offset, size = struct.unpack_from("<II", blob, 10)
    graph = executorch_taps.as_json(blob[offset : offset + size])
    names = {}
    for value in graph["xvalues"]:
        tensor = executorch_taps.tensor_of(value)
        names[tensor["id_out"]] = f"delegate.{call.delegate_index}.{tensor['id_out']}"
        if tensor["flags"] == executorch_taps.EXTERNAL_OUTPUT:
            outside = call.args[tensor["external_id"]]
            names[tensor["id_out"]] = outputs.get(outside, f"value.{outside}")
    nodes = list(_nodes(graph))
    return Instruction(
        delegate.id, tuple(node for node, _ in nodes), tuple(names.get(result, "") for _, result in nodes)
    )


def _nodes(graph: dict[str, Any]) -> Iterator[tuple[GraphNode, int]]:
    """Each node of an XNNPACK graph with the id of its (first) result."""
    for node in graph["xnodes"]:
        kind, fields = node["xnode_union_type"], node["xnode_union"]
        result = next((fields[name] for name in ("output_id", "output1_id") if name in fields), -1)
        concatenated = CONCATENATE.match(kind)
        yield GraphNode(kind, int(concatenated[1]) if concatenated else 1), result
