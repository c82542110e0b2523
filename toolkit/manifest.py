"""manifest.json: everything that is known of an artifact, as types. docs/manifest.md explains it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from acmix.toolkit.ranges import KeptFloat, Observer
from acmix.toolkit.recipe import Recipe, Tolerance
from acmix.toolkit.rewrite import AppliedRewrite
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Placement
from acmix.toolkit.verify import Proof, SampleSet

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class FileDigest:
    """One file of the artifact, by its path inside the folder."""

    path: str
    sha256: str
    size_bytes: int


WeightsKind = Literal["packaged", "file", "random", "as_built"]


@dataclass(frozen=True)
class WeightsOrigin:
    """Where the weights came from. `random` weights classify nothing: the manifest says so."""

    kind: WeightsKind
    digest: str
    source: str = ""
    licence: str = ""
    seed: int | None = None
    report: str = ""

    @property
    def is_random(self) -> bool:
        return self.kind == "random"


@dataclass(frozen=True)
class ModelRecord:
    """What was captured: the name or reference given to --model, and its weights.

    exits: the outputs that are class scores, where others may be as wide; () where the width tells.
    """

    name: str
    source: str
    weights: WeightsOrigin
    parameters: int
    macs: int
    classifies: bool
    paper: str = ""
    exits: tuple[str, ...] = ()


@dataclass(frozen=True)
class TargetRecord:
    """What it was lowered to, and what the target said of the result; as in `Lowered`."""

    name: str
    options: dict[str, Any]
    notes: tuple[str, ...] = ()
    details: dict[str, str] = field(default_factory=dict)
    nondeterminism: str = ""
    half_arithmetic: bool = False
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChosenForm:
    """A layer that has several exactly equal forms, and the one that this target got."""

    layer: str
    form: str


@dataclass(frozen=True)
class Preparation:
    """What was done to the network before capture and proven in float64, and the rules applied after it.

    error_float64: largest difference between the prepared and the published network, relative to the
    largest output; None when the model has no preparation of its own.
    """

    for_inference: bool
    error_float64: float | None
    rewrites: tuple[AppliedRewrite, ...] = ()
    forms: tuple[ChosenForm, ...] = ()


@dataclass(frozen=True)
class CalibrationRecord:
    """Where the ranges of the activations came from."""

    observer: Observer
    samples: SampleSet


@dataclass(frozen=True)
class Quantization:
    """What of the file is integers, how that was found, and what stays float.

    layers: those with int8 weights. tensors: activations held as integers. calibration: None where only weights are.
    conversion: the tolerance against the simulation. probe_bounds: lowest and highest value of each input's probes.
    """

    layers: int
    tensors: int
    calibration: CalibrationRecord | None
    repairs: tuple[str, ...]
    kept_float: tuple[KeptFloat, ...]
    conversion: Tolerance
    probe_bounds: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Manifest:
    """manifest.json: everything that is known of an artifact. docs/manifest.md explains it.

    function: '' where the model file is this artifact's own; else its name in a file of several networks, which lies
    beside the folder: ../model.tflite.
    """

    acmix: str
    model: ModelRecord
    recipe: Recipe
    target: TargetRecord
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    file_inputs: tuple[TensorSpec, ...]
    file_outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None
    labels: tuple[str, ...]
    preparation: Preparation
    placement: Placement
    proof: Proof
    tolerances: tuple[Tolerance, ...]
    files: tuple[FileDigest, ...]
    tools: dict[str, str]
    machine: dict[str, str]
    timings_s: dict[str, float]
    log: str
    seed: int = 0
    pixel_grid: bool = False
    quantization: Quantization | None = None
    further_preprocess: tuple[Preprocess, ...] = ()
    function: str = ""
    schema_version: int = SCHEMA_VERSION


def manifest_schema() -> dict[str, Any]:
    """The JSON schema of manifest.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Manifest)}


if __name__ == "__main__":
    # Rewrites the schema that ships in the package, after a change of the types above.
    Path(__file__).with_name("manifest.schema.json").write_text(json.dumps(manifest_schema(), indent=1) + "\n", "utf-8")
