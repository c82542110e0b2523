"""A runner in Python, for boards that have a runtime installed: the protocol of runner.c, one JSON object a line.

    python3 python_runner.py tflite|onnx

It is pushed to the board as it is: it needs numpy and the runtime there, nothing of acmix, and Python 3.8 or newer.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import sys
import time
from typing import IO, Any, Callable, Dict, List, Optional, Sequence, Tuple  # noqa: UP035 - boards have Python 3.8

MOST_RUNS = 100_000
RUNTIMES = {
    "tflite": ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"),
    "onnx": ("onnxruntime",),
}
"""Modules by format, the preferred one first."""


def find_runtime(kind: str) -> Tuple[str, Any]:  # noqa: UP006
    """The first runtime that is installed; its name and module."""
    for name in RUNTIMES[kind]:
        try:
            return name.partition(".")[0], importlib.import_module(name)
        except ImportError:
            continue
    raise ValueError(f"no runtime for {kind} is installed: {', '.join(RUNTIMES[kind])}")


class TFLite:
    """A file in LiteRT or its predecessor, on XNNPACK."""

    def __init__(self, module: Any, file: str, threads: int, profiled: bool) -> None:
        if profiled:
            raise ValueError("its Python interpreter has no profiler")
        self.interpreter = module.Interpreter(model_path=file, num_threads=threads)
        self.interpreter.allocate_tensors()
        self.details = self.interpreter.get_input_details()
        self.outputs = [detail["index"] for detail in self.interpreter.get_output_details()]

    def set_inputs(self, data: Sequence[bytes]) -> None:
        """Raw bytes, in the order of the file."""
        for detail, each in zip(self.details, data):  # noqa: B905
            self.interpreter.set_tensor(detail["index"], _array(each, detail["shape"], detail["dtype"]))

    def run(self) -> None:
        """One inference."""
        self.interpreter.invoke()

    def get_outputs(self) -> List[bytes]:  # noqa: UP006
        """Raw bytes of the last run."""
        return [self.interpreter.get_tensor(index).tobytes() for index in self.outputs]

    def kernels(self) -> Dict[str, Any]:  # noqa: UP006
        """Never known."""
        raise ValueError("no file is loaded with its kernels timed")


class Onnx:
    """A file in ONNX Runtime, on the processor."""

    TYPES = {  # noqa: RUF012
        "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int8)": "int8",
        "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(bool)": "bool", "tensor(double)": "float64",
    }  # fmt: skip

    def __init__(self, module: Any, file: str, threads: int, profiled: bool) -> None:
        options = module.SessionOptions()
        options.intra_op_num_threads = threads
        # x86 processors without VNNI saturate sums of int8 products by default.
        options.add_session_config_entry("session.x64quantprecision", "1")
        # Beside the file: what removes that removes these.
        self.graph = f"{file}.optimised" if profiled else ""
        if profiled:
            options.optimized_model_filepath = self.graph
            options.enable_profiling, options.profile_file_prefix = True, f"{file}.profile"
        self.session = module.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.details = self.session.get_inputs()
        self.fed: Dict[str, Any] = {}  # noqa: UP006
        self.found: List[Any] = []  # noqa: UP006

    def set_inputs(self, data: Sequence[bytes]) -> None:
        """Raw bytes, in the order of the file."""
        for detail, each in zip(self.details, data):  # noqa: B905
            self.fed[detail.name] = _array(each, detail.shape, self.TYPES[detail.type])

    def run(self) -> None:
        """One inference."""
        self.found = self.session.run(None, self.fed)

    def get_outputs(self) -> List[bytes]:  # noqa: UP006
        """Raw bytes of the last run."""
        return [array.tobytes() for array in self.found]

    def kernels(self) -> Dict[str, Any]:  # noqa: UP006
        """What ran; it ends the profile."""
        if not self.graph:
            raise ValueError("no file is loaded with its kernels timed")
        graph, self.graph = self.graph, ""
        # Its neighbour in the bundle.
        told: Dict[str, Any] = importlib.import_module("onnx_profile").read(self.session.end_profiling(), graph)  # noqa: UP006
        return told


KINDS: Dict[str, Callable[[Any, str, int, bool], Any]] = {"tflite": TFLite, "onnx": Onnx}  # noqa: UP006


def _array(data: bytes, shape: Sequence[int], kind: Any) -> Any:
    numpy = importlib.import_module("numpy")
    found = numpy.frombuffer(data, kind)
    wanted = 1
    for size in shape:
        wanted *= int(size)
    if found.size != wanted:
        raise ValueError(f"an input has {wanted} values, {found.size} were given")
    return found.reshape([int(size) for size in shape])


def peak_memory_kb() -> int:
    """The largest resident size of this process so far."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


class Server:
    """Obeys commands."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name, self.module = find_runtime(kind)
        self.model: Optional[Any] = None  # noqa: UP045
        self.has_inputs = False

    def obey(self, command: Dict[str, Any]) -> Dict[str, Any]:  # noqa: UP006
        """One answer."""
        verb = command.get("do")
        if verb == "load":
            return self.load(str(command["file"]), int(command.get("threads", 1)), bool(command.get("profile")))
        if verb == "kernels":
            return self.kernels()
        if verb == "run":
            return self.run(command["inputs"])
        if verb == "time":
            if command.get("inputs"):
                self.set_inputs(command["inputs"], verb)
            return {"latency_ns": [self.once() for _ in range(self.counted(int(command["count"])))]}
        if verb == "count":
            raise ValueError("only the native runners count instructions")
        raise ValueError(f"there is no {verb}; a runner can load, run and time, and tell kernels")

    def load(self, file: str, threads: int, profiled: bool) -> Dict[str, Any]:  # noqa: UP006
        """Load a file, once."""
        if self.model is not None:
            raise ValueError("a file is loaded already")
        begin = time.perf_counter_ns()
        self.model = KINDS[self.kind](self.module, file, threads, profiled)
        return {"load_ns": time.perf_counter_ns() - begin, "runtime": f"{self.name}, Python"}

    def kernels(self) -> Dict[str, Any]:  # noqa: UP006
        """What every run of a profiled file ran; asked once."""
        if self.model is None:
            raise ValueError("no file is loaded with its kernels timed")
        told: Dict[str, Any] = self.model.kernels()  # noqa: UP006
        return told

    def set_inputs(self, files: Sequence[str], verb: str) -> None:
        """Read the inputs of the next inference."""
        if self.model is None:
            raise ValueError(f"{verb} came before load")
        if len(files) != len(self.model.details):
            raise ValueError(f"the file has {len(self.model.details)} inputs, {len(files)} were given")
        data = []
        for name in files:
            with open(name, "rb") as file:  # noqa: PTH123
                data.append(file.read())
        self.model.set_inputs(data)
        self.has_inputs = True

    def run(self, files: Sequence[str]) -> Dict[str, Any]:  # noqa: UP006
        """One inference of files, and its outputs."""
        self.set_inputs(files, "run")
        taken = self.once()
        assert self.model is not None
        outputs = [base64.b64encode(each).decode() for each in self.model.get_outputs()]
        return {"latency_ns": [taken], "outputs": outputs}

    def counted(self, count: int) -> int:
        """The number of runs, if it can be."""
        if not self.has_inputs:
            raise ValueError("time came before run")
        if not 1 <= count <= MOST_RUNS:
            raise ValueError(f"count is from 1 to {MOST_RUNS}")
        return count

    def once(self) -> int:
        """Nanoseconds of one inference."""
        assert self.model is not None
        begin = time.perf_counter_ns()
        self.model.run()
        return time.perf_counter_ns() - begin


def serve(server: Server, commands: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until the commands end."""
    for line in commands:
        try:
            answer = {**server.obey(json.loads(line)), "peak_memory_kb": peak_memory_kb()}
        except Exception as error:
            # The runtime is foreign code: whatever it raises is the answer.
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
        answers.flush()


def main(arguments: Sequence[str]) -> None:
    """The program: one argument, the format."""
    # Whatever a runtime prints on stdout goes to stderr: answers have a stream of their own.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(Server(arguments[0]), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
