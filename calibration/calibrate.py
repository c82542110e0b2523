"""Calibration: from a captured program and samples to ranges, and to weights that lose less when they are rounded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.export import ExportedProgram

from acmix.calibration.bias import correct_bias
from acmix.calibration.checks import sufficiency
from acmix.calibration.collect import Observed, observe
from acmix.calibration.equalize import channel_peaks, equalize
from acmix.calibration.layers import layers
from acmix.calibration.selection import CalibrationSamples
from acmix.toolkit.grid import COMPUTE
from acmix.toolkit.quantize import rounded_weight
from acmix.toolkit.quantized import Calibrated
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.samples import Samples


@dataclass(frozen=True)
class Mended:
    """An equal program whose weights lose less when they are rounded, and what was done to it, in words."""

    program: ExportedProgram
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class SampleCalibrator:
    """Calibrates captured programs on one set of samples. remarks: what the checks found to say of them."""

    samples: CalibrationSamples
    remarks: tuple[str, ...] = ()

    def __call__(self, program: ExportedProgram, recipe: Recipe, kept: Sequence[str] = ()) -> Calibrated:
        """Mend the weights as the recipe says, then find the ranges of what they give."""
        mended = mend(program, recipe, self.samples, kept)
        observed = observe(mended.program, self.samples, (recipe.observer,))
        ranges = observed.ranges(recipe.observer)
        return Calibrated(mended.program, ranges, (*mended.repairs, *insufficient(observed)))


def mend(program: ExportedProgram, recipe: Recipe, samples: Samples, kept: Collection[str] = ()) -> Mended:
    """Equalize, then correct biases, as the recipe says: a correction is that of the weights that are rounded."""
    return corrected(equalized(program, samples) if recipe.equalize else Mended(program), recipe, samples, kept)


def equalized(program: ExportedProgram, samples: Samples) -> Mended:
    """With channels of like size between layers."""
    made, groups = equalize(program, channel_peaks(program, samples))
    return Mended(made, (f"cross-layer equalization of {len(groups)} groups of layers",))


def corrected(made: Mended, recipe: Recipe, samples: Samples, kept: Collection[str] = ()) -> Mended:
    """With biases that make up for rounded weights, if the recipe says so. kept: layers whose weights are not."""
    if not recipe.correct_bias:
        return made

    # A layer that never becomes integers has nothing to correct.
    floating = {*kept, *(one.node.name for one in layers(made.program) if one.node.target not in COMPUTE)}

    def weight(layer: str, value: Tensor) -> Tensor:
        return value if layer in floating else rounded_weight(value)

    program, corrections = correct_bias(made.program, weight, samples, skip=floating)
    return Mended(program, (*made.repairs, f"bias correction of {len(corrections)} layers"))


def insufficient(observed: Observed) -> tuple[str, ...]:
    """A sentence where the samples are too few: the extremes of their halves differ (docs/calibration.md)."""
    samples = observed.samples
    findings = sufficiency(len(samples), observed.extremes_of)
    return tuple(f"calibration {samples.name}: {found.sentence}" for found in findings)
