"""The samples of a proof with the outputs of a program of pairs: what a quantized file is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from acmix.toolkit.execute import Reference
from acmix.toolkit.target import Array, Int8Kernels
from acmix.toolkit.verify import snr_db

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def simulated_each(
    pairs: ExportedProgram, samples: Sequence[Reference], wanted: Sequence[Int8Kernels | None]
) -> dict[Int8Kernels | None, list[Reference]]:
    """By each arithmetic. What one keeps under other roundings is measured once: it is the same for another."""
    from acmix.toolkit.quantized import simulate

    if not wanted:
        return {}
    first = simulated(pairs, samples, wanted[0])
    found = {wanted[0]: first}
    for kernels in wanted[1:]:
        run = simulate(pairs, kernels=kernels)
        found[kernels] = [dataclasses.replace(one, outputs=tuple(run(one.inputs))) for one in first]
    return found


def simulated(
    pairs: ExportedProgram,
    samples: Sequence[Reference],
    kernels: Int8Kernels | None = None,
    half_arithmetic: bool = False,
) -> list[Reference]:
    """The same samples with the outputs of a program of pairs, and what those keep under other roundings."""
    from acmix.toolkit.quantized import attainable_by, simulate

    run = simulate(pairs, kernels=kernels)
    outputs = [tuple(run(sample.inputs)) for sample in samples]
    typical = typical_rms(outputs)
    measure = attainable_by(pairs, half_arithmetic, typical)
    return [
        Reference(sample.identifier, sample.inputs, made, measure(sample.inputs, made), typical)
        for sample, made in zip(samples, outputs, strict=True)
    ]


def typical_rms(outputs: Sequence[tuple[Array, ...]]) -> tuple[float, ...]:
    """Of each output, over all samples."""
    columns = zip(*outputs, strict=True)
    return tuple(float(np.sqrt(np.mean([np.square(o.astype(np.float64)).mean() for o in one]))) for one in columns)


def judged_by_simulation(samples: Sequence[Reference], simulation: Sequence[Reference]) -> list[Reference]:
    """Eager's outputs, asking of a quantized file what its simulation keeps of them."""
    made = []
    for one, other in zip(samples, simulation, strict=True):
        parts = zip(one.outputs, other.outputs, other.typical_rms, strict=True)
        kept = tuple(snr_db(wanted, found, rms) for wanted, found, rms in parts)
        made.append(dataclasses.replace(one, attainable_db=kept, typical_rms=other.typical_rms))
    return made
