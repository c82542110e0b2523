"""What a saved file has to agree with: eager on these samples, and the simulation of its integers on those."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from acmix.toolkit import catalog
from acmix.toolkit.execute import HALF_ARITHMETIC_DB, Reference
from acmix.toolkit.recipe import Recipe, Tolerance
from acmix.toolkit.share import QuantizedShare, Shared
from acmix.toolkit.simulated import judged_by_simulation, simulated
from acmix.toolkit.target import Int8Kernels, Lowered


@dataclass(frozen=True)
class Expected:
    """eager: samples by their position among all, with eager's outputs. simulated: of all samples; () without."""

    eager: tuple[tuple[int, Reference], ...]
    simulated: tuple[Reference, ...]
    conversion: Tolerance


def expect(common: Shared, target: str, lowered: Lowered, recipe: Recipe) -> Expected:
    """What one lowered file is held to.

    A float file: eager, on every sample. A quantized one: its simulation on every sample, and eager with what the
    simulation itself keeps; where activations are integers not on the probes, which are no photos: their values lie
    outside of all that was calibrated.
    """
    conversion = recipe.conversion or recipe.tolerance
    share = common.quantized.get(target)
    if share is None:
        samples = _for_half(common) if lowered.half_arithmetic else common.samples
        return Expected(tuple(enumerate(samples)), (), conversion)
    from acmix.toolkit.pairs import are_own

    simulation = _simulation(common, share, lowered, catalog.load_target(target).int8_kernels)
    eager = list(enumerate(judged_by_simulation(common.samples, simulation)))
    if are_own(share.quantized.calibrated.ranges):
        # Eager is the program of pairs itself: what its integers keep under other roundings is asked, on every sample.
        eager = list(enumerate(simulation))
    elif recipe.needs_ranges:
        eager = eager[len(common.probes) :]
    if lowered.half_arithmetic:
        conversion = dataclasses.replace(conversion, snr_db=conversion.snr_db - HALF_ARITHMETIC_DB)
    return Expected(tuple(eager), tuple(simulation), conversion)


def _simulation(
    common: Shared, share: QuantizedShare, lowered: Lowered, kernels: Int8Kernels | None
) -> list[Reference]:
    from acmix.toolkit.pairs import are_own
    from acmix.toolkit.quantized import placed_by_file

    if lowered.quantized and not are_own(share.quantized.calibrated.ranges):
        made = share.quantized
        pairs = placed_by_file(made.calibrated.program, lowered.quantized, made.grid)
        return simulated(pairs, common.samples, kernels, lowered.half_arithmetic)
    if lowered.half_arithmetic or kernels not in share.simulated:
        return simulated(share.quantized.pairs, common.samples, kernels, lowered.half_arithmetic)
    return share.simulated[kernels]


def _for_half(common: Shared) -> list[Reference]:
    """Asking of each sample what eager keeps when every operator is rounded to float16."""
    return [
        dataclasses.replace(one, attainable_db=common.half_conditioning(one.inputs, one.outputs))
        for one in common.samples
    ]
