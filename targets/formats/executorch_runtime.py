"""ExecuTorch's runtime in this process: one pool of threads, which every loaded program shares."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from acmix.toolkit.errors import UsageError
from acmix.toolkit.target import Array, Runner

FORWARD = "forward"
"""The method of a program that holds one network."""

_open: list[Path] = []
"""Files that are loaded: their pool must not be replaced under them."""


def modules() -> tuple[Any, Any]:
    """torch and the runtime's extension."""
    # executorch.runtime imports the converter first (3 s); the extension below it needs torch's libraries only.
    import torch
    from executorch.extension.pybindings import _C

    return torch, _C


@contextlib.contextmanager
def opened(file: Path, threads: int) -> Iterator[Any]:
    """The runtime with so many threads, for as long as one file is loaded.

    Raises UsageError while another file runs with another number of them.
    """
    _, runtime = modules()
    if runtime._threadpool_get_thread_count() != threads:
        if _open:
            raise UsageError(
                f"{file.name} cannot run with {threads} threads while {_open[0].name} runs with "
                f"{runtime._threadpool_get_thread_count()}: one thread pool serves the process. Use as many threads, "
                "or close the other runner first."
            )
        runtime._unsafe_reset_threadpool(threads)
    _open.append(file)
    try:
        yield runtime
    finally:
        _open.remove(file)


def tensors(arrays: Sequence[Array]) -> list[Any]:
    """Arrays as torch's tensors, without a copy where they lie in order."""
    import torch

    return [torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in arrays]


def load(runtime: Any, file: Path, names: Sequence[str]) -> list[Runner]:
    """These methods of a saved program. Raises UsageError for a file that is not whole."""
    try:
        program = runtime._load_program(str(file), program_verification=runtime.Verification.InternalConsistency)
        methods = [program.load_method(name) for name in names]
    except RuntimeError as error:
        raise UsageError(
            f"ExecuTorch cannot load {file.name}: {error}. A whole .pte file, with a delegate that this "
            "runtime has, would load; export it again."
        ) from error

    return [_runner(method) for method in methods]


def _runner(method: Any) -> Runner:
    def run(arrays: Sequence[Array]) -> list[Array]:
        return [np.array(output.numpy(), order="C") for output in method(tensors(arrays), clone_outputs=False)]

    return run
