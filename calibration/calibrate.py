"""Calibration: from a captured program and samples to ranges, and to weights that lose less when they are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.export import ExportedProgram

from acmix.calibration.bias import correct_bias
from acmix.calibration.collect import collect
from acmix.calibration.equalize import channel_peaks, equalize
from acmix.toolkit.quantize import rounded_weight
from acmix.toolkit.quantized import Calibrated
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.samples import Samples


@dataclass(frozen=True)
class SampleCalibrator:
    """Calibrates captured programs on one set of samples. remarks: what the checks found to say of them."""

    samples: Samples
    remarks: tuple[str, ...] = ()

    def __call__(self, program: ExportedProgram, recipe: Recipe, kept: Sequence[str] = ()) -> Calibrated:
        """Mend the weights as the recipe says, then find the ranges of what they give."""
        repairs = []
        if recipe.equalize:
            program, pairs = equalize(program, channel_peaks(program, self.samples))
            repairs.append(f"cross-layer equalization of {len(pairs)} groups of layers")
        if recipe.correct_bias:

            def weight(layer: str, value: Tensor) -> Tensor:
                return value if layer in kept else rounded_weight(value)

            program, corrections = correct_bias(program, weight, self.samples)
            repairs.append(f"bias correction of {len(corrections)} layers")
        return Calibrated(program, collect(program, self.samples, recipe.observer), tuple(repairs))
