"""What a saved ML program is: functions, blocks, operations, typed values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from acmix.targets.mil.interface import Interface
from acmix.toolkit.errors import UsageError

MAX_ELEMENTS = 2**28
"""No tensor of the programs that fit a phone comes near; a larger one is damage."""

MilType = Literal[
    "bool", "string", "fp16", "fp32", "fp64", "int4", "int8", "int16", "int32", "int64",
    "uint1", "uint2", "uint3", "uint4", "uint6", "uint8", "uint16", "uint32", "uint64",
]  # fmt: skip
DATA_TYPES: Mapping[int, MilType] = {
    1: "bool", 2: "string", 10: "fp16", 11: "fp32", 12: "fp64", 21: "int8", 22: "int16", 23: "int32", 24: "int64",
    25: "int4", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4", 36: "uint2", 37: "uint1",
    38: "uint6", 39: "uint3",
}  # fmt: skip
FLOATS = frozenset({"fp16", "fp32", "fp64"})


@dataclass(frozen=True)
class TensorType:
    """None stands for an axis that is known when the program runs; shape None for an unknown rank."""

    dtype: MilType
    shape: tuple[int | None, ...] | None = ()


@dataclass(frozen=True)
class ListType:
    """A list of tensors, or of class labels."""

    element: TensorType


@dataclass(frozen=True)
class StateType:
    """A tensor that outlives a prediction."""

    element: TensorType


@dataclass(frozen=True)
class DictionaryType:
    """Class label to probability."""


ValueType = TensorType | ListType | StateType | DictionaryType


@dataclass(frozen=True)
class NamedType:
    """A value's name and type."""

    name: str
    type: ValueType


@dataclass(frozen=True)
class BlobValue:
    """A tensor in a weight file: the file's name in the package, the byte where its record starts."""

    type: TensorType
    file: str
    offset: int


@dataclass(frozen=True)
class ArrayValue:
    """A tensor in the specification, in numpy's own dtype for it (sub-byte integers unpacked to bytes)."""

    type: TensorType
    array: NDArray[np.generic]


@dataclass(frozen=True)
class TextValue:
    """One string, or the strings or integers of a list."""

    texts: tuple[str | int, ...]
    is_list: bool = False


Literal_ = BlobValue | ArrayValue | TextValue
Binding = str | Literal_
"""The name of another value, or a value itself."""


@dataclass(frozen=True)
class Operation:
    """kind: MIL's name of the operator.  attributes: values that belong to the operation, `val` of a const."""

    kind: str
    name: str
    inputs: Mapping[str, tuple[Binding, ...]]
    outputs: tuple[NamedType, ...]
    blocks: tuple[Block, ...]
    attributes: Mapping[str, Literal_]

    def names(self) -> Iterator[str]:
        """Every value that it reads itself, blocks not included."""
        for bindings in self.inputs.values():
            yield from (binding for binding in bindings if isinstance(binding, str))


@dataclass(frozen=True)
class Block:
    """Operations in order; outputs are names."""

    inputs: tuple[NamedType, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """One entry point.  opset: 15 to 18 and on, the iOS version whose operators it uses."""

    name: str
    inputs: tuple[NamedType, ...]
    opset: int
    block: Block
    interface: Interface


@dataclass(frozen=True)
class Program:
    """A package's content.  folder: what @model_path stands for in its weight files.

    fingerprint: of weights/weight.bin, where acmix wrote the package; '' otherwise.
    """

    path: Path
    folder: Path
    functions: Mapping[str, Function]
    default_function: str
    fingerprint: str = ""


def elements_of(shape: tuple[int, ...], what: str) -> int:
    """How many elements; raises UsageError for a shape that nothing could hold, even one beside an empty axis."""
    if any(axis < 0 for axis in shape):
        raise UsageError(f"{what} would have the shape {list(shape)}: an axis is negative.")
    if prod(max(1, axis) for axis in shape) > MAX_ELEMENTS:
        raise UsageError(
            f"{what} would have the shape {list(shape)}, more than {MAX_ELEMENTS} elements: "
            "the package is damaged, or its inputs are too large."
        )
    return prod(shape)
