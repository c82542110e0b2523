"""Several networks as signatures of one TFLite file: their graphs side by side, equal buffers stored once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from acmix.toolkit.joining import Function, JoinRequest, Part
from acmix.toolkit.target import Array, Runner

OLDEST_RUNTIME = "min_runtime_version"
GRAPH_FIELDS = ("SubgraphIndex", "subgraph")
"""How the fields of operators end that name another graph of the file (IF, WHILE, CALL, CALL_ONCE, composites)."""


@dataclass(frozen=True)
class TFLiteSignatures:
    """One file; a runtime that knows no signatures runs the first network."""

    def refuses(self, options: Any) -> str | None:
        return None

    def options(self, options: Any) -> Any:
        return options

    def join(self, request: JoinRequest) -> None:
        from importlib.metadata import version

        from acmix.targets.formats import tflite_flatbuffer, tflite_metadata

        whole = _Whole()
        graphs: list[tflite_metadata.GraphMetadata] = []
        extras = {}
        for part in request.parts:
            model = tflite_flatbuffer.read_model(Path(part.file))
            entries = tflite_flatbuffer.metadata_of(model)
            extras[part.function] = json.loads(entries.pop(tflite_metadata.EXTRA_ENTRY))
            entries.pop(tflite_metadata.ENTRY)
            whole.add(part, model, entries)
            graphs.append(tflite_metadata.GraphMetadata(part.inputs, part.outputs, part.preprocess))
            graphs += [tflite_metadata.GraphMetadata((), ())] * (len(model.subgraphs) - 1)
        made = whole.model()
        for name, content in whole.entries.items():
            tflite_flatbuffer.add_metadata(made, name, content)
        text = f"{', '.join(extras)}; joined by acmix {version('acmix')}"
        described = tflite_metadata.metadata(request.model, text, graphs, len(request.labels))
        tflite_flatbuffer.add_metadata(made, tflite_metadata.ENTRY, described)
        tflite_flatbuffer.add_metadata(made, tflite_metadata.EXTRA_ENTRY, json.dumps(extras, sort_keys=True).encode())
        content = tflite_flatbuffer.write_model(made)
        labelled = tflite_metadata.append_labels(content, request.labels) if request.labels else content
        Path(request.file).write_bytes(labelled)

    @contextlib.contextmanager
    def runners(
        self, file: Path, threads: int, functions: Sequence[Function], reference: bool
    ) -> Iterator[list[Runner]]:
        """One interpreter for all of them."""
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(file), num_threads=threads)
        yield [_runner(interpreter, function) for function in functions]


def _runner(interpreter: Any, function: Function) -> Runner:
    signature = interpreter.get_signature_runner(function.name)
    # A graph is allocated by its first call, and by nothing else that is public: it belongs to the load.
    signature(**{name: np.zeros(one["shape"], one["dtype"]) for name, one in signature.get_input_details().items()})

    def run(arrays: Sequence[Array]) -> list[Array]:
        results = signature(**dict(zip(function.inputs, arrays, strict=True)))
        return [np.asarray(results[name]) for name in function.outputs]

    return run


@dataclass
class _Whole:
    """The joined model, a part after the other."""

    codes: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)
    graphs: list[Any] = field(default_factory=list)
    signatures: list[Any] = field(default_factory=list)
    entries: dict[str, bytes] = field(default_factory=dict)
    places: dict[bytes, int] = field(default_factory=dict)

    def add(self, part: Part, model: Any, entries: dict[str, bytes]) -> None:
        """Append the graphs of a part, which change: they name buffers, operators and graphs of the whole."""
        codes = [self._code(code) for code in model.operatorCodes]
        buffers = [self._buffer(buffer) for buffer in model.buffers]
        before = len(self.graphs)
        for number, graph in enumerate(model.subgraphs):
            graph.name = f"{part.function}/{number}".encode() if number else part.function.encode()
            for tensor in graph.tensors:
                tensor.buffer = buffers[tensor.buffer]
            for operator in graph.operators or []:
                operator.opcodeIndex = codes[operator.opcodeIndex]
                _shift_graphs(operator, before)
        self.graphs += model.subgraphs
        (signature,) = model.signatureDefs
        signature.signatureKey, signature.subgraphIndex = part.function.encode(), signature.subgraphIndex + before
        self.signatures.append(signature)
        self._keep(entries)

    def model(self) -> Any:
        """The joined model, without metadata of its own."""
        from ai_edge_litert import schema_py_generated as schema

        made = schema.ModelT()
        made.version, made.description = 3, b"joined by acmix"
        made.operatorCodes, made.buffers = self.codes, self.buffers
        made.subgraphs, made.signatureDefs, made.metadata = self.graphs, self.signatures, []
        return made

    def _code(self, code: Any) -> int:
        known = [vars(one) for one in self.codes]
        if vars(code) not in known:
            self.codes.append(code)
            return len(self.codes) - 1
        return known.index(vars(code))

    def _buffer(self, buffer: Any) -> int:
        content = b"" if buffer.data is None else bytes(buffer.data)
        # The first buffer of a model is empty, and what has no data points at it.
        if content not in self.places:
            self.places[content] = len(self.buffers)
            self.buffers.append(buffer)
        return self.places[content]

    def _keep(self, entries: dict[str, bytes]) -> None:
        oldest = max(self.entries.get(OLDEST_RUNTIME, b""), entries.get(OLDEST_RUNTIME, b""), key=_version)
        self.entries = {**entries, **self.entries}
        if oldest:
            self.entries[OLDEST_RUNTIME] = oldest


def _version(text: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in text.rstrip(b"\0").decode().split(".") if part.isdecimal())


def _shift_graphs(operator: Any, by: int) -> None:
    for options in (operator.builtinOptions, getattr(operator, "builtinOptions2", None)):
        for name, value in vars(options).items() if options is not None else ():
            if name.endswith(GRAPH_FIELDS) and value >= 0:
                setattr(options, name, value + by)


SIGNATURES = TFLiteSignatures()
