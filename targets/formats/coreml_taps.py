"""A copy of a Core ML package that gives every intermediate value as an output."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acmix.targets.formats import coreml_package
from acmix.toolkit.target import Tap

# MIL's data types (MIL.proto) and the array types of a feature that hold the same (FeatureTypes.proto).
ARRAY_TYPES = {10: 65552, 11: 65568}


def tap(package: Path, copy: Path) -> tuple[Tap, ...]:
    """Write `copy`: the same program, each floating-point result declared as one more output, in order.

    Raises UsageError when the package is damaged.
    """
    shutil.copytree(package, copy)
    specification = coreml_package.read_specification(package)
    function = coreml_package.main_function(specification)
    block = function.block_specializations[function.opset]
    added = list(_values(block))
    for value in added:
        block.outputs.append(value.name)
        feature = specification.description.output.add(name=value.name)
        kind = value.type.tensorType
        feature.type.multiArrayType.dataType = ARRAY_TYPES[kind.dataType]
        feature.type.multiArrayType.shape.extend(axis.constant.size for axis in kind.dimensions)
    coreml_package.write_specification(copy, specification)
    return tuple(Tap(value.name) for value in added)


def _values(block: Any) -> Iterator[Any]:
    """The results of fixed shape, rank 1 or more, that depend on an input."""
    outputs = set(block.outputs)
    for operation in block.operations:
        if operation.type == "const" or operation.type.startswith("constexpr_"):
            continue
        for value in operation.outputs:
            kind = value.type.tensorType
            fixed = kind.dimensions and all(axis.WhichOneof("dimension") == "constant" for axis in kind.dimensions)
            is_float = value.type.WhichOneof("type") == "tensorType" and kind.dataType in ARRAY_TYPES
            if is_float and fixed and value.name not in outputs:
                yield value
