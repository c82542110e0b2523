"""Joining: the networks of an adaptive model as functions of one file, equal weights stored once.

A format calls a function what it likes: Core ML a function, TFLite a signature, ExecuTorch a method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from acmix.toolkit.errors import UsageError
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Runner, Target

if TYPE_CHECKING:
    from acmix.toolkit.artifact import Artifact


RUNNER = "a runner on a device"
"""What takes a file of one network only, as `own_file` says it."""


@dataclass(frozen=True)
class Function:
    """One function of a joined file, with the names of its inputs and outputs in the order of the network's own."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A saved file that becomes a function of another one, and what the format's metadata says of it."""

    function: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None = None


@dataclass(frozen=True)
class JoinRequest:
    """Files to join into `file`.  model: what the whole is called.  labels: of the classes, the same for all parts."""

    model: str
    file: str
    parts: tuple[Part, ...]
    labels: tuple[str, ...] = ()


class Joining(Protocol):
    """What a format with several functions in a file can do. Importing it is cheap, like its target."""

    def refuses(self, options: Any) -> str | None:
        """Why files of these options cannot be joined; None when they can."""

    def options(self, options: Any) -> Any:
        """The options that files to be joined are lowered with, where these are asked for."""

    def join(self, request: JoinRequest) -> None:
        """Write the joined file; the parts stay as they are. Raises the converter's own errors."""

    def runners(
        self, file: Path, threads: int, functions: Sequence[Function], reference: bool
    ) -> AbstractContextManager[list[Runner]]:
        """Load a joined file once, with a runner for each of these functions.

        reference: by the target's reference evaluator.
        """


@contextmanager
def open_runners(
    target: Target, file: Path, threads: int, functions: Sequence[Function], reference: bool
) -> Iterator[list[Runner]]:
    """Load a file in its runtime or in the target's reference evaluator: a runner, or one for each of its functions.

    Raises UsageError for functions where files of the target hold one network each.
    """
    if not functions:
        whole = target.reference(file) if reference and target.reference is not None else target.runner(file, threads)
        with whole as run:
            yield [run]
        return
    if target.joining is None:
        raise UsageError(f"a file of {target.name} holds one network, and no function {functions[0].name!r}.")
    with target.joining.runners(file, threads, functions, reference) as runners:
        yield runners


def own_file(artifact: Artifact, what: str) -> Path:
    """The model file; raises UsageError where it holds other networks too.  what: that needs a file of its own."""
    if artifact.function is not None:
        raise UsageError(
            f"{artifact.name} is the function {artifact.function.name!r} of {artifact.model_file.name}, which holds "
            f"other networks too; {what} needs a file of its own.\nExport without --shared-weights."
        )
    return artifact.model_file
