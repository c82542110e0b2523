"""The time of every kernel of an ONNX session, from ONNX Runtime's own profile."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acmix.toolkit.kernels import KernelTime, KernelTimes, Noted, Notes, check_whole
from acmix.toolkit.target import Array

if TYPE_CHECKING:
    import onnx

KERNEL = "_kernel_time"
BLOCKED = re.compile(r"_nchwc(_token_\d+|_\d+)?$")
"""A kernel in ONNX Runtime's blocked layout is named after the value that it makes, with this behind."""
PAIRS = ("QuantizeLinear", "DequantizeLinear")


class ProfiledSession:
    """A session that was made with profiling, and the graph that it made of the file."""

    def __init__(self, session: Any, file: Path, optimised: Path) -> None:
        self.session, self.file, self.optimised, self.runs = session, file, optimised, 0
        self.names = [value.name for value in session.get_inputs()]

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        self.runs += 1
        result: list[Array] = self.session.run(None, dict(zip(self.names, inputs, strict=True)))
        return result

    def kernels(self) -> KernelTimes:
        import onnx
        import onnxruntime

        events = json.loads(Path(self.session.end_profiling()).read_text("utf-8"))
        makes = {node.name: node.output[0] for node in onnx.load(self.optimised).graph.node}
        runtime = f"onnxruntime {onnxruntime.__version__}"
        return kernel_times(self.file, notes_of(events, makes), self.runs, runtime)


def notes_of(events: Sequence[dict[str, Any]], makes: dict[str, str]) -> Notes:
    """The kernels of each run of a session. makes: of each kernel its first result, in the session's own graph."""
    whole = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    starts = [start for start, _ in whole]
    places: dict[Noted, int] = {}
    runs: list[list[tuple[int, int]]] = [[] for _ in whole]
    for event in sorted((e for e in events if e["cat"] == "Node" and e["name"].endswith(KERNEL)), key=_start):
        run = bisect_right(starts, event["ts"]) - 1
        # Behind the last run that is told as a whole, the profile was cut: the number of runs will tell.
        if run >= 0 and event["ts"] <= whole[run][1]:
            name, told = event["name"].removesuffix(KERNEL), event["args"]
            noted = Noted(name, told["op_name"], told["provider"], delegated=True, makes=makes.get(name, ""))
            runs[run].append((places.setdefault(noted, len(places)), event["dur"] * 1000))
    return Notes(tuple(places), tuple(map(tuple, runs)))


def _start(event: dict[str, Any]) -> int:
    start: int = event["ts"]
    return start


def kernel_times(file: Path, notes: Notes, runs: int, runtime: str) -> KernelTimes:
    """See Target. A kernel inside a branch or a loop may run in some runs only, or several times in one."""
    import onnx

    check_whole(notes, runs, runtime)
    taken = [[0] * runs for _ in notes.kernels]
    for number, run in enumerate(notes.runs):
        for place, ns in run:
            taken[place][number] += ns
    values = _values(onnx.load(file), notes.kernels)
    kernels = (
        KernelTime(noted.kind, value, noted.runs_on, noted.delegated, tuple(times))
        for noted, value, times in zip(notes.kernels, values, taken, strict=True)
    )
    return KernelTimes(tuple(kernels), f"the profiler of {runtime}, in whole microseconds")


def _values(saved: onnx.ModelProto, kernels: Sequence[Noted]) -> list[str]:
    """The value of the saved graph that each kernel makes, '' for a kernel that makes none of them."""
    producers = {name: node for node in saved.graph.node for name in node.output}
    outputs = {value.name: f"output.{i}" for i, value in enumerate(saved.graph.output)}
    found = []
    for noted in kernels:
        known = [name for name in (noted.makes, BLOCKED.sub("", noted.name)) if name in producers]
        found.append((outputs.get(known[0]) or _real(known[0], producers)) if known else "")
    return found


def _real(name: str, producers: dict[str, onnx.NodeProto]) -> str:
    """The floating-point value that a quantize or dequantize node rounds: integers are not given as outputs."""
    while (node := producers.get(name)) is not None and node.op_type in PAIRS:
        name = node.input[0]
    return name
