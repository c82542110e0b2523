"""The time of every kernel of an ONNX session, from ONNX Runtime's own profile."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acmix.toolkit.errors import UsageError
from acmix.toolkit.kernels import KernelTime, KernelTimes
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
        self.session, self.file, self.optimised = session, file, optimised
        self.names = [value.name for value in session.get_inputs()]

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        result: list[Array] = self.session.run(None, dict(zip(self.names, inputs, strict=True)))
        return result

    def kernels(self) -> KernelTimes:
        import onnx
        import onnxruntime

        events = json.loads(Path(self.session.end_profiling()).read_text("utf-8"))
        values = _values(onnx.load(self.file), onnx.load(self.optimised))
        made = _kernels(events, values)
        how = f"the profiler of onnxruntime {onnxruntime.__version__}, in whole microseconds"
        return KernelTimes(tuple(made), how)


def _kernels(events: Sequence[dict[str, Any]], values: dict[str, str]) -> list[KernelTime]:
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    starts = [start for start, _ in runs]
    times: dict[tuple[str, str, str], list[int]] = {}
    for event in sorted((e for e in events if e["cat"] == "Node" and e["name"].endswith(KERNEL)), key=_start):
        run = bisect_right(starts, event["ts"]) - 1
        if run < 0 or event["ts"] > runs[run][1]:
            raise UsageError(f"ONNX Runtime's profile names a kernel outside of every run: {event['name']}.")
        name, arguments = event["name"].removesuffix(KERNEL), event["args"]
        key = (name, arguments["op_name"], arguments["provider"])
        times.setdefault(key, [0] * len(runs))[run] += event["dur"] * 1000
    return [
        KernelTime(kind, values.get(name, ""), provider, True, tuple(taken))
        for (name, kind, provider), taken in times.items()
    ]


def _start(event: dict[str, Any]) -> int:
    start: int = event["ts"]
    return start


def _values(saved: onnx.ModelProto, optimised: onnx.ModelProto) -> dict[str, str]:
    """The value of the saved graph that each kernel makes, by the kernel's name; kernels that make none left out."""
    producers = {name: node for node in saved.graph.node for name in node.output}
    outputs = {value.name: f"output.{i}" for i, value in enumerate(saved.graph.output)}
    found = {}
    for node in optimised.graph.node:
        for name in (node.output[0], BLOCKED.sub("", node.name)):
            if name in producers:
                found[node.name] = outputs.get(name) or _real(name, producers)
                break
    return found


def _real(name: str, producers: dict[str, onnx.NodeProto]) -> str:
    """The floating-point value that a quantize or dequantize node rounds: integers are not given as outputs."""
    while (node := producers.get(name)) is not None and node.op_type in PAIRS:
        name = node.input[0]
    return name
