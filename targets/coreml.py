"""Core ML: an ML program in an .mlpackage, converted anywhere, run on macOS and iOS only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from acmix.targets.formats import coreml_package, coreml_placement
from acmix.targets.formats.coreml_converter import coremltools, quiet
from acmix.targets.formats.coreml_functions import FUNCTIONS
from acmix.targets.formats.metadata import description, metadata
from acmix.toolkit.errors import UsageError
from acmix.toolkit.joining import Joining
from acmix.toolkit.kernels import KernelTimes, Notes, Profiled
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Array, Lowered, LoweringJob, Placement, Runner, Tap, Target

if TYPE_CHECKING:
    from torch.export import ExportedProgram

NOT_HERE = "Core ML's runtime exists on macOS and iOS only"
FLOAT16_NOTE = (
    "weights and arithmetic are float16, inputs and outputs stay float32 so that every target has one interface"
)
OLDEST = {
    ("float32", "float32"): "ios16",
    ("float16", "float16"): "ios16",
    ("int8", "float32"): "ios17",
    ("int4", "float32"): "ios16",
    ("int8", "int8"): "ios17",
}
"""Weights and activations, and the system that minimum_deployment 'auto' means with them."""
PALETTE_LEAST_WEIGHTS = 2048
"""Smaller weights stay float16: a table would cost what it saves."""
IMAGE_NOTE = (
    "takes RGB pixels of 0 to 255 as an image; (pixel - mean) / std, one mean and one std per channel, "
    "is part of the program"
)
CONVERSION_DATE = "com.github.apple.coremltools.conversion_date"
SPEC_DTYPES = {65568: "float32", 65552: "float16", 131104: "int32"}


@dataclass(frozen=True)
class CoreMLOptions:
    """minimum_deployment: the oldest system that may load it; auto is ios16, or what the recipe needs.

    image_input: pixels in, preprocessing inside.
    """

    minimum_deployment: Literal["auto", "ios15", "ios16", "ios17", "ios18"] = "auto"
    image_input: bool = False


@dataclass(frozen=True)
class CoreMLTarget:
    """One .mlpackage folder, whose path is `file` everywhere here."""

    name: str = "coreml"
    suffix: str = ".mlpackage"
    distributions: tuple[str, ...] = ("coremltools",)
    options: type[CoreMLOptions] = CoreMLOptions
    quantization: Literal["pairs"] = "pairs"
    int8_kernels: Literal["coreml"] = "coreml"
    joining: Joining = FUNCTIONS

    def refuses(self, recipe: Recipe, options: Any) -> str | None:
        pair = (recipe.weights, recipe.activations)
        if pair not in OLDEST:
            nearest = "w8a8" if recipe.is_quantized else "float32 or float16"
            return (
                f"recipe '{recipe.name}' asks Core ML for {recipe.weights} weights with {recipe.activations} "
                f"activations, which its operators do not take: use the recipe {nearest}."
            )
        if recipe.is_quantized and "ios" < options.minimum_deployment < OLDEST[pair]:
            return (
                f"recipe '{recipe.name}' needs {OLDEST[pair]} or later, and --minimum-deployment says "
                f"{options.minimum_deployment}: leave it out, or ask for {OLDEST[pair]}."
            )
        return None

    def cannot_run_here(self, options: Any) -> str | None:
        return None if sys.platform == "darwin" else NOT_HERE

    def preload(self) -> None:
        coremltools()

    def preload_runtime(self) -> None:
        coremltools()

    def lower(self, program: ExportedProgram, job: LoweringJob, file: Path) -> Lowered:
        half = job.recipe.weights != "float32"
        notes = [FLOAT16_NOTE] if half else []
        if job.options.image_input:
            program = with_pixels(program, _image_preprocess(job))
            notes.append(IMAGE_NOTE)
        with quiet():
            model = _converted(program, job)
            if job.recipe.weights == "int4":
                model = _with_palettes(model)
            model.save(str(file))
        specification = model.get_spec()
        _describe(specification, job)
        coreml_package.seal_weights(specification, file)
        coreml_package.write_specification(file, specification)
        inputs, outputs = _interface(specification, job)
        version = str(specification.specificationVersion)
        details = {"minimum_deployment": _deployment(job), "specification_version": version}
        return Lowered(inputs, outputs, tuple(notes), half_arithmetic=half, details=details)

    @contextlib.contextmanager
    def runner(self, file: Path, threads: int) -> Iterator[Runner]:
        """Predict on the CPU, whose results do not depend on the Mac; Core ML chooses its own threads."""
        yield self._loaded(file)[1]

    @contextlib.contextmanager
    def profiler(self, file: Path, threads: int) -> Iterator[Profiled]:
        from acmix.targets.formats.coreml_times import PlannedModel

        yield PlannedModel(*self._loaded(file))

    def kernel_times(self, file: Path, notes: Notes, runs: int, runtime: str) -> KernelTimes:
        raise UsageError(f"{runtime} notes no kernels of a Core ML file: its compute plan tells shares, on a Mac.")

    def _loaded(self, file: Path) -> tuple[Any, Runner, list[str]]:
        """The model on the CPU, its runner, and the names of its outputs."""
        if reason := self.cannot_run_here(None):
            raise UsageError(f"{reason}. Run `acmix verify` on a Mac, or export to another target.")
        ct = coremltools()
        described = coreml_package.read_specification(file).description
        model = ct.models.MLModel(str(file), compute_units=ct.ComputeUnit.CPU_ONLY)
        images = [feature.type.WhichOneof("Type") == "imageType" for feature in described.input]

        def run(arrays: Sequence[Array]) -> list[Array]:
            feed = {
                feature.name: _picture(array) if image else array
                for feature, array, image in zip(described.input, arrays, images, strict=True)
            }
            results = model.predict(feed)
            return [np.asarray(results[feature.name]) for feature in described.output]

        return model, run, [feature.name for feature in described.output]

    @contextlib.contextmanager
    def reference(self, file: Path) -> Iterator[Runner]:
        """The saved package by the definition of its operators, on any machine: exact about numbers, not about time."""
        from acmix.targets.mil import load_package

        # The artifact's digests say whether its weights are those that were exported.
        model = load_package(file, check_weights=False)
        described = coreml_package.read_specification(file).description

        def run(arrays: Sequence[Array]) -> list[Array]:
            feed = {feature.name: array for feature, array in zip(described.input, arrays, strict=True)}
            results = model(feed)
            return [np.asarray(results[feature.name]) for feature in described.output]

        yield run

    def placement(self, file: Path) -> Placement:
        return coreml_placement.placement(file)

    def tap(self, file: Path, copy: Path) -> tuple[Tap, ...]:
        from acmix.targets.formats import coreml_taps

        return coreml_taps.tap(file, copy)


def _image_preprocess(job: LoweringJob) -> Preprocess:
    """The preprocessing to bake in; raises UsageError when the model cannot take an image."""
    advice = "export without image_input, or give the model a preprocess and one [1, 3, H, W] input."
    if job.preprocess is None:
        raise UsageError(f"image_input needs a preprocessing, and '{job.model}' has none: {advice}")
    shapes = [spec.shape for spec in job.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][:2] != (1, 3):
        raise UsageError(f"image_input needs one input of [1, 3, H, W], and '{job.model}' has {shapes}: {advice}")
    if shapes[0][2:] != job.preprocess.crop:
        raise UsageError(
            f"'{job.model}' takes {shapes[0][2:]} pixels and its preprocessing crops {job.preprocess.crop}: {advice}"
        )
    return job.preprocess


def with_pixels(program: ExportedProgram, preprocess: Preprocess) -> ExportedProgram:
    """The same program on pixels of 0 to 255, [1, 3, H, W]: subtract the mean, then multiply by 1 / std.

    In this order float16 stays close: a pixel is exact in it, and so is its difference from the rounded mean.
    """
    import torch
    from torch import Tensor, nn

    class Pixels(nn.Module):
        mean: Tensor
        scale: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = program.module()
            mean, std = (
                torch.tensor(values, dtype=torch.float64).reshape(1, 3, 1, 1)
                for values in (preprocess.mean, preprocess.std)
            )
            self.register_buffer("mean", mean.float())
            self.register_buffer("scale", (1 / std).float())

        def forward(self, pixels: Tensor) -> Any:
            return self.network((pixels - self.mean) * self.scale)

    (example,) = (
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    )
    return torch.export.export(Pixels(), (torch.zeros(example.shape),))


def _deployment(job: LoweringJob) -> str:
    asked: str = job.options.minimum_deployment
    return OLDEST[job.recipe.weights, job.recipe.activations] if asked == "auto" else asked


def _with_palettes(model: Any) -> Any:
    """Every weight from a table of 16 values, found by k-means."""
    from coremltools.optimize import coreml as optimize

    palettes = optimize.OpPalettizerConfig(mode="kmeans", nbits=4, weight_threshold=PALETTE_LEAST_WEIGHTS)
    return optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=palettes))


def _converted(program: ExportedProgram, job: LoweringJob) -> Any:
    ct = coremltools()
    if job.options.image_input:
        image = job.inputs[0]
        inputs = [ct.ImageType(name=image.name, shape=image.shape, color_layout=ct.colorlayout.RGB)]
    else:
        inputs = [
            ct.TensorType(name=spec.name, shape=spec.shape, dtype=np.dtype(spec.dtype).type) for spec in job.inputs
        ]
    # Integers too stand in float16: the Neural Engine takes no float32.
    precision = ct.precision.FLOAT32 if job.recipe.weights == "float32" else ct.precision.FLOAT16
    return ct.convert(
        program.run_decompositions({}),
        convert_to="mlprogram",
        inputs=inputs,
        outputs=[ct.TensorType(name=spec.name, dtype=np.dtype(spec.dtype).type) for spec in job.outputs],
        minimum_deployment_target=getattr(ct.target, _deployment(job).replace("ios", "iOS")),
        compute_precision=precision,
        skip_model_load=True,
    )


def _describe(specification: Any, job: LoweringJob) -> None:
    """Our metadata beside coremltools' versions; its date would make two exports differ."""
    from importlib.metadata import version

    texts = specification.description.metadata
    texts.shortDescription = description(job)
    texts.versionString = version("acmix")
    texts.userDefined.pop(CONVERSION_DATE, None)
    for key, text in metadata(job).items():
        texts.userDefined[key] = text


def _interface(specification: Any, job: LoweringJob) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What the saved file declares, with the axis order of the job's tensors."""
    layouts = {spec.name: spec.layout for spec in (*job.inputs, *job.outputs)}

    def tensor(feature: Any) -> TensorSpec:
        if feature.type.WhichOneof("Type") == "imageType":
            image = feature.type.imageType
            return TensorSpec(feature.name, (1, image.height, image.width, 3), "uint8", "image")
        array = feature.type.multiArrayType
        return TensorSpec(
            feature.name, tuple(array.shape), SPEC_DTYPES[array.dataType], layouts.get(feature.name, "any")
        )

    described = specification.description
    return tuple(map(tensor, described.input)), tuple(map(tensor, described.output))


def _picture(pixels: Array) -> Any:
    """uint8 [1, H, W, 3] as the picture that coremltools feeds to an image input."""
    from PIL import Image

    return Image.fromarray(pixels[0])


TARGET: Target = CoreMLTarget()
