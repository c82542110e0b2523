"""Where the operators of a Core ML package run: by its compute plan on a Mac, elsewhere as far as published rules go.

Core ML decides on the device, by generation, system version, shapes and neighbours; Apple publishes no table
(coremltools issue 1780). What is known rules places out, and only that is predicted:

- the Neural Engine computes in float16: float32 runs on GPU or CPU (coremltools guide, "Typed Execution" and its
  workflow example; https://apple.github.io/coremltools/docs-guides/source/typed-execution.html). A cast between the
  two is taken by all three (compute plan in vx-lang/Vx issue 436). So integers and truth values of the running
  program stay off it too; 8-bit activations are its own from A17 Pro and M4 (guide, "What's New" of optimization).
- Core ML holds no tensor of more than five axes (coremltools issue 2536, a maintainer).
- lstm, gru and rnn are not on the Neural Engine (coremltools issue 1780, a maintainer).
- an input with a range of shapes runs on the Neural Engine at its default shape only, with enumerated shapes at each
  (Apple engineer, https://developer.apple.com/forums/thread/724930); from iOS 17.4 a load option changes that
  (guide, "Flexible Input Shapes").
- seen by users in Xcode's reports, and not contradicted by maintainers: while_loop on the CPU (coremltools issue
  2208), resample on the CPU (1875), a convolution whose weights are computed on the CPU (2536), gathers off the Neural
  Engine (1103; hollance/neural-engine, docs/unsupported-layers.md), states on it only when their last axis is a
  multiple of 32 (2631); scatters and reduce_prod off it on every generation (ane-guide.readthedocs.io, chapter 4).

Sources disagree on dilated convolutions: nothing is predicted of them.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from acmix.targets.formats import coreml_package
from acmix.targets.formats.coreml_converter import coremltools
from acmix.targets.formats.coreml_package import Operation, Specification, main_function
from acmix.toolkit.target import Operator, Placement

ANYWHERE = "Neural Engine, GPU or CPU (prediction)"
NOT_NEURAL = "GPU or CPU (prediction)"
CPU = "CPU (prediction)"
NOWHERE = "nowhere (prediction)"
DETERMINED_BY = "prediction by published rules; Core ML decides on the device, and a Mac with macOS 14.4 can ask it"
UNDETERMINED = "no published rule keeps it off the Neural Engine; Core ML decides on the device"

MAX_RANK = 5
STATE_ALIGNMENT = 32
# Numbers of MIL's DataType: half, single and double precision, truth values, whole numbers of more than 8 bits.
FLOAT16 = 10
WIDE_FLOATS = frozenset({11, 12})
BOOLEAN = 1
INTEGERS = frozenset({22, 23, 24, 32, 33, 34})
CONTROL_FLOW = frozenset(
    {"cond", "while_loop", "make_list", "list_read", "list_write", "list_gather", "list_scatter", "list_length"}
)
RECURRENT = frozenset({"lstm", "gru", "rnn"})
GATHERS = frozenset({"gather", "gather_along_axis", "gather_nd"})
SCATTERS = frozenset({"scatter", "scatter_along_axis", "scatter_nd"})
STATES = frozenset({"read_state", "write_state", "coreml_update_state"})

Flexibility = Literal["fixed", "enumerated", "range"]


@dataclass(frozen=True)
class Prediction:
    """Where an operator can run, and by which rule."""

    runs_on: str
    reason: str


@dataclass(frozen=True)
class Tensor:
    """A named value: MIL's number of its data type, its axes, None for one that is known at run time only."""

    dtype: int
    shape: tuple[int | None, ...]
    is_constant: bool = False


def placement(file: Path) -> Placement:
    """Every operator of the package: where Core ML's plan puts it, or where the rules above let it run."""
    specification = coreml_package.read_specification(file)
    shapes = coreml_package.shapes_of(specification)
    planned = _can_plan()
    devices = _planned_devices(file) if planned else {}
    operators = tuple(
        _operator(operation, coreml_package.macs(operation, shapes), devices, predicted)
        for operation, predicted in predict(specification)
    )
    return Placement(operators, determined_by="Core ML's compute plan on this Mac" if planned else DETERMINED_BY)


def _operator(operation: Any, macs: int, devices: dict[str, str], predicted: Prediction) -> Operator:
    """Where the plan puts it; where the plan does not name it, the prediction."""
    # write_state has no result: it goes by the state's name.
    name = operation.outputs[0].name if operation.outputs else operation.inputs["input"].arguments[0].name
    device = devices.get(name)
    return Operator(
        kind=operation.type,
        name=name,
        runs_on=device or predicted.runs_on,
        delegated=None if device is None else device != "CPU",
        reason=predicted.reason if device is None else "",
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


def predict(specification: Specification) -> list[tuple[Operation, Prediction]]:
    """Every operation of the main function, nested ones after the one that holds them, each with its prediction."""
    function = main_function(specification)
    block = function.block_specializations[function.opset]
    tensors = {value.name: _tensor(value.type) for value in function.inputs}
    operations = list(_defined(block, tensors))
    flexibility = _flexibility(specification)
    return [(operation, _predicted(operation, tensors, flexibility)) for operation in operations]


def _defined(block: Any, tensors: dict[str, Tensor]) -> Iterator[Operation]:
    """The block's operations, constants left out, every value's type put into `tensors`."""
    tensors.update((value.name, _tensor(value.type)) for value in block.inputs)
    for operation in block.operations:
        constant = operation.type.startswith("const")
        tensors.update((value.name, _tensor(value.type, constant)) for value in operation.outputs)
        if not constant:
            yield operation
        for nested in operation.blocks:
            yield from _defined(nested, tensors)


def _tensor(kind: Any, constant: bool = False) -> Tensor:
    inner = kind.stateType.wrappedType if kind.WhichOneof("type") == "stateType" else kind
    axes = inner.tensorType.dimensions
    shape = tuple(int(axis.constant.size) if axis.WhichOneof("dimension") == "constant" else None for axis in axes)
    return Tensor(inner.tensorType.dataType, shape, constant)


def _flexibility(specification: Specification) -> Flexibility:
    kinds = set()
    for feature in specification.description.input:
        array, image = feature.type.multiArrayType, feature.type.imageType
        kinds |= {array.WhichOneof("ShapeFlexibility"), image.WhichOneof("SizeFlexibility")}
    if kinds & {"shapeRange", "imageSizeRange"}:
        return "range"
    return "enumerated" if kinds & {"enumeratedShapes", "enumeratedSizes"} else "fixed"


def _predicted(operation: Operation, tensors: Mapping[str, Tensor], flexibility: Flexibility) -> Prediction:
    """The rule that leaves the fewest places; the device's own choice where none speaks."""
    results = [_tensor(value.type) for value in operation.outputs]
    operands = list(_operands(operation, tensors))
    running = [*results, *(one for one in operands if not one.is_constant)]
    if any(len(one.shape) > MAX_RANK for one in (*results, *operands)):
        return Prediction(NOWHERE, f"more than {MAX_RANK} axes: Core ML refuses it")
    if reason := _cpu_only(operation, tensors):
        return Prediction(CPU, reason)
    if reason := _off_neural_engine(operation.type, running):
        return Prediction(NOT_NEURAL, reason)
    if not any(None in one.shape for one in running):
        return Prediction(ANYWHERE, UNDETERMINED)
    if flexibility == "fixed":
        return Prediction(NOT_NEURAL, "its shape is known at run time only")
    if flexibility == "range":
        return Prediction(ANYWHERE, "a range of shapes: on the Neural Engine at the default shape only")
    return Prediction(ANYWHERE, UNDETERMINED)


def _operands(operation: Operation, tensors: Mapping[str, Tensor]) -> Iterator[Tensor]:
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "value":
                yield _tensor(binding.value.type, constant=True)
            elif binding.name in tensors:
                yield tensors[binding.name]


def _cpu_only(operation: Operation, tensors: Mapping[str, Tensor]) -> str:
    if operation.type in CONTROL_FLOW:
        return "control flow: users see it on the CPU"
    if operation.type == "resample":
        return "grid sampling: users see it on the CPU"
    if operation.type in ("conv", "conv_transpose"):
        weights = operation.inputs["weight"].arguments
        if any(one.WhichOneof("binding") == "name" and not tensors[one.name].is_constant for one in weights):
            return "its weights are computed at run time: users see it on the CPU"
    return ""


def _off_neural_engine(kind: str, running: list[Tensor]) -> str:
    types = {one.dtype for one in running}
    if kind == "cast" and types <= {FLOAT16, *WIDE_FLOATS}:
        return ""
    if types & WIDE_FLOATS:
        return "float32: the Neural Engine computes in float16"
    for family, words in ((RECURRENT, "a recurrent layer"), (GATHERS, "a gather"), (SCATTERS, "a scatter")):
        if kind in family:
            return f"{words}: not on the Neural Engine"
    if kind == "reduce_prod":
        return "a product over axes: not on the Neural Engine"
    if BOOLEAN in types or types & INTEGERS:
        return "integers or truth values: the Neural Engine computes in float16"
    if kind in STATES and any(_last_axis(one) % STATE_ALIGNMENT for one in running):
        return f"a state whose last axis is no multiple of {STATE_ALIGNMENT}: it fails on the Neural Engine"
    return ""


def _last_axis(tensor: Tensor) -> int:
    """Its length; 1 where there is none, or where it is known at run time only."""
    return (tensor.shape[-1] if tensor.shape else None) or 1
