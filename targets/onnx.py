"""ONNX: lowered by torch's own exporter, run by ONNX Runtime on the CPU."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from acmix.targets.formats import onnx_graph, onnx_session
from acmix.targets.formats.metadata import description, metadata
from acmix.targets.formats.onnx_graph import WeightType
from acmix.targets.formats.onnx_session import EXACT_SUMS, PROVIDER
from acmix.toolkit import float16
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.kernels import KernelTimes, Notes, Profiled
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.target import Array, Lowered, LoweringJob, Operator, Placement, Runner, Tap, Target

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

OPSETS = range(18, 24)
PRECISIONS = frozenset({("float32", "float32"), ("float16", "float16"), ("int8", "float32"), ("int8", "int8")})
"""Of weights and activations."""
SIMPLIFIED_SNR_DB = 80.0

FLOAT16_NOTE = (
    "float16: {cast} weight tensors are stored as float16; depthwise filters, the first convolution's, biases, "
    "inputs and outputs stay float32, and so does the arithmetic"
)
INTEGERS_NOTE = (
    "int8: activations are stored as uint8, the same integers plus 128: ONNX Runtime's x86 kernels fuse those; "
    "weights are {weight_type}, inputs and outputs stay float32"
)
EXACT_SUMS_NEED = (
    f"on x86 without VNNI set the session option {EXACT_SUMS[0]} to {EXACT_SUMS[1]}, as acmix does: otherwise ONNX "
    "Runtime saturates sums and outputs are wrong there (files of --weight-type uint8 need nothing)"
)


@dataclass(frozen=True)
class OnnxOptions:
    """opset: 18 is what torch's exporter writes natively and every mobile ONNX Runtime since 1.14 reads.

    weight_type: of layers on integers. Products of uint8 are added exactly everywhere, by slower kernels on x86 with
    VNNI and on arm64.
    """

    opset: int = 18
    weight_type: WeightType = "int8"


@dataclass(frozen=True)
class OnnxTarget:
    """One self-contained .onnx file, float32 at its interface."""

    name: str = "onnx"
    suffix: str = ".onnx"
    distributions: tuple[str, ...] = ("onnx", "onnxscript", "onnxsim", "onnxruntime")
    options: type[OnnxOptions] = OnnxOptions
    reference: None = None
    quantization: Literal["pairs"] = "pairs"
    int8_kernels: Literal["onnxruntime"] = "onnxruntime"
    joining: None = None

    def refuses(self, recipe: Recipe, options: Any) -> str | None:
        if options.opset not in OPSETS:
            return (
                f"ONNX opset {options.opset} is not written here: {OPSETS[0]} to {OPSETS[-1]} are; "
                f"{OnnxOptions.opset} loads in the most runtimes."
            )
        if options.weight_type == "uint8" and not recipe.needs_ranges:
            return (
                f"ONNX weights of uint8 are for recipes with int8 activations, as w8a8, not for '{recipe.name}': "
                "nothing adds integers there. Leave --weight-type out."
            )
        if (recipe.weights, recipe.activations) not in PRECISIONS:
            nearest = "w8 or w8a8" if recipe.is_quantized else "float32 or float16"
            return (
                f"recipe '{recipe.name}' asks ONNX for {recipe.weights} weights with {recipe.activations} "
                f"activations, which ONNX Runtime has no fast kernel for: use the recipe {nearest}."
            )
        return None

    def cannot_run_here(self, options: Any) -> str | None:
        return None

    def preload(self) -> None:
        import onnxscript  # noqa: F401
        import onnxsim  # noqa: F401
        import torch.onnx  # noqa: F401

    def preload_runtime(self) -> None:
        import onnxruntime  # noqa: F401

    def lower(self, program: ExportedProgram, job: LoweringJob, file: Path) -> Lowered:
        model = _simplified(_converted(program, job))
        notes: list[str] = []
        if job.recipe.weights == "float16":
            notes += _float16_notes(*onnx_graph.halve_weights(model))
        if job.recipe.is_quantized:
            import onnx

            from acmix.targets.formats import onnx_quantization

            onnx_quantization.fit_kernels(model, job.options.weight_type)
            # onnxsim checked the file as it was before.
            onnx.checker.check_model(model, full_check=True)
        needs: tuple[str, ...] = ()
        if job.recipe.needs_ranges:
            notes.append(INTEGERS_NOTE.format(weight_type=job.options.weight_type))
            needs = (EXACT_SUMS_NEED,) if onnx_graph.holds_int8(model) else ()
        inputs, outputs = onnx_graph.interface(model, job.inputs, job.outputs)
        _describe(model, job)
        file.write_bytes(model.SerializeToString(deterministic=True))
        return Lowered(inputs, outputs, tuple(notes), details={"opset": str(job.options.opset)}, needs=needs)

    @contextlib.contextmanager
    def runner(self, file: Path, threads: int) -> Iterator[Runner]:
        session = onnx_session.load(file, threads)
        names = [value.name for value in session.get_inputs()]

        def run(arrays: Any) -> list[Array]:
            result: list[Array] = session.run(None, dict(zip(names, arrays, strict=True)))
            return result

        yield run

    @contextlib.contextmanager
    def profiler(self, file: Path, threads: int) -> Iterator[Profiled]:
        from acmix.targets.formats.onnx_times import ProfiledSession

        with tempfile.TemporaryDirectory(prefix="acmix-") as folder:
            optimised = Path(folder, "optimised.onnx")
            session = onnx_session.load(file, threads, optimised, Path(folder, "profile"))
            yield ProfiledSession(session, file, optimised)

    def kernel_times(self, file: Path, notes: Notes, runs: int, runtime: str) -> KernelTimes:
        from acmix.targets.formats import onnx_times

        return onnx_times.kernel_times(file, notes, runs, runtime)

    def placement(self, file: Path) -> Placement:
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            optimised = Path(folder, "optimised.onnx")
            onnx_session.load(file, 1, optimised)
            kernels = onnx.load(optimised)
        model = onnx.load(file)
        shapes = onnx_graph.shapes_of(model)
        operators = tuple(
            Operator(
                kind=node.op_type,
                name=node.name,
                runs_on=PROVIDER,
                delegated=True,
                macs=onnx_graph.macs(node, shapes),
                changes_layout=node.op_type == "Transpose",
            )
            for node in model.graph.node
            if node.op_type != "Constant"
        )
        return Placement(operators, partitions=1, determined_by=onnx_graph.what_became(model, kernels))

    def tap(self, file: Path, copy: Path) -> tuple[Tap, ...]:
        from acmix.targets.formats import onnx_taps

        return onnx_taps.tap(file, copy)


def _converted(program: ExportedProgram, job: LoweringJob) -> onnx.ModelProto:
    import torch

    with _quiet():
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=job.options.opset,
            input_names=[spec.name for spec in job.inputs],
            output_names=[spec.name for spec in job.outputs],
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    written = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if written != job.options.opset:
        raise UsageError(
            f"torch's exporter could not write '{job.model}' in ONNX opset {job.options.opset}: "
            f"it kept {written}. Ask for opset {written}."
        )
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on torchvision and pytree: standard output belongs to the caller."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after onnxsim, its structure checked by onnx and its numbers by ONNX Runtime.

    onnxsim's own comparison is element by element and blind to scale; ours is a ratio over each output.
    """
    import onnxsim

    with _quiet():
        simple: onnx.ModelProto
        simple, valid = onnxsim.simplify(model)
    snr_db = _agreement_snr_db(model, simple)
    if not valid or not snr_db >= SIMPLIFIED_SNR_DB:
        raise GateError(
            f"onnxsim changed the model's results (SNR {snr_db:.1f} dB, {SIMPLIFIED_SNR_DB:.0f} dB passes, "
            f"onnx.checker {'passed' if valid else 'failed'}): report the model, or export to another target."
        )
    return simple


def _agreement_snr_db(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    """The worst output's signal-to-difference ratio on one seeded sample."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Integers stay in pairs around floats: not every processor's integer kernels are exact.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    random = np.random.default_rng(0)
    inputs, _ = onnx_graph.interface(before, (), ())
    feed = {spec.name: random.standard_normal(spec.shape).astype(spec.dtype) for spec in inputs}
    expected, actual = (
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDER]).run(None, feed)
        for model in (before, after)
    )
    worst = np.inf
    for one, other in zip(expected, actual, strict=True):
        signal, noise = (float(np.square(array.astype(np.float64)).sum()) for array in (one, one - other))
        if noise > 0:
            worst = min(worst, 10 * np.log10(signal / noise) if signal else -np.inf)
    return float(worst)


def _float16_notes(cast: int, beyond: list[str]) -> list[str]:
    notes = [FLOAT16_NOTE.format(cast=cast)]
    if beyond:
        notes.append(f"float16: values beyond {float16.LARGEST:.0f} keep these in float32: {', '.join(beyond)}")
    return notes


def _describe(model: onnx.ModelProto, job: LoweringJob) -> None:
    """Our own metadata in place of the converters': theirs holds stack traces with this machine's paths."""
    from importlib.metadata import version

    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for key, text in metadata(job).items():
        model.metadata_props.add(key=key, value=text)
    model.producer_name, model.producer_version = "acmix", version("acmix")
    model.doc_string = description(job)
    graph.name = job.model


TARGET: Target = OnnxTarget()
