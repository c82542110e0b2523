"""Small programs by coremltools' builder, saved as packages: what the evaluator's tests read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acmix.targets.formats.coreml_converter import coremltools, quiet
from acmix.targets.mil import load_package

Build = Callable[..., Any]
Feeds = Mapping[str, Any]
Case = tuple[Feeds, Build]
# What an app may feed and read; other types are cast inside the program.
PLAIN = ("float32", "float16", "int32")


@dataclass(frozen=True)
class Results:
    """What the evaluator gives for each case, and what coremltools infers from the same values, if it does."""

    outputs: Mapping[str, list[Any]]
    inferred: Mapping[str, list[Any] | None]


class Packages:
    """Builds packages in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def program(self, build: Build, feeds: Feeds, opset: str = "iOS17") -> Any:
        """A MIL program of one function, its inputs named, shaped and typed like the arrays."""
        ct = coremltools()
        from coremltools.converters.mil.mil import Builder, types

        specs = [
            Builder.TensorSpec(np.shape(array), types.numpy_type_to_builtin_type(np.asarray(array).dtype))
            for array in feeds.values()
        ]
        arguments, passed = ", ".join(feeds), ", ".join(f"{name}={name}" for name in feeds)
        named: Build = eval(f"lambda {arguments}: build(mb, {passed})", {"build": build, "mb": Builder})
        with quiet():
            return Builder.program(input_specs=specs, opset_version=getattr(ct.target, opset))(named)

    def save(self, program: Any, opset: str = "iOS17", **options: Any) -> Path:
        """The program as coremltools writes it, without its optimisations."""
        ct = coremltools()
        options = {"compute_precision": ct.precision.FLOAT32, "pass_pipeline": ct.PassPipeline.EMPTY, **options}
        with quiet():
            model = ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=getattr(ct.target, opset),
                skip_model_load=True,
                **options,
            )
            self.count += 1
            path = self.folder / f"{self.count}.mlpackage"
            model.save(str(path))
        return path

    def build(self, build: Build, feeds: Feeds, opset: str = "iOS17", **options: Any) -> Path:
        return self.save(self.program(build, feeds, opset), opset, **options)

    def run(self, build: Build, feeds: Feeds, opset: str = "iOS17", **modes: Any) -> list[Any]:
        """The outputs of a program, in order."""
        return list(load_package(self.build(build, feeds, opset), **modes)(feeds).values())

    def batch(self, cases: Mapping[str, Case], opset: str) -> Results:
        """Every case of a table in one package; each builds `build(mb, **values)`."""
        fed = {f"{case}__{name}": plain(array) for case, (feeds, _) in cases.items() for name, array in feeds.items()}
        counts: dict[str, int] = {}

        def build(mb: Any, **given: Any) -> list[Any]:
            results = [mb.identity(x=next(iter(given.values())))]
            for case, (feeds, one) in cases.items():
                operands = {name: typed(mb, given[f"{case}__{name}"], array) for name, array in feeds.items()}
                made = listed(one(mb, **operands))
                counts[case] = len(made)
                results += [readable(mb, value) for value in made]
            return results

        outputs = iter(self.run(build, fed, opset)[1:])
        return Results(
            {case: [next(outputs) for _ in range(count)] for case, count in counts.items()},
            {case: self.inferred(one, feeds, opset) for case, (feeds, one) in cases.items()},
        )

    def inferred(self, build: Build, feeds: Feeds, opset: str) -> list[Any] | None:
        """What coremltools folds the operator to when its operands are constants."""
        values: list[Any] = []

        def constant(mb: Any, x: Any) -> Any:
            made = listed(build(mb, **{name: mb.const(val=array) for name, array in feeds.items()}))
            values.extend(one.val for one in made)
            return mb.identity(x=x)

        try:
            self.program(constant, {"x": np.zeros(1, np.float32)}, opset)
        except (NotImplementedError, TypeError, ValueError, AttributeError):
            return None
        return None if not values or any(value is None for value in values) else values


def plain(array: Any) -> Any:
    array = np.asarray(array)
    return array if array.dtype.name in PLAIN else array.astype(np.int32)


def typed(mb: Any, value: Any, array: Any) -> Any:
    name = np.asarray(array).dtype.name
    return value if name in PLAIN else mb.cast(x=value, dtype=name)


def readable(mb: Any, value: Any) -> Any:
    from coremltools.converters.mil.mil import types

    readable = types.builtin_to_string(value.dtype) in ("fp32", "fp16", "int32")
    return mb.identity(x=value) if readable else mb.cast(x=value, dtype="int32")


def listed(made: Any) -> list[Any]:
    return list(made) if isinstance(made, (list, tuple)) else [made]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return Packages(tmp_path_factory.mktemp("packages"))
