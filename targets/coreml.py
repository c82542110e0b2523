"""Core ML: an ML program in an .mlpackage, converted anywhere, run on macOS and iOS only."""

from __future__ import annotations

import contextlib
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from acmix.targets.formats import coreml_package
from acmix.targets.formats.coreml_converter import coremltools, quiet
from acmix.targets.formats.metadata import description, metadata
from acmix.toolkit.errors import UsageError
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Array, Lowered, LoweringJob, Operator, Placement, Runner, Target

if TYPE_CHECKING:
    from torch.export import ExportedProgram

NOT_HERE = "Core ML's runtime exists on macOS and iOS only"
UNDETERMINED = "Core ML decides on the device between CPU, GPU and Neural Engine; a Mac with macOS 14.4 can ask it"
FLOAT16_NOTE = (
    "weights and arithmetic are float16, inputs and outputs stay float32 so that every target has one interface"
)
IMAGE_NOTE = (
    "takes RGB pixels of 0 to 255 as an image; (pixel - mean) / std, one mean and one std per channel, "
    "is part of the program"
)
CONVERSION_DATE = "com.github.apple.coremltools.conversion_date"
SPEC_DTYPES = {65568: "float32", 65552: "float16", 131104: "int32"}


@dataclass(frozen=True)
class CoreMLOptions:
    """minimum_deployment: the oldest system that may load it.  image_input: pixels in, preprocessing inside."""

    minimum_deployment: Literal["ios15", "ios16", "ios17", "ios18"] = "ios16"
    image_input: bool = False


@dataclass(frozen=True)
class CoreMLTarget:
    """One .mlpackage folder, whose path is `file` everywhere here."""

    name: str = "coreml"
    suffix: str = ".mlpackage"
    distributions: tuple[str, ...] = ("coremltools",)
    options: type[CoreMLOptions] = CoreMLOptions

    def refuses(self, recipe: Recipe, options: Any) -> str | None:
        if recipe.weights != recipe.activations or recipe.weights not in ("float32", "float16"):
            return (
                f"recipe '{recipe.name}' asks Core ML for {recipe.weights} weights with {recipe.activations} "
                "activations; float32 or float16 for both works: use the recipe float32 or float16."
            )
        return None

    def cannot_run_here(self, options: Any) -> str | None:
        return None if sys.platform == "darwin" else NOT_HERE

    def preload(self) -> None:
        coremltools()

    def preload_runtime(self) -> None:
        coremltools()

    def lower(self, program: ExportedProgram, job: LoweringJob, file: Path) -> Lowered:
        notes = [FLOAT16_NOTE] if job.recipe.weights == "float16" else []
        if job.options.image_input:
            program = with_pixels(program, _image_preprocess(job))
            notes.append(IMAGE_NOTE)
        with quiet():
            model = _converted(program, job)
            model.save(str(file))
        specification = model.get_spec()
        _describe(specification, job)
        coreml_package.write_specification(file, specification)
        inputs, outputs = _interface(specification, job)
        details = {
            "minimum_deployment": job.options.minimum_deployment,
            "specification_version": str(specification.specificationVersion),
        }
        half = job.recipe.weights == "float16"
        return Lowered(inputs, outputs, tuple(notes), half_arithmetic=half, details=details)

    @contextlib.contextmanager
    def runner(self, file: Path, threads: int) -> Iterator[Runner]:
        """Predict on the CPU, whose results do not depend on the Mac; Core ML chooses its own threads."""
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

        yield run

    @contextlib.contextmanager
    def reference(self, file: Path) -> Iterator[Runner]:
        """The saved package by the definition of its operators, on any machine: exact about numbers, not about time."""
        from acmix.targets.mil import load_package

        model = load_package(file)
        described = coreml_package.read_specification(file).description

        def run(arrays: Sequence[Array]) -> list[Array]:
            feed = {feature.name: array for feature, array in zip(described.input, arrays, strict=True)}
            results = model(feed)
            return [np.asarray(results[feature.name]) for feature in described.output]

        yield run

    def placement(self, file: Path) -> Placement:
        specification = coreml_package.read_specification(file)
        shapes = coreml_package.shapes_of(specification)
        planned = _can_plan()
        devices = _planned_devices(file) if planned else {}
        operators = tuple(
            _operator(operation, coreml_package.macs(operation, shapes), devices)
            for operation in coreml_package.operations(specification)
        )
        how = "Core ML's compute plan on this Mac" if planned else "the specification, which leaves it to the device"
        return Placement(operators, determined_by=how)


def _operator(operation: Any, macs: int, devices: dict[str, str]) -> Operator:
    name = operation.outputs[0].name
    device = devices.get(name)
    return Operator(
        kind=operation.type,
        name=name,
        runs_on=device or "undetermined",
        delegated=None if device is None else device != "CPU",
        reason=UNDETERMINED if device is None else "",
        macs=macs,
        changes_layout=operation.type == "transpose",
    )


def _can_plan() -> bool:
    """Whether this machine has MLComputePlan: macOS 14.4 or later."""
    release = tuple(int(part) for part in platform.mac_ver()[0].split(".") if part)
    return sys.platform == "darwin" and release >= (14, 4)


def _planned_devices(file: Path) -> dict[str, str]:
    """CPU, GPU or NeuralEngine for every operation that Core ML's plan names, by its first output."""
    ct = coremltools()
    from coremltools.models.compute_plan import MLComputePlan

    compiled = ct.models.utils.compile_model(str(file))
    try:
        plan = MLComputePlan.load_from_path(compiled, compute_units=ct.ComputeUnit.ALL)
        devices: dict[str, str] = {}
        for operation in plan.model_structure.program.functions["main"].block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is not None and operation.outputs:
                kind = type(usage.preferred_compute_device).__name__
                devices[operation.outputs[0].name] = kind.removeprefix("ML").removesuffix("ComputeDevice")
        return devices
    finally:
        shutil.rmtree(compiled, ignore_errors=True)


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


def _converted(program: ExportedProgram, job: LoweringJob) -> Any:
    ct = coremltools()
    if job.options.image_input:
        image = job.inputs[0]
        inputs = [ct.ImageType(name=image.name, shape=image.shape, color_layout=ct.colorlayout.RGB)]
    else:
        inputs = [
            ct.TensorType(name=spec.name, shape=spec.shape, dtype=np.dtype(spec.dtype).type) for spec in job.inputs
        ]
    precision = ct.precision.FLOAT16 if job.recipe.weights == "float16" else ct.precision.FLOAT32
    return ct.convert(
        program.run_decompositions({}),
        convert_to="mlprogram",
        inputs=inputs,
        outputs=[ct.TensorType(name=spec.name, dtype=np.dtype(spec.dtype).type) for spec in job.outputs],
        minimum_deployment_target=getattr(ct.target, job.options.minimum_deployment.replace("ios", "iOS")),
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
