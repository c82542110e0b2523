"""What all targets of an export share: the capture, the quantized form, and the outputs that files must agree with."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from acmix.toolkit import catalog
from acmix.toolkit.errors import UsageError
from acmix.toolkit.execute import Reference, snapped
from acmix.toolkit.manifest import ModelRecord, Preparation
from acmix.toolkit.ranges import save_ranges
from acmix.toolkit.request import ExportRequest
from acmix.toolkit.samples import Probes, Samples, Spread
from acmix.toolkit.simulated import simulated_each
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Array, Int8Kernels
from acmix.toolkit.verify import SampleSet

if TYPE_CHECKING:
    from acmix.toolkit.capture import Captured
    from acmix.toolkit.conditioning import Attainable
    from acmix.toolkit.quantized import Quantized

UNBOUNDED = (-sys.float_info.max, sys.float_info.max)
CALIBRATION_IN_PROOF = 8
"""Samples of the calibration on which an int8 file has to agree with eager."""


@dataclass(frozen=True)
class QuantizedShare:
    """A quantized program and its files.

    simulated: its outputs on the probes, then on the photos, by each arithmetic of the targets that take it.
    """

    quantized: Quantized
    ranges: Path | None
    simulated: dict[Int8Kernels | None, list[Reference]]


@dataclass(frozen=True)
class Shared:
    """What all targets share once the capture is done, and each one's own program.

    photos: those given, after some of the calibration's. bounds: of the probes' values, where integers limit them.
    """

    programs: dict[str, Path]
    preparations: dict[str, Preparation]
    model: ModelRecord
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    probes: list[Reference]
    photos: list[Reference]
    sample_sets: tuple[SampleSet, ...]
    seconds: float
    half_conditioning: Attainable
    quantized: dict[str, QuantizedShare]
    samples_file: Path | None = None
    bounds: tuple[tuple[float, float], ...] = ()

    @property
    def samples(self) -> list[Reference]:
        """Every sample with eager's outputs, the probes first."""
        return [*self.probes, *self.photos]


def share(request: ExportRequest, scratch: Path) -> Shared:
    """Capture, calibrate and quantize once; run eager, and the simulation of integers, on every sample."""
    # Imported here: torch takes seconds, and the converters are starting meanwhile.
    from acmix.toolkit import capture
    from acmix.toolkit.conditioning import attainable

    begin = time.perf_counter()
    network = capture.build(request.source, request.weights, request.seed)
    captured = capture.capture(network, [target.name for target in request.targets])
    _check_labels(request, captured.outputs)
    _check_names(request, captured.outputs)
    quantized = _quantized(request, captured)
    programs = _saved(captured, quantized, scratch)
    bounds = _bounds(captured, quantized)
    sets = _sample_sets(request, Probes(captured.inputs, request.seed, bounds=bounds))
    grid = request.source.spec.preprocess if request.takes_image else None
    conditioning = attainable(network.module, request.recipe)
    references = [list(_references(network, conditioning, samples, grid)) for samples in sets]
    photos = list(itertools.chain.from_iterable(references[1:]))
    shares = {
        key: QuantizedShare(
            made,
            _save_ranges(made, scratch / f"ranges-{key}.npz"),
            simulated_each(made.pairs, [*references[0], *photos], _kernels_of(captured, key)),
        )
        for key, made in quantized.items()
    }
    record = ModelRecord(
        request.source.spec.name,
        request.source.reference,
        network.weights,
        captured.parameters,
        captured.macs,
        captured.classifies,
        request.source.spec.paper,
        request.source.spec.exits,
    )
    is_half = request.recipe.weights == "float16"
    return Shared(
        programs,
        {name: made.preparation for name, made in captured.programs.items()},
        record,
        captured.inputs,
        captured.outputs,
        references[0],
        photos,
        tuple(SampleSet(s.name, len(s), s.digest) for s in sets),
        time.perf_counter() - begin,
        # No target computes in float16 with float32 weights; the copy of the network is saved.
        attainable(network.module, request.recipe, half_arithmetic=True) if is_half else conditioning,
        {name: shares[id(m.program)] for name, m in captured.programs.items() if id(m.program) in shares},
        _save_samples(request, captured.inputs, scratch / "samples.npz"),
        bounds,
    )


def _quantized(request: ExportRequest, captured: Captured) -> dict[int, Quantized]:
    """The quantized form of each distinct captured program, where the recipe or the program itself has integers."""
    from acmix.toolkit.pairs import check_request, has_pairs, read_pairs
    from acmix.toolkit.quantized import quantize_program

    quantized: dict[int, Quantized] = {}
    for target, made in captured.programs.items():
        key, program = id(made.program), made.program
        if key not in quantized and has_pairs(program):
            check_request(request.recipe, request.calibrator is not None)
            quantized[key] = read_pairs(program)
        elif key not in quantized and request.recipe.weights == "int8":
            quantized[key] = quantize_program(program, request.recipe, request.calibrator, request.kept_float)
        if key in quantized:
            _check_fit(target, quantized[key])
    return quantized


def _saved(captured: Captured, quantized: dict[int, Quantized], scratch: Path) -> dict[str, Path]:
    """The program that each target lowers, as a file; equal ones are one, and what none lowers is not written."""
    from acmix.toolkit.program import save_program

    paths = {}
    for target, made in captured.programs.items():
        key, program, form = id(made.program), made.program, "captured"
        if key in quantized and catalog.load_target(target).quantization == "pairs":
            program, form = quantized[key].pairs, "pairs"
        elif key in quantized:
            program = quantized[key].calibrated.program
        paths[target] = scratch / f"{form}-{key}.pt2"
        if not paths[target].exists():
            save_program(program, paths[target])
    return paths


def _check_fit(target: str, quantized: Quantized) -> None:
    """Raise UsageError where a target wants ranges and the program's own pairs are more than those say."""
    from acmix.toolkit.pairs import are_own, unfit_for_ranges

    wants_ranges = catalog.load_target(target).quantization == "ranges" and are_own(quantized.calibrated.ranges)
    if wants_ranges and (reason := unfit_for_ranges(quantized)):
        raise UsageError(f"{target} cannot keep the program's own pairs: {reason}.\nLeave it out of --target.")


def _save_ranges(quantized: Quantized, path: Path) -> Path | None:
    if quantized.calibrated.ranges is None:
        return None
    save_ranges(quantized.calibrated.ranges, path)
    return path


def _save_samples(request: ExportRequest, inputs: tuple[TensorSpec, ...], path: Path) -> Path | None:
    """The calibration's inputs for targets that run the samples once more through a file of their own."""
    if request.calibrator is None or not request.recipe.needs_ranges:
        return None
    samples = list(request.calibrator.samples)
    arrays = {s.name: np.concatenate([sample[i] for sample in samples]) for i, s in enumerate(inputs)}
    np.savez(path, allow_pickle=False, **arrays)
    return path


def _bounds(captured: Captured, quantized: dict[int, Quantized]) -> tuple[tuple[float, float], ...]:
    """What the integers of each input express, of the program that expresses the least."""
    from acmix.toolkit.quantize import graph_module

    found = []
    for made in quantized.values():
        if made.calibrated.ranges is None:
            return ()
        nodes = [n.name for n in graph_module(made.calibrated.program).graph.nodes if n.op == "placeholder"]
        ranges = made.calibrated.ranges.tensors
        found.append([(ranges[n].low, ranges[n].high) if n in ranges else UNBOUNDED for n in nodes])
    columns = zip(*found, strict=True)
    return tuple((max(low for low, _ in column), min(high for _, high in column)) for column in columns)


def _sample_sets(request: ExportRequest, probes: Probes) -> list[Samples]:
    sets: list[Samples] = [probes]
    if request.recipe.needs_ranges and request.calibrator is not None:
        sets.append(Spread(request.calibrator.samples, CALIBRATION_IN_PROOF))
    if request.photos is not None:
        sets.append(request.photos)
    return sets


def _kernels_of(captured: Captured, key: int) -> list[Int8Kernels | None]:
    """The arithmetics of the targets that lower one program of pairs."""
    targets = [catalog.load_target(name) for name, made in captured.programs.items() if id(made.program) == key]
    return list(dict.fromkeys(target.int8_kernels for target in targets if target.quantization == "pairs"))


def _check_labels(request: ExportRequest, outputs: tuple[TensorSpec, ...]) -> None:
    classes = outputs[0].shape[-1]
    if request.labels and len(request.labels) != classes:
        raise UsageError(
            f"--labels names {len(request.labels)} classes, but {request.source.spec.name} tells {classes} apart.\n"
            "Give one name a line, in the order of the scores."
        )


def _check_names(request: ExportRequest, outputs: tuple[TensorSpec, ...]) -> None:
    names = {spec.name for spec in outputs}
    for name in request.snr_db_overrides.keys() - names - {""}:
        raise UsageError(f"--min-snr names {name!r}; the outputs are {', '.join(sorted(names))}.")


def _references(
    network: Callable[[Sequence[Array]], list[Array]],
    conditioning: Attainable,
    samples: Samples,
    grid: Preprocess | None,
) -> Iterator[Reference]:
    for identifier, inputs in zip(samples.identifiers, samples, strict=True):
        fed = snapped(inputs, grid)
        outputs = tuple(network(fed))
        yield Reference(identifier, fed, outputs, conditioning(fed, outputs))
