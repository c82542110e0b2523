"""TFLite (LiteRT): lowered by litert-torch, run by ai-edge-litert with its default XNNPACK delegate."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from acmix.targets.formats.tflite_signatures import SIGNATURES
from acmix.toolkit.joining import Joining
from acmix.toolkit.kernels import KernelTimes, Notes, Profiled
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.spec import TensorSpec
from acmix.toolkit.target import Array, Lowered, LoweringJob, Placement, Runner, Tap, Target

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from acmix.targets.formats.tflite_quantization import Quantized

FLOAT16_NOTE = (
    "float16: {cast} weight tensors are stored as float16; depthwise filters, the first convolution's, biases, "
    "inputs and outputs stay float32, and so does the arithmetic, unless the app asks its delegate for float16"
)

PRECISIONS = frozenset({("float32", "float32"), ("float16", "float16"), ("int8", "float32"), ("int8", "int8")})
"""Of weights and activations: what XNNPACK runs in one partition."""

Layout = Literal["nhwc", "nchw"]


@dataclass(frozen=True)
class TFLiteOptions:
    """layout: nhwc is what cameras deliver and TFLite computes in; nchw keeps PyTorch's, one transpose at entry."""

    layout: Layout = "nhwc"


@dataclass(frozen=True)
class TFLite:
    """One .tflite file: float32 at its interface, named tensors, TFLite Metadata, labels.txt inside."""

    name: str = "tflite"
    suffix: str = ".tflite"
    distributions: tuple[str, ...] = (
        "litert-torch",
        "litert-converter",
        "ai-edge-litert",
        "ai-edge-quantizer",
        "torch",
    )
    options: type[TFLiteOptions] = TFLiteOptions
    reference: None = None
    quantization: Literal["ranges"] = "ranges"
    int8_kernels: Literal["xnnpack"] = "xnnpack"
    joining: Joining = SIGNATURES

    def refuses(self, recipe: Recipe, options: Any) -> str | None:
        if (recipe.weights, recipe.activations) in PRECISIONS:
            return None
        asked = f"recipe '{recipe.name}' asks TFLite for {recipe.weights} weights with {recipe.activations} activations"
        if recipe.activations == "int16":
            return f"{asked}; XNNPACK takes none of its operators, which is some 30 times slower: use the recipe w8a8."
        return f"{asked}; use the recipe {'w8' if recipe.is_quantized else 'float32 or float16'}."

    def cannot_run_here(self, options: Any) -> str | None:
        if importlib.util.find_spec("ai_edge_litert") is not None:
            return None
        return "ai-edge-litert, the TFLite runtime, is not installed: pip install 'acmix[tflite]'"

    def preload(self) -> None:
        import litert_torch  # noqa: F401

        from acmix.targets.formats import tflite_conversion, tflite_flatbuffer, tflite_metadata  # noqa: F401

    def preload_runtime(self) -> None:
        import ai_edge_litert.interpreter  # noqa: F401

    def lower(self, program: ExportedProgram, job: LoweringJob, file: Path) -> Lowered:
        from acmix.targets.formats import tflite_conversion, tflite_flatbuffer, tflite_metadata
        from acmix.targets.formats.metadata import description, metadata

        inputs = tuple(_in_file(s, job.options) for s in job.inputs)
        outputs = tuple(_in_file(s, job.options) for s in job.outputs)
        content = tflite_conversion.convert(program, _changed(job.inputs, inputs), _changed(job.outputs, outputs))
        made = _quantized(content, program, job, inputs) if job.recipe.is_quantized else None
        model = tflite_flatbuffer.read_model(made.content if made else content)
        tflite_flatbuffer.name_interface(model, [s.name for s in inputs], [s.name for s in outputs])
        inputs, outputs = tflite_flatbuffer.interface(model, inputs, outputs)
        notes = _half_precision(model) if job.recipe.weights == "float16" else made.notes if made else ()
        graph = tflite_metadata.GraphMetadata(inputs, outputs, job.preprocess)
        described = tflite_metadata.metadata(job.model, description(job), [graph], len(job.labels))
        tflite_flatbuffer.add_metadata(model, tflite_metadata.ENTRY, described)
        tflite_flatbuffer.add_metadata(model, tflite_metadata.EXTRA_ENTRY, tflite_metadata.extra(metadata(job)))
        whole = tflite_flatbuffer.write_model(model)
        file.write_bytes(tflite_metadata.append_labels(whole, job.labels) if job.labels else whole)
        details = tflite_flatbuffer.details(model)
        return Lowered(inputs, outputs, notes, details=details, quantized=made.tensors if made else ())

    @contextmanager
    def runner(self, file: Path, threads: int) -> Iterator[Runner]:
        from ai_edge_litert.interpreter import Interpreter

        # The interpreter verifies the flatbuffer and raises ValueError on a broken one.
        interpreter = Interpreter(model_path=str(file), num_threads=threads)
        interpreter.allocate_tensors()
        inputs = [detail["index"] for detail in interpreter.get_input_details()]
        outputs = [detail["index"] for detail in interpreter.get_output_details()]

        def run(arrays: Sequence[Array]) -> list[Array]:
            for index, array in zip(inputs, arrays, strict=True):
                interpreter.set_tensor(index, array)
            interpreter.invoke()
            return [np.asarray(interpreter.get_tensor(index)) for index in outputs]

        yield run

    @contextmanager
    def profiler(self, file: Path, threads: int) -> Iterator[Profiled]:
        from acmix.targets.formats.tflite_times import ProfiledModel

        yield ProfiledModel(file, threads)

    def kernel_times(self, file: Path, notes: Notes, runs: int, runtime: str) -> KernelTimes:
        from acmix.targets.formats import tflite_times

        return tflite_times.kernel_times(file, notes, runs, runtime)

    def placement(self, file: Path) -> Placement:
        from acmix.targets.formats import tflite_placement

        return tflite_placement.placement(file)

    def tap(self, file: Path, copy: Path) -> tuple[Tap, ...]:
        from acmix.targets.formats import tflite_taps

        return tflite_taps.tap(file, copy)


def _in_file(spec: TensorSpec, options: TFLiteOptions) -> TensorSpec:
    if options.layout == "nchw" or spec.layout != "nchw" or len(spec.shape) != 4:
        return spec
    batch, channels, height, width = spec.shape
    return replace(spec, shape=(batch, height, width, channels), layout="nhwc")


def _changed(captured: Sequence[TensorSpec], wanted: Sequence[TensorSpec]) -> list[bool]:
    return [c.layout != w.layout for c, w in zip(captured, wanted, strict=True)]


def _quantized(content: bytes, program: ExportedProgram, job: LoweringJob, stored: tuple[TensorSpec, ...]) -> Quantized:
    from acmix.targets.formats import tflite_quantization
    from acmix.targets.formats.tflite_quant_values import Watch
    from acmix.toolkit.quantize import graph_module

    if not job.recipe.needs_ranges:
        return tflite_quantization.quantize_weights(content, job)
    watch = Watch(content, job.inputs, stored)
    return tflite_quantization.quantize(content, job, watch, graph_module(program).graph)


def _half_precision(model: Any) -> tuple[str, ...]:
    from acmix.targets.formats import tflite_flatbuffer
    from acmix.toolkit import float16

    cast, out_of_range = tflite_flatbuffer.cast_weights(model)
    notes = [FLOAT16_NOTE.format(cast=cast)]
    if out_of_range:
        notes.append(
            f"float16: {out_of_range} weight tensors hold values beyond {float16.LARGEST:.0f} and stay float32"
        )
    return tuple(notes)


TARGET: Target = TFLite()
