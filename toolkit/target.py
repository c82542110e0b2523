"""A target: one file format with its converter and its runtime. A file of targets/ exports one as TARGET."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from acmix.toolkit.kernels import KernelTimes, Notes, Profiled
from acmix.toolkit.ranges import QuantizedTensor, Ranges
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.spec import Preprocess, TensorSpec

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from acmix.toolkit.joining import Joining

Array = npt.NDArray[Any]
Runner = Callable[[Sequence[Array]], list[Array]]
"""One inference: arrays in the file's own order, dtype and layout, to arrays. Nothing else is timed."""
Evaluator = Callable[[Path], AbstractContextManager[Runner]]
"""Executes a saved file by the definition of its format, without its runtime."""
ExecutedBy = Literal["runtime", "reference", ""]
Int8Kernels = Literal["xnnpack", "onnxruntime", "coreml"]
"""Whose arithmetic a file with integers is computed with, followed to the bit by acmix.toolkit.int8_kernels, or for
Core ML by half_kernels."""


@dataclass(frozen=True)
class Operator:
    """One operator of a saved file and where it runs.

    kind: the format's own name (CONV_2D, aten.convolution.default, Conv, conv).
    runs_on: 'XNNPACK', 'portable', 'CPUExecutionProvider' ...; delegated is None where only the device knows.
    reason: why it is not delegated, or why nobody can tell here.
    """

    kind: str
    name: str
    runs_on: str
    delegated: bool | None
    reason: str = ""
    macs: int = 0
    changes_layout: bool = False


@dataclass(frozen=True)
class Placement:
    """Every operator of one saved file, in order, and the number of delegate partitions (None: unknown)."""

    operators: tuple[Operator, ...]
    partitions: int | None = None
    determined_by: str = ""

    @property
    def fallbacks(self) -> tuple[Operator, ...]:
        """The operators known to run outside the delegate."""
        return tuple(op for op in self.operators if op.delegated is False)

    @property
    def macs_outside_share(self) -> float:
        """The share of multiply-accumulates outside the delegate, 0 to 1."""
        total = sum(op.macs for op in self.operators)
        return sum(op.macs for op in self.fallbacks) / total if total else 0.0


@dataclass(frozen=True)
class Tap:
    """A value inside a saved file, by the file's own name; real number = scale * (stored - zero_point)."""

    name: str
    scale: float = 1.0
    zero_point: int = 0


@dataclass(frozen=True)
class LoweringJob:
    """What a target is asked for, beside the program itself.

    inputs, outputs: the captured program's own, in its layout (nchw for images).
    options: the target's own, an instance of its `options` type.
    ranges: of the program's tensors, where the recipe has integer activations.
    kept_float: the nodes of the program that stay float in a quantized file.
    samples_file: an .npz with the calibration inputs, one array an input, samples along the first axis; '' without.
    """

    model: str
    recipe: Recipe
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: Any
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    ranges: Ranges | None = None
    kept_float: tuple[str, ...] = ()
    samples_file: str = ""


@dataclass(frozen=True)
class Lowered:
    """What lowering made: the file's own interface, and what a reader of the manifest should know.

    placement: where it is known only while lowering (ExecuTorch); otherwise Target.placement reads the file.
    nondeterminism: why two exports differ in bytes, or '' when they do not.
    half_arithmetic: the file computes in float16, so that more than its weights is rounded.
    quantized: the activations that the file holds as integers.
    needs: what a program that loads the file has to do, or outputs are wrong, and where.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...] = ()
    placement: Placement | None = None
    nondeterminism: str = ""
    half_arithmetic: bool = False
    details: dict[str, str] = field(default_factory=dict)
    quantized: tuple[QuantizedTensor, ...] = ()
    needs: tuple[str, ...] = ()


class Target(Protocol):
    """One file format. Module import must be cheap: runtimes and converters are imported on use."""

    @property
    def name(self) -> str: ...
    @property
    def suffix(self) -> str:
        """Of the model file, with the dot: `model` + suffix is its name in the artifact."""

    @property
    def distributions(self) -> tuple[str, ...]:
        """PyPI names whose versions the manifest records; the extra of the target's name brings them."""

    @property
    def options(self) -> type[Any]:
        """A frozen dataclass of Literal, int or bool fields with defaults: the target's own flags."""

    @property
    def quantization(self) -> Literal["pairs", "ranges"]:
        """What a quantized program is lowered from: quantize and dequantize pairs in it, or float and job.ranges."""

    @property
    def int8_kernels(self) -> Int8Kernels | None:
        """The arithmetic of its integers, which the simulation follows; None where it is float16's."""

    def refuses(self, recipe: Recipe, options: Any) -> str | None:
        """Why this cannot be lowered, and what to do instead; None when it can. Imports nothing heavy."""

    def cannot_run_here(self, options: Any) -> str | None:
        """Why the saved file cannot be executed on this machine; None when it can."""

    @property
    def reference(self) -> Evaluator | None:
        """Our own evaluator of the format, for machines without its runtime; None where there is none."""

    @property
    def joining(self) -> Joining | None:
        """How several networks become functions of one file; None where a file holds one network."""

    def preload(self) -> None:
        """Import the converter, so that it overlaps with the capture."""

    def preload_runtime(self) -> None:
        """Import the runtime, so that it is not counted as load time."""

    def lower(self, program: ExportedProgram, job: LoweringJob, file: Path) -> Lowered:
        """Write `file` from the captured program; raises the converter's own errors."""

    def runner(self, file: Path, threads: int) -> AbstractContextManager[Runner]:
        """Load the saved file in its own runtime. Imports the runtime only, never the converter."""

    def profiler(self, file: Path, threads: int) -> AbstractContextManager[Profiled]:
        """Load the saved file as `runner` does, its kernels timed; UsageError where the runtime cannot tell."""

    def kernel_times(self, file: Path, notes: Notes, runs: int, runtime: str) -> KernelTimes:
        """What a runtime noted of a saved file, here or on a device, by the file's own values.

        runs: how many the notes must hold.  runtime: its name and version, for people.  Raises UsageError where the
        notes are not whole, or not of this file.
        """

    def placement(self, file: Path) -> Placement:
        """Where each operator of the saved file runs, read from the file and its runtime."""

    def tap(self, file: Path, copy: Path) -> tuple[Tap, ...]:
        """Write a copy of the saved file that gives these values after its own outputs; UsageError where it cannot."""


def executor(target: Target, options: Any) -> tuple[ExecutedBy, str]:
    """Who executes a target's files on this machine, and why it is not their own runtime ('' when it is)."""
    reason = target.cannot_run_here(options)
    if reason is None:
        return "runtime", ""
    return ("reference" if target.reference is not None else ""), reason


def to_layout(array: Array, source: TensorSpec, wanted: TensorSpec) -> Array:
    """The same values in the layout and dtype of `wanted`."""
    if {source.layout, wanted.layout} == {"nchw", "nhwc"}:
        axes = (0, 2, 3, 1) if wanted.layout == "nhwc" else (0, 3, 1, 2)
        array = np.transpose(array, axes)
    return np.ascontiguousarray(array, dtype=wanted.dtype)
