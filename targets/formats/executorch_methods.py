"""Several networks as methods of one ExecuTorch program: XNNPACK names weights by digest, so they lie there once."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acmix.targets.formats import executorch_runtime
from acmix.toolkit.errors import UsageError
from acmix.toolkit.joining import Function, JoinRequest
from acmix.toolkit.target import Runner

WEIGHTS_ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class ExecuTorchMethods:
    """One program. What a part says of itself stays: the method `acmix_model` becomes `FUNCTION_acmix_model`."""

    def refuses(self, options: Any) -> str | None:
        return None

    def options(self, options: Any) -> Any:
        return options

    def join(self, request: JoinRequest) -> None:
        from executorch.exir._serialize._program import serialize_pte_binary

        whole = _Whole()
        for part in request.parts:
            whole.add(part.function, _read(Path(part.file)))
        made = serialize_pte_binary(whole.program(), extract_delegate_segments=True)
        with Path(request.file).open("wb") as stream:
            made.write_to_file(stream)

    @contextlib.contextmanager
    def runners(
        self, file: Path, threads: int, functions: Sequence[Function], reference: bool
    ) -> Iterator[list[Runner]]:
        """One program, whose methods share one pool of threads with the whole process."""
        with executorch_runtime.opened(file, threads) as runtime:
            yield executorch_runtime.load(runtime, file, [function.name for function in functions])


def _read(file: Path) -> Any:
    from executorch.exir._serialize._program import deserialize_pte_binary

    try:
        return deserialize_pte_binary(file.read_bytes())
    except (ValueError, IndexError, KeyError, struct.error, AssertionError) as error:
        raise UsageError(f"'{file.name}' is not a whole ExecuTorch program: {error}. Export it again.") from error


@dataclass
class _Whole:
    """The joined program, a part after the other."""

    plans: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    blobs: list[Any] = field(default_factory=list)
    named: dict[str, bytes] = field(default_factory=dict)
    places: dict[bytes, int] = field(default_factory=dict)

    def add(self, function: str, part: Any) -> None:
        """Append the methods of a part, which change: they name constants and delegates of the whole."""
        if part.mutable_data:
            raise UsageError(f"{function} has state of its own, which cannot be joined.\nExport it alone.")
        program = part.program
        places = [self._constant(one) for one in program.constant_buffer]
        for plan in program.execution_plan:
            plan.name = function if plan.name == executorch_runtime.FORWARD else f"{function}_{plan.name}"
            for tensor in _constants_of(plan):
                tensor.data_buffer_idx = places[tensor.data_buffer_idx]
            for delegate in plan.delegates:
                delegate.processed.index += len(self.blobs)
        self.plans += program.execution_plan
        self.blobs += program.backend_delegate_data
        if part.named_data is not None:
            stored = part.named_data
            for key, entry in stored.pte_data.items():
                content = stored.buffers[entry.buffer_index]
                if self.named.setdefault(key, content) != content:
                    raise UsageError(
                        f"{function} has other data than the rest under the name {key!r}.\nExport it alone."
                    )

    def _constant(self, buffer: Any) -> int:
        # The first of a program is nobody's: a tensor without numbers points at it.
        if buffer.storage not in self.places:
            self.places[buffer.storage] = len(self.constants)
            self.constants.append(buffer)
        return self.places[buffer.storage]

    def program(self) -> Any:
        """The whole, ready to be written."""
        from executorch.exir._serialize._named_data_store import NamedDataStore
        from executorch.exir._serialize._program import PTEFile
        from executorch.exir.schema import Program, SubsegmentOffsets

        store = NamedDataStore()
        for key, content in self.named.items():
            store.add_named_data(key, content, WEIGHTS_ALIGNMENT_BYTES)
        made = Program(0, self.plans, self.constants, self.blobs, [], SubsegmentOffsets(0, []))
        return PTEFile(made, None, store.get_named_data_store_output())


def _constants_of(plan: Any) -> Iterator[Any]:
    """The tensors of a method whose numbers the file holds."""
    from executorch.exir.schema import Tensor

    for value in plan.values:
        if isinstance(value.val, Tensor) and value.val.data_buffer_idx and value.val.allocation_info is None:
            yield value.val


METHODS = ExecuTorchMethods()
