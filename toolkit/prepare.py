"""Preparation: from the published network to an equal one that lowers well on a target, proven in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from acmix.toolkit.errors import UsageError
from acmix.toolkit.layers.inference import InferenceLayer, replace_layers, shapes_found_once
from acmix.toolkit.manifest import ChosenForm
from acmix.toolkit.spec import ModelSpec, TensorSpec

EXACT_FLOAT64 = 1e-9
"""The largest relative difference in float64 that still counts as the same network."""


@dataclass(frozen=True)
class Prepared:
    """A network in its inference form, the forms that were chosen for its layers, and its error in float64."""

    module: nn.Module
    forms: tuple[ChosenForm, ...] = ()
    error_float64: float | None = None


def prepare(module: nn.Module, spec: ModelSpec, targets: Sequence[str]) -> dict[str, Prepared]:
    """The inference form for each target; targets whose forms are equal share one. The module itself is kept.

    Raises UsageError when a form differs from the published network (the model's for_inference is then wrong), and
    when the two cannot be compared: a network that fails in float64, or whose outputs are not finite.
    """
    for_inference = spec.for_inference or _layer_forms(module, spec)
    if for_inference is None:
        return dict.fromkeys(targets, Prepared(module))
    generator = torch.Generator().manual_seed(0)
    inputs = [_noise(s, generator) for s in spec.inputs]
    published = copy.deepcopy(module).double().eval()
    shared: dict[tuple[tuple[ChosenForm, ...], str], Prepared] = {}
    prepared = {}
    with torch.no_grad(), shapes_found_once():
        wanted = _outputs_float64(spec, published, inputs)
        for target in targets:
            candidate = for_inference(module, target).eval()
            forms = chosen_forms(candidate)
            # A user's form may differ without saying so in chosen_form.
            key = (forms, repr(candidate))
            if key not in shared:
                found = _outputs_float64(spec, for_inference(published, target).eval(), inputs)
                shared[key] = Prepared(candidate, forms, _checked(spec, wanted, found))
            prepared[target] = shared[key]
    return prepared


def inference_form(module: nn.Module, spec: ModelSpec, target: str) -> nn.Module:
    """The form of one network for a target, not compared with it yet; the network itself where it has none."""
    for_inference = spec.for_inference or _layer_forms(module, spec)
    return module if for_inference is None else for_inference(module, target)


def _layer_forms(module: nn.Module, spec: ModelSpec) -> Callable[[nn.Module, str], nn.Module] | None:
    """For a user's own network that contains layers of acmix: each in its own inference form."""
    if not any(isinstance(layer, InferenceLayer) for layer in module.modules()):
        return None

    def for_inference(network: nn.Module, target: str) -> nn.Module:
        dtype = next((p.dtype for p in network.parameters()), torch.float32)
        zeros = [torch.zeros(s.shape, dtype=_dtype(s, dtype)) for s in spec.inputs]
        return replace_layers(network, target, zeros)

    return for_inference


def _dtype(spec: TensorSpec, floating: torch.dtype) -> torch.dtype:
    return floating if spec.dtype == "float32" else getattr(torch, spec.dtype)


def _noise(spec: TensorSpec, generator: torch.Generator) -> Tensor:
    if spec.dtype != "float32":
        return torch.zeros(spec.shape, dtype=_dtype(spec, torch.float64))
    return torch.randn(spec.shape, generator=generator, dtype=torch.float64)


def chosen_forms(module: nn.Module) -> tuple[ChosenForm, ...]:
    """The layers that picked one of several equal forms, and which."""
    return tuple(
        ChosenForm(name, form)
        for name, layer in module.named_modules()
        if isinstance(form := getattr(layer, "chosen_form", None), str)
    )


def flat_tensors(outputs: object) -> list[Tensor]:
    """The tensors of a tuple, list or dict, in the order torch.export flattens them.

    Raises UsageError when an output is no tensor.
    """
    leaves = pytree.tree_leaves(outputs)
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise UsageError(
                f"the model returns a {type(leaf).__name__}; acmix exports models whose outputs are tensors.\n"
                "Return tensors, or a tuple or dict of them."
            )
    return leaves


def _outputs_float64(spec: ModelSpec, module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    try:
        return flat_tensors(module(*inputs))
    except UsageError:
        raise
    except Exception as error:  # a user's own layers fail in any way that there is
        raise UsageError(
            f"{spec.name} cannot be computed in float64, where its inference form is proven: "
            f"{type(error).__name__}: {error}\n"
            "Make what it creates follow its input's dtype: torch.zeros(..., dtype=x.dtype)."
        ) from error


def _checked(spec: ModelSpec, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    # Compared before the values: tensors of other shapes broadcast.
    shapes, others = ([tuple(tensor.shape) for tensor in tensors] for tensors in (wanted, found))
    if shapes != others:
        raise UsageError(
            f"the inference form of {spec.name} gives outputs of {others}, the published network of {shapes}."
            "\nMend for_inference of its ModelSpec."
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in wanted):
        raise UsageError(
            f"{spec.name} gives NaN or infinity for normally distributed inputs, so its inference form cannot be "
            "compared.\nExport a network that is finite for them: clamp what goes into a logarithm, root or division."
        )
    error = max((_relative_error(w, f) for w, f in zip(wanted, found, strict=True)), default=0.0)
    if not error <= EXACT_FLOAT64:
        raise UsageError(
            f"the inference form of {spec.name} differs from the published network by {error:.1e} in float64."
            f"\nThe limit is {EXACT_FLOAT64:.0e}: mend for_inference of its ModelSpec."
        )
    return error


def _relative_error(wanted: Tensor, found: Tensor) -> float:
    """Of one output, relative to its largest value; infinite where NaN is found, which max() would pass over."""
    if wanted.numel() == 0:
        return 0.0
    # Integers and truth values are outputs too.
    a, b = wanted.double(), found.double()
    error = float((a - b).abs().max() / a.abs().max().clamp_min(1e-300))
    return math.inf if math.isnan(error) else error
