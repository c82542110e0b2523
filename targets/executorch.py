"""ExecuTorch: a .pte program, delegated to XNNPACK (or Core ML, Vulkan), run by ExecuTorch's own runtime."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from acmix.targets.formats import executorch_runtime
from acmix.targets.formats.executorch_methods import METHODS
from acmix.targets.formats.metadata import description, metadata
from acmix.toolkit.errors import UsageError
from acmix.toolkit.joining import Joining
from acmix.toolkit.kernels import KernelTimes, Notes, Profiled
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.target import Lowered, LoweringJob, Placement, Runner, Tap, Target

if TYPE_CHECKING:
    from torch.export import ExportedProgram

BACKENDS = {"xnnpack": "XNNPACK", "coreml": "Core ML", "vulkan": "Vulkan"}
FLOAT16_FILTERS_NOTE = (
    "the filters of convolutions and linear layers are stored as float16, but for depthwise ones and the first; "
    "everything else is float32, arithmetic included"
)
FLOAT16_ARITHMETIC_NOTE = (
    "arithmetic and activations are float16, from a cast after each input to a cast before each output, "
    "which stay float32; weights are stored as float16, biases of convolutions as float32"
)
FLOAT16_BATCH_NORM_NOTE = "batch norms are folded in float16, which loses accuracy: fold them before lowering"
FLOAT16_DELEGATE_NOTES = {
    "coreml": "Core ML computes and stores weights as float16; inputs and outputs stay float32",
    "vulkan": "Vulkan computes and stores weights as float16 (force_fp16); inputs and outputs stay float32",
}
PRECISIONS = frozenset({("float32", "float32"), ("float16", "float16"), ("int8", "int8")})
"""Of weights and activations."""
NONDETERMINISM = {"coreml": "ExecuTorch gives each Core ML model inside the file a random identifier"}


@dataclass(frozen=True)
class ExecuTorchOptions:
    """delegate: the backend that takes what it can; everything else runs on portable kernels.

    half_arithmetic: with the recipe float16, XNNPACK computes in float16 too.  It is off because XNNPACK then
    accumulates in float16: MobileNetV3 keeps 33 dB of 57.  Processors with float16 arithmetic gain speed.
    """

    delegate: Literal["xnnpack", "coreml", "vulkan"] = "xnnpack"
    half_arithmetic: bool = False


@dataclass(frozen=True)
class ExecuTorch:
    """One .pte file."""

    name: str = "executorch"
    suffix: str = ".pte"
    distributions: tuple[str, ...] = ("executorch", "torch", "torchao")
    options: type[ExecuTorchOptions] = ExecuTorchOptions
    reference: None = None
    quantization: Literal["pairs"] = "pairs"
    int8_kernels: Literal["xnnpack"] = "xnnpack"
    joining: Joining = METHODS

    def refuses(self, recipe: Recipe, options: Any) -> str | None:
        if (recipe.weights, recipe.activations) not in PRECISIONS:
            nearest = "w8a8" if recipe.is_quantized else "float32 or float16"
            return (
                f"recipe '{recipe.name}' asks ExecuTorch for {recipe.weights} weights with {recipe.activations} "
                f"activations, for which XNNPACK has no convolution: use the recipe {nearest}."
            )
        if recipe.is_quantized and options.delegate != "xnnpack":
            return (
                f"recipe '{recipe.name}' is lowered for XNNPACK only, not for {BACKENDS[options.delegate]}: "
                "leave --delegate out."
            )
        if options.half_arithmetic and (options.delegate != "xnnpack" or recipe.weights != "float16"):
            return (
                f"half_arithmetic is for XNNPACK with the recipe float16, not for {BACKENDS[options.delegate]} with "
                f"'{recipe.name}': leave it out."
            )
        if options.delegate == "coreml" and importlib.util.find_spec("coremltools") is None:
            return "the Core ML delegate needs coremltools: pip install 'acmix[coreml]', or use delegate xnnpack."
        return None

    def cannot_run_here(self, options: Any) -> str | None:
        if options.delegate == "xnnpack" or (options.delegate == "coreml" and sys.platform == "darwin"):
            return None
        where = {"coreml": "on macOS and iOS only", "vulkan": "on devices only, with a runtime built with it"}
        return f"{BACKENDS[options.delegate]}'s delegate runs {where[options.delegate]}: not executed here"

    def preload(self) -> None:
        with _quiet():
            from executorch.backends.xnnpack.partition import xnnpack_partitioner  # noqa: F401

    def preload_runtime(self) -> None:
        executorch_runtime.modules()

    def lower(self, program: ExportedProgram, job: LoweringJob, file: Path) -> Lowered:
        from acmix.targets.formats import executorch_placement as placement
        from acmix.targets.formats.executorch_shortcuts import shortcuts

        _refuse_unfit_pairs(program, job)
        delegate, backend = job.options.delegate, BACKENDS[job.options.delegate]
        is_float16 = job.recipe.weights == "float16"
        with _quiet(), _quiet_coremltools(delegate), shortcuts(program):
            from executorch.exir import to_edge_transform_and_lower

            with placement.recorded_reasons() as reasons, _float16_filters(is_float16 and delegate == "xnnpack"):
                edge = to_edge_transform_and_lower(
                    program,
                    transform_passes=_passes(job.options.half_arithmetic),
                    partitioner=[_partitioner(delegate, is_float16)],
                    constant_methods=constant_methods(job),
                )
            placement.tag_operators(edge.exported_program().graph_module, reasons, backend)
            finished = edge.to_executorch()
            with file.open("wb") as stream:
                finished.write_to_file(stream)
        placed = placement.lowered_placement(finished.exported_program().graph_module, backend)
        return Lowered(
            inputs=job.inputs,
            outputs=job.outputs,
            notes=_float16_notes(program, job.options) if is_float16 else (),
            placement=placed,
            nondeterminism=NONDETERMINISM.get(delegate, ""),
            half_arithmetic=is_float16 and (delegate != "xnnpack" or job.options.half_arithmetic),
            details=_details(delegate),
        )

    @contextlib.contextmanager
    def runner(self, file: Path, threads: int) -> Iterator[Runner]:
        """The XNNPACK delegate and the portable kernels share one pool of `threads` in the whole process."""
        with executorch_runtime.opened(file, threads) as runtime:
            (run,) = executorch_runtime.load(runtime, file, (executorch_runtime.FORWARD,))
            yield run

    @contextlib.contextmanager
    def profiler(self, file: Path, threads: int) -> Iterator[Profiled]:
        from acmix.targets.formats.executorch_times import ProfiledProgram

        with executorch_runtime.opened(file, threads) as runtime:
            yield ProfiledProgram(runtime, file)

    def kernel_times(self, file: Path, notes: Notes, runs: int, runtime: str) -> KernelTimes:
        from acmix.targets.formats import executorch_times

        return executorch_times.kernel_times(file, notes, runs, runtime)

    def placement(self, file: Path) -> Placement:
        from acmix.targets.formats.executorch_placement import file_placement

        return file_placement(file)

    def tap(self, file: Path, copy: Path) -> tuple[Tap, ...]:
        from acmix.targets.formats import executorch_taps

        with _quiet():
            return executorch_taps.tap(file, copy)


def _refuse_unfit_pairs(program: ExportedProgram, job: LoweringJob) -> None:
    """Raise UsageError where XNNPACK leaves a layer with int8 weights, or would fuse a rounding away."""
    from acmix.toolkit.pairs import are_own, unfit_for_fusion

    if are_own(job.ranges) and (reason := unfit_for_fusion(program.graph)):
        raise UsageError(
            f"executorch cannot keep the program's own pairs: {reason}.\n"
            "XNNPACK wants one pair on each side of a layer and its activation; or leave executorch out of --target."
        )


def constant_methods(job: LoweringJob) -> dict[str, Any]:
    """What the file says about itself: methods without inputs, which every runtime calls by name.

    Text is one string each (preprocess and labels as JSON); numbers that an app needs come as numbers too.
    """
    texts = {**metadata(job), "acmix.description": description(job)}
    methods: dict[str, Any] = {key.replace(".", "_"): text for key, text in texts.items()}
    methods["acmix_inputs"] = [spec.name for spec in job.inputs]
    methods["acmix_outputs"] = [spec.name for spec in job.outputs]
    if job.preprocess is not None:
        methods["acmix_mean"] = list(job.preprocess.mean)
        methods["acmix_std"] = list(job.preprocess.std)
        methods["acmix_crop"] = list(job.preprocess.crop)
        methods["acmix_resize_short"] = job.preprocess.resize_short
    return methods


def _float16_notes(program: ExportedProgram, options: ExecuTorchOptions) -> tuple[str, ...]:
    if options.delegate != "xnnpack":
        return (FLOAT16_DELEGATE_NOTES[options.delegate],)
    if not options.half_arithmetic:
        return (FLOAT16_FILTERS_NOTE,)
    has_batch_norm = any("batch_norm" in str(node.target) for node in program.graph.nodes)
    return (FLOAT16_ARITHMETIC_NOTE, *([FLOAT16_BATCH_NORM_NOTE] if has_batch_norm else []))


def _details(delegate: str) -> dict[str, str]:
    versions = {"coremltools": importlib.metadata.version("coremltools")} if delegate == "coreml" else {}
    return {"delegate": delegate, **versions}


def _passes(half: bool) -> Any:
    from executorch.exir.pass_manager import ExportedProgramPassManager

    from acmix.targets.formats.executorch_half import half_arithmetic
    from acmix.targets.formats.executorch_shortcuts import fold_constants

    return ExportedProgramPassManager([fold_constants(), *([half_arithmetic()] if half else [])])


def _float16_filters(wanted: bool) -> AbstractContextManager[None]:
    from acmix.targets.formats.executorch_half import float16_filters

    return float16_filters() if wanted else contextlib.nullcontext()


def _quiet_coremltools(delegate: str) -> AbstractContextManager[None]:
    from acmix.targets.formats.coreml_converter import quiet

    return quiet() if delegate == "coreml" else contextlib.nullcontext()


def _partitioner(delegate: str, is_float16: bool) -> Any:
    if delegate == "coreml":
        from acmix.targets.formats.coreml_converter import coremltools

        ct = coremltools()
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner

        precision = ct.precision.FLOAT16 if is_float16 else ct.precision.FLOAT32
        return CoreMLPartitioner(compile_specs=CoreMLBackend.generate_compile_specs(compute_precision=precision))
    if delegate == "vulkan":
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        return VulkanPartitioner({"force_fp16": is_float16})
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return XnnpackPartitioner()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converters' chatter from the user; what fails raises.

    torch warns once a node of a class that a copy compares, torchao of kernels for other machines; the Vulkan
    partitioner sets the root logger to INFO, the XNNPACK one gives it a handler.
    """
    import torch  # noqa: F401  sets up the handlers of the torch logger

    loggers = [logging.getLogger(), logging.getLogger("torch")]
    kept = [(logger.level, list(logger.handlers)) for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = [logging.NullHandler()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, (level, handlers) in zip(loggers, kept, strict=True):
            logger.setLevel(level)
            logger.handlers[:] = handlers


TARGET: Target = ExecuTorch()
