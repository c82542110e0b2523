"""LiteRT's C interface with its profiler, in libLiteRt.so of the package ai-edge-litert 2.3.

The package's Python interpreter has no profiler; this library has, and brings no headers. Its options are TOML texts.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from acmix.toolkit.errors import UsageError

Handle = ctypes.c_void_p
Size = ctypes.c_size_t
ON_CPU, FOR_READING, FOR_WRITING = 1, 0, 1
TENSOR_TYPE_WORDS = 32
"""Element type, rank, at most 8 dimensions and strides: larger than any version of it."""
STAGE, OPERATOR, DELEGATED_OPERATOR = 1, 2, 8


class Event(ctypes.Structure):
    """ProfiledEventData. where: the place of an operator in the file, or of an XNNPACK operator in its partition."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", Size * 6),
        ("where", ctypes.c_uint64),
        ("subgraph", ctypes.c_uint64),
        ("source", ctypes.c_int),
    )


class Library:
    """libLiteRt.so of the installed package."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("ai_edge_litert")
        if found is None or found.origin is None:
            raise UsageError("ai-edge-litert is not installed: pip install 'acmix[tflite]'")
        self.library = ctypes.CDLL(str(Path(found.origin).with_name("libLiteRt.so")))
        self.c = ctypes.CDLL(None)
        self.c.malloc.restype, self.c.malloc.argtypes = ctypes.c_void_p, [Size]

    def call(self, name: str, *arguments: Any) -> None:
        """LiteRt<name>; raises UsageError on every status but ok."""
        function = getattr(self.library, f"LiteRt{name}", None)
        if function is None:
            raise UsageError(f"this ai-edge-litert has no LiteRt{name}: its profiler is known in version 2.3.")
        if status := function(*arguments):
            raise UsageError(f"LiteRT could not do {name}: status {status}.")

    def make(self, name: str, *arguments: Any) -> Handle:
        """LiteRt<name>, whose last argument is the handle that it makes."""
        made = Handle()
        self.call(name, *arguments, ctypes.byref(made))
        return made

    def count(self, name: str, of: Handle) -> int:
        """LiteRt<name>, which gives a size."""
        size = Size()
        self.call(name, of, ctypes.byref(size))
        return size.value

    def owned(self, text: str) -> Handle:
        """A text that the library may free."""
        encoded = text.encode() + b"\0"
        place = self.c.malloc(len(encoded))
        ctypes.memmove(place, encoded, len(encoded))
        return Handle(place)

    @property
    def free(self) -> Handle:
        """The C library's own."""
        return ctypes.cast(self.c.free, Handle)


class Model:
    """A compiled model with XNNPACK and its profiler. Everything lives as long as the process: a child's."""

    def __init__(self, file: Path, threads: int) -> None:
        self.api = api = Library()
        self.environment = api.make("CreateEnvironment", 0, None)
        self.model = api.make("CreateModelFromFile", self.environment, str(file).encode())
        options = api.make("CreateOptions")
        api.call("SetOptionsHardwareAccelerators", options, ON_CPU)
        settings = {"xnnpack": f"num_threads = {threads}\n", "runtime_options_string": "enable_profiling = true\n"}
        for name, text in settings.items():
            added = api.make("CreateOpaqueOptions", name.encode(), api.owned(text), api.free)
            api.call("AddOpaqueOptions", options, added)
        self.compiled = api.make("CreateCompiledModel", self.environment, self.model, options)
        self.profiler = api.make("CompiledModelGetProfiler", self.compiled)
        if not self.profiler:
            raise UsageError("this ai-edge-litert gives no profiler: it is known in version 2.3.")
        self.subgraph = api.make("GetModelSubgraph", self.model, Size(0))
        self.signature = api.make("GetModelSignature", self.model, Size(0))
        self.inputs, self.input_places = self._side("Input")
        self.outputs, self.output_places = self._side("Output")

    def _side(self, side: str) -> tuple[Any, list[int]]:
        """Buffers in the order of the signature, which runs, and where each tensor of the file is among them."""
        api = self.api
        count = range(api.count(f"GetNumSubgraph{side}s", self.subgraph))
        in_file = [api.make(f"GetSubgraph{side}", self.subgraph, Size(i)).value for i in count]
        buffers, names = [], []
        for i in count:
            tensor = api.make(f"GetSignature{side}TensorByIndex", self.signature, Size(i))
            kind = (ctypes.c_longlong * TENSOR_TYPE_WORDS)()
            api.call("GetRankedTensorType", tensor, kind)
            wanted = api.make(f"GetCompiledModel{side}BufferRequirements", self.compiled, Size(0), Size(i))
            made = api.make("CreateManagedTensorBufferFromRequirements", self.environment, kind, wanted)
            buffers.append(made.value)
            names.append(tensor.value)
        return (Handle * len(buffers))(*buffers), [names.index(tensor) for tensor in in_file]

    def run(self, inputs: Sequence[bytes]) -> list[bytes]:
        """One inference, in the order of the file."""
        api = self.api
        for place, content in zip(self.input_places, inputs, strict=True):
            self._write(Handle(self.inputs[place]), content)
        sides = (Size(len(self.inputs)), self.inputs, Size(len(self.outputs)), self.outputs)
        api.call("RunCompiledModel", self.compiled, Size(0), *sides)
        return [self._read(Handle(self.outputs[place])) for place in self.output_places]

    def _write(self, buffer: Handle, content: bytes) -> None:
        size = self.api.count("GetTensorBufferPackedSize", buffer)
        if size != len(content):
            raise UsageError(f"an input has {size} bytes, {len(content)} were given.")
        place = Handle()
        self.api.call("LockTensorBuffer", buffer, ctypes.byref(place), FOR_WRITING)
        ctypes.memmove(place, content, size)
        self.api.call("UnlockTensorBuffer", buffer)

    def _read(self, buffer: Handle) -> bytes:
        size, place = self.api.count("GetTensorBufferPackedSize", buffer), Handle()
        self.api.call("LockTensorBuffer", buffer, ctypes.byref(place), FOR_READING)
        content = ctypes.string_at(place, size)
        self.api.call("UnlockTensorBuffer", buffer)
        return content

    def start(self) -> None:
        """Forget what was noted, and note what comes."""
        self.api.call("ResetProfiler", self.profiler)
        self.api.call("StartProfiler", self.profiler)

    def events(self) -> Iterator[Event]:
        """What was noted since `start`; ends the noting."""
        self.api.call("StopProfiler", self.profiler)
        count = ctypes.c_int()
        self.api.call("GetNumProfilerEvents", self.profiler, ctypes.byref(count))
        if count.value:
            found = (Event * count.value)()
            self.api.call("GetProfilerEvents", self.profiler, count, found)
            yield from found
