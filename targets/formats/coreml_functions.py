"""Several networks as functions of one Core ML package (iOS 18), equal weights stored once by coremltools."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from acmix.targets.formats import coreml_package
from acmix.targets.formats.coreml_converter import coremltools, quiet
from acmix.toolkit.errors import UsageError
from acmix.toolkit.joining import Function, JoinRequest
from acmix.toolkit.target import Array, Runner

OLDEST = "ios18"
"""The first system that reads a package of several functions."""
OURS = "acmix."


@dataclass(frozen=True)
class CoreMLFunctions:
    """One package; the default function is the first."""

    def refuses(self, options: Any) -> str | None:
        asked = options.minimum_deployment
        if asked in ("auto", OLDEST):
            return None
        return (
            f"a package that shares weights is for {OLDEST} or later, and --minimum-deployment says {asked}: "
            f"leave it out, or ask for {OLDEST}."
        )

    def options(self, options: Any) -> Any:
        # coremltools cannot lift every operator of an older system: palettes have other arguments since.
        return replace(options, minimum_deployment=OLDEST)

    def join(self, request: JoinRequest) -> None:
        coremltools()
        from coremltools.models.utils import MultiFunctionDescriptor, save_multifunction

        file = Path(request.file)
        described = MultiFunctionDescriptor()
        for part in request.parts:
            described.add_function(part.file, "main", part.function)
        described.default_function_name = request.parts[0].function
        with quiet():
            save_multifunction(described, request.file)
        specification = coreml_package.read_specification(file)
        _describe(specification, request)
        coreml_package.seal_weights(specification, file)
        coreml_package.write_specification(file, specification)

    @contextlib.contextmanager
    def runners(
        self, file: Path, threads: int, functions: Sequence[Function], reference: bool
    ) -> Iterator[list[Runner]]:
        """On the CPU, as single packages; Core ML chooses its own threads."""
        yield _references(file, functions) if reference else [_predictor(file, function) for function in functions]


def _references(file: Path, functions: Sequence[Function]) -> list[Runner]:
    from acmix.targets.mil import load_package

    model = load_package(file, check_weights=False)

    def runner(function: Function) -> Runner:
        def run(arrays: Sequence[Array]) -> list[Array]:
            results = model(dict(zip(function.inputs, arrays, strict=True)), function.name)
            return [np.asarray(results[name]) for name in function.outputs]

        return run

    return [runner(function) for function in functions]


def _predictor(file: Path, function: Function) -> Runner:
    if platform.system() != "Darwin":
        raise UsageError("Core ML's runtime exists on macOS and iOS only. Run `acmix verify` on a Mac.")
    ct = coremltools()
    model = ct.models.MLModel(str(file), compute_units=ct.ComputeUnit.CPU_ONLY, function_name=function.name)

    def run(arrays: Sequence[Array]) -> list[Array]:
        results = model.predict(dict(zip(function.inputs, arrays, strict=True)))
        return [np.asarray(results[name]) for name in function.outputs]

    return run


def _describe(specification: Any, request: JoinRequest) -> None:
    """What each part says of itself, by the name of its function."""
    from acmix.targets.mil.weights import FINGERPRINT_KEY

    texts = specification.description.metadata
    texts.shortDescription = f"{request.model}: {', '.join(part.function for part in request.parts)}"
    for part in request.parts:
        own = coreml_package.read_specification(Path(part.file)).description.metadata
        texts.versionString = own.versionString
        for key, text in own.userDefined.items():
            if key.startswith(OURS) and key != FINGERPRINT_KEY:
                texts.userDefined[f"{OURS}{part.function}.{key.removeprefix(OURS)}"] = text


FUNCTIONS = CoreMLFunctions()
