"""Running samples through saved files, and judging what comes out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from acmix.toolkit.recipe import Recipe, Tolerance
from acmix.toolkit.session import Session
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Array, to_layout
from acmix.toolkit.verify import Compared

HALF_ARITHMETIC_DB = 10.0


@dataclass(frozen=True)
class Interface:
    """The captured program's own inputs and outputs, and the saved file's."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    file_inputs: tuple[TensorSpec, ...]
    file_outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None = None


@dataclass(frozen=True)
class Reference:
    """One sample, and what comes out of eager float32, or of a simulation of integers.

    attainable_db: what the network keeps of each output under the roundings that nobody can help.
    typical_rms: of each output over the samples, where integer activations set a floor of noise; () elsewhere.
    """

    identifier: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    attainable_db: tuple[float | None, ...]
    typical_rms: tuple[float, ...] = ()


def to_pixels(array: Array, preprocess: Preprocess) -> Array:
    """A normalised [1, 3, H, W] input as the uint8 pixels [1, H, W, 3] that it came from."""
    mean, std = (np.asarray(v, np.float32).reshape(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))
    pixels: Array = np.clip(np.rint(array * std + mean), 0, 255).astype(np.uint8)
    return pixels.transpose(0, 2, 3, 1)


def on_pixel_grid(array: Array, preprocess: Preprocess) -> Array:
    """The nearest input that uint8 pixels can express, so that image inputs can be compared exactly."""
    mean, std = (np.asarray(v, np.float32).reshape(1, 1, 1, 3) for v in (preprocess.mean, preprocess.std))
    pixels = to_pixels(array, preprocess).astype(np.float32)
    return np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2), dtype=np.float32)


def snapped(inputs: tuple[Array, ...], preprocess: Preprocess | None) -> tuple[Array, ...]:
    """A sample on the pixel grid of its preprocessing; as it is where None is given."""
    return inputs if preprocess is None else tuple(on_pixel_grid(array, preprocess) for array in inputs)


def file_inputs(inputs: Sequence[Array], interface: Interface) -> list[Array]:
    """A sample as the saved file wants it: layout, dtype, pixels."""
    fed = []
    for array, source, wanted in zip(inputs, interface.inputs, interface.file_inputs, strict=True):
        if wanted.layout == "image" and interface.preprocess is not None:
            array = to_pixels(array, interface.preprocess)
            fed.append(np.ascontiguousarray(array))
        else:
            fed.append(to_layout(array, source, wanted))
    return fed


def run_sample(session: Session, inputs: Sequence[Array], interface: Interface) -> list[Array]:
    """One inference in the captured program's own layout, whatever the file's is."""
    outputs = session.run(file_inputs(inputs, interface))
    pairs = zip(outputs, interface.file_outputs, interface.outputs, strict=True)
    return [to_layout(array, found, wanted) for array, found, wanted in pairs]


def compare(session: Session, references: Iterable[Reference], interface: Interface) -> Iterator[list[Compared]]:
    """Run every reference sample; one comparison an output."""
    for reference in references:
        yield compared(reference, run_sample(session, reference.inputs, interface))


def compared(reference: Reference, found: Sequence[Array]) -> list[Compared]:
    """What one sample gave beside what it should give; one comparison an output."""
    typical = reference.typical_rms or (0.0,) * len(found)
    parts = zip(reference.outputs, found, reference.attainable_db, typical, strict=True)
    return [Compared(reference.identifier, *part) for part in parts]


def relaxed(recipe: Recipe, half_arithmetic: bool) -> Recipe:
    """The recipe, asking 10 dB less of a float16 file whose arithmetic is float16 too, not its weights alone."""
    if not half_arithmetic:
        return recipe
    t = recipe.tolerance
    margin = None if t.margin_db is None else t.margin_db + HALF_ARITHMETIC_DB
    return replace(recipe, tolerance=Tolerance(t.snr_db - HALF_ARITHMETIC_DB, t.max_abs, margin))


def tolerances(
    recipe: Recipe, outputs: Sequence[TensorSpec], overrides: Mapping[str, float] | None = None
) -> list[Tolerance]:
    """The tolerance of each output: the recipe's, unless its snr_db is given by name ('' for all)."""
    overrides = overrides or {}
    chosen = [overrides.get(spec.name, overrides.get("")) for spec in outputs]
    default = recipe.tolerance
    # What a user asks for is held to, however ill-conditioned the network is.
    return [default if db is None else Tolerance(db, default.max_abs) for db in chosen]


def write_references(path: Path, references: Sequence[Reference]) -> None:
    """Store the eager outputs of samples that a seed regenerates, so that proof needs no torch later."""
    arrays = {f"{r.identifier}.{i}": output for r in references for i, output in enumerate(r.outputs)}
    # JSON and npz have no None: NaN stands for an unknown conditioning.
    known = {r.identifier: [math.nan if db is None else db for db in r.attainable_db] for r in references}
    notes = {f"{name}.attainable": np.array(v) for name, v in known.items()}
    notes |= {f"{r.identifier}.typical": np.array(r.typical_rms) for r in references}
    np.savez(path, allow_pickle=False, **arrays, **notes)


def read_references(path: Path, samples: Iterable[tuple[str, tuple[Array, ...]]]) -> list[Reference]:
    """The stored eager outputs, joined with their regenerated inputs."""
    references = []
    with np.load(path, allow_pickle=False) as stored:
        for identifier, inputs in samples:
            attainable = [None if math.isnan(db) else float(db) for db in stored[f"{identifier}.attainable"]]
            outputs = tuple(stored[f"{identifier}.{i}"] for i in range(len(attainable)))
            typical = tuple(float(rms) for rms in stored[f"{identifier}.typical"])
            references.append(Reference(identifier, inputs, outputs, tuple(attainable), typical))
    return references
