"""Capture: from a model's name and weights to one exact, prepared ExportedProgram."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from acmix.toolkit import weights
from acmix.toolkit.adaptive.unrolled import UnrolledSpec, join_origins, refuse_one_file
from acmix.toolkit.checkpoint import read_checkpoint
from acmix.toolkit.errors import UsageError
from acmix.toolkit.manifest import Preparation, WeightsOrigin
from acmix.toolkit.prepare import Prepared, flat_tensors, prepare
from acmix.toolkit.program import copy_program, quiet
from acmix.toolkit.rewrite import rewrite
from acmix.toolkit.source import ModelSource, parameter_count, user_line
from acmix.toolkit.spec import ModelSpec, TensorSpec
from acmix.toolkit.target import Array


@dataclass(frozen=True)
class Network:
    """A built model with its weights, in evaluation mode: the eager float32 reference."""

    source: ModelSource
    module: nn.Module
    weights: WeightsOrigin

    @property
    def spec(self) -> ModelSpec:
        return self.source.spec

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Eager float32 outputs, flattened in the order of the program's outputs."""
        with torch.no_grad():
            outputs = self.module(*(torch.from_numpy(np.ascontiguousarray(a)) for a in inputs))
        return [tensor.detach().contiguous().numpy() for tensor in flat_tensors(outputs)]


@dataclass(frozen=True)
class TargetProgram:
    """The captured program as one target gets it. Targets whose preparation is the same share one."""

    program: ExportedProgram
    preparation: Preparation


@dataclass(frozen=True)
class Captured:
    """One captured network: what is known of it, and its program for each target."""

    programs: dict[str, TargetProgram]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    macs: int
    classifies: bool


def build(source: ModelSource, weights_option: str | None, seed: int = 0) -> Network:
    """Build the model and give it its weights: a file, 'random', or None for the model's own.

    Raises UsageError when a checkpoint does not fit; see acmix.toolkit.weights.
    """
    spec = source.spec
    if isinstance(spec, UnrolledSpec):
        return _build_unrolled(source, spec, weights_option, seed)
    torch.manual_seed(seed)
    module = spec.build()
    if source.kind == "program":
        if weights_option is not None:
            raise UsageError(f"{source.reference} holds its own weights: leave --weights out.")
        return Network(source, module, WeightsOrigin("as_built", weights.digest(module), source.reference))
    origin = _give_weights(source, module, weights_option, seed)
    return Network(source, module.eval(), origin)


def _build_unrolled(source: ModelSource, spec: UnrolledSpec, option: str | None, seed: int) -> Network:
    """Every network with the weights that it has in the adaptive model."""
    from acmix.toolkit.adaptive.graph import Unrolled

    adaptive = spec.adaptive
    refuse_one_file(adaptive, option)
    built = {name: build(network, option, seed) for name, network in adaptive.networks.items()}
    module = Unrolled(adaptive.stages, {name: network.module for name, network in built.items()}).eval()
    origin = join_origins([network.weights for network in built.values()], weights.digest(module), seed)
    return Network(source, module, origin)


def _give_weights(source: ModelSource, module: nn.Module, option: str | None, seed: int) -> WeightsOrigin:
    spec = source.spec
    if option not in (None, "random"):
        report = weights.load_weights(module, spec, read_checkpoint(Path(str(option))))
        return WeightsOrigin("file", weights.digest(module), str(option), report=str(report))
    if option is None and spec.weights is not None:
        report = weights.load_weights(module, spec, read_checkpoint(weights.packaged_weights(spec.weights)))
        return WeightsOrigin(
            "packaged",
            weights.digest(module),
            spec.weights.distribution,
            spec.weights.licence,
            report=str(report),
        )
    if source.kind == "module" and option is None:
        return WeightsOrigin("as_built", weights.digest(module), source.reference)
    if source.kind == "module":
        raise UsageError(f"--weights random is for models of the zoo; {source.reference} makes its own.")
    return WeightsOrigin("random", weights.digest(module), seed=seed)


def capture(network: Network, targets: Sequence[str]) -> Captured:
    """Prepare the network for each target, export each form once, apply the exact rewrites that help the target.

    Raises UsageError with the user's own line when torch.export refuses the module.
    """
    spec = network.spec
    zeros = _zeros(spec)
    macs, named = _measure(network, zeros)
    prepared = prepare(network.module, spec, targets)
    exported: dict[int, ExportedProgram] = {}
    programs: dict[str, TargetProgram] = {}
    for target, form in prepared.items():
        if id(form.module) not in exported:
            exported[id(form.module)] = _export(form.module, zeros, network.source)
        made = _rewritten(exported[id(form.module)], form, target)
        equal = (p for t, p in programs.items() if prepared[t] is form and p.preparation == made.preparation)
        programs[target] = next(equal, made)
    first = next(iter(named.values()))
    guessed = network.source.kind != "zoo" and first.dim() == 2 and first.shape[1] > 1
    classifies = spec.classifies or guessed
    outputs = _output_specs(named)
    _refuse_shared_names(spec.inputs, outputs)
    return Captured(programs, spec.inputs, outputs, parameter_count(network.module), macs, classifies)


def capture_published(network: Network) -> ExportedProgram:
    """The network as it is: no inference form, no rewrite."""
    return _export(network.module, _zeros(network.spec), network.source)


def _refuse_shared_names(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    for name in {spec.name for spec in inputs} & {spec.name for spec in outputs}:
        raise UsageError(
            f"{name!r} is the name of an input and of an output; ONNX and Core ML need two.\n"
            "Name the input: --input other_name=1x3x224x224, or return a dict with another key."
        )


def _rewritten(exported: ExportedProgram, form: Prepared, target: str) -> TargetProgram:
    program = copy_program(exported)
    applied = rewrite(program, target)
    _make_contiguous(program)
    program.validate()  # type: ignore[no-untyped-call]
    has_form = form.error_float64 is not None
    return TargetProgram(program, Preparation(has_form, form.error_float64, applied, form.forms))


def _make_contiguous(program: ExportedProgram) -> None:
    """Lay every weight out in the order of its axes: litert-torch 0.10 writes a transposed view as if it were."""
    for key, tensor in program.state_dict.items():
        if not tensor.is_contiguous():
            laid_out = tensor.detach().contiguous()
            is_parameter = isinstance(tensor, nn.Parameter)
            program.state_dict[key] = nn.Parameter(laid_out, tensor.requires_grad) if is_parameter else laid_out
    for key, constant in program.constants.items():
        if isinstance(constant, Tensor):
            program.constants[key] = constant.detach().contiguous()


def count_macs(network: Network) -> int:
    """Multiply-accumulates of one inference of the published form: convolutions and matrix products."""
    return _measure(network, _zeros(network.spec))[0]


def _zeros(spec: ModelSpec) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(s.shape, dtype=getattr(torch, s.dtype)) for s in spec.inputs)


def _measure(network: Network, zeros: tuple[Tensor, ...]) -> tuple[int, dict[str, Tensor]]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        try:
            outputs = network.module(*zeros)
        except Exception as error:
            shapes = ", ".join("x".join(map(str, z.shape)) for z in zeros)
            line = user_line(error)
            raise UsageError(
                f"{network.source.reference} fails on an input of {shapes}: {type(error).__name__}: {error}\n"
                f"{f'at {line}' if line else 'in the module itself'}\nGive the size it takes: --input 1x3x224x224."
            ) from error
    return counter.get_total_flops() // 2, _named(network.spec, outputs)


def _named(spec: ModelSpec, outputs: object) -> dict[str, Tensor]:
    """Outputs by name: the keys of a dict, the spec's own names, or output_0, output_1 and so on."""
    tensors = flat_tensors(outputs)
    if not tensors:
        raise UsageError("the model returns nothing; acmix exports models whose outputs are tensors.")
    keys = []
    if isinstance(outputs, dict) and all(isinstance(value, Tensor) for value in outputs.values()):
        # Core ML takes no name that begins with a digit.
        keys = [re.sub(r"^(?=\d)", "output_", re.sub(r"\W", "_", str(key))) for key in outputs]
    if len(set(keys)) == len(tensors):
        names = keys
    elif len(spec.outputs) == len(tensors):
        names = list(spec.outputs)
    else:
        names = [f"output_{i}" for i in range(len(tensors))]
    return dict(zip(names, tensors, strict=True))


def _output_specs(outputs: dict[str, Tensor]) -> tuple[TensorSpec, ...]:
    for name, tensor in outputs.items():
        if tensor.dim() == 0 or math.prod(tensor.shape) == 0:
            raise UsageError(f"output {name!r} has shape {tuple(tensor.shape)}; outputs need rank 1 or more.")
    return tuple(
        TensorSpec(n, tuple(t.shape), str(t.dtype).removeprefix("torch."), "nchw" if t.dim() == 4 else "any")
        for n, t in outputs.items()
    )


def _export(module: nn.Module, inputs: tuple[Tensor, ...], source: ModelSource) -> ExportedProgram:
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(module, inputs)
    except Exception as error:
        line = user_line(error)
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"torch.export refuses {source.reference}: {type(error).__name__}: {first}\n"
            f"{'at ' + line if line else 'in the module itself'}\n"
            "The graph must be the same for every input: no branch on a tensor's value, no .item()."
        ) from error
