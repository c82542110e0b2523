"""The weight files of a package: every tensor behind a record that says what it is.

A file is a header of 64 bytes (how many records, version 2), then records of 64 bytes, each pointing at its values;
all start at multiples of 64 (coremltools' MILBlob/Blob/StorageFormat.hpp).
"""

from __future__ import annotations

import hashlib
import struct
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acmix.targets.mil.program import BlobValue, MilType
from acmix.toolkit.errors import UsageError

Array = NDArray[np.generic]

FINGERPRINT_KEY = "acmix.weights"
"""Where acmix puts the fingerprint of weights/weight.bin into a package's metadata: the format has no checksum."""
ALIGNMENT = 64
VERSION = 2
SENTINEL = 0xDEADBEEF
HEADER = struct.Struct("<II")
# Sentinel, type, size in bytes, offset of the values, bits that pad the last byte of sub-byte integers, three reserved.
RECORD = struct.Struct("<IIQQQQQQ")
BLOB_TYPES: dict[int, MilType] = {
    1: "fp16", 2: "fp32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1", 10: "uint2",
    11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32",
}  # fmt: skip
NUMPY_TYPES: dict[MilType, str] = {
    "bool": "bool", "fp16": "<f2", "fp32": "<f4", "fp64": "<f8", "int8": "i1", "int16": "<i2", "int32": "<i4",
    "int64": "<i8", "uint8": "u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8",
}  # fmt: skip
SUB_BYTE_BITS: dict[MilType, int] = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}


def fingerprint(data: bytes | memoryview) -> str:
    """Size in bytes and sha256 of a weight file, as one text."""
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


class WeightFile:
    """One weight file, mapped: nothing is read before it is asked for.  Raises UsageError.

    expected: the fingerprint that the package gives; '' where it gives none.  Of a file of another size it says
    nothing: compressing a package leaves its metadata as it was.
    """

    def __init__(self, path: Path, name: str, expected: str = "") -> None:
        self.name = name
        try:
            if not path.is_file():
                raise OSError(f"{path.name} is no file")
            self.data = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"the weights '{name}' are missing or empty: copy the whole package again, its folder 'weights' too."
            ) from error
        if len(self.data) < ALIGNMENT or HEADER.unpack(self.data[: HEADER.size].tobytes())[1] != VERSION:
            raise self.damaged("it does not start with a header of version 2")
        if expected.partition(" ")[0] == str(len(self.data)) and fingerprint(self.data.data) != expected:
            raise self.damaged("a byte has changed: their sha256 is not the one that acmix wrote into the package")

    def damaged(self, reason: str) -> UsageError:
        return UsageError(f"the weights '{self.name}' are damaged ({reason}): export or copy the package again.")

    def read(self, value: BlobValue) -> Array:
        """The tensor at value.offset, which must be what value.type says."""
        shape, dtype, at = value.type.shape, value.type.dtype, value.offset
        if shape is None or any(axis is None for axis in shape):
            raise self.damaged(f"the tensor at byte {at} has no fixed shape")
        sizes = tuple(axis or 0 for axis in shape)
        if at % ALIGNMENT or at + ALIGNMENT > len(self.data) or at < ALIGNMENT:
            raise self.damaged(f"no tensor can start at byte {at} of {len(self.data)}")
        sentinel, code, size, start, padding, *reserved = RECORD.unpack(self.data[at : at + RECORD.size].tobytes())
        if sentinel != SENTINEL:
            raise self.damaged(f"no tensor starts at byte {at}")
        if any(reserved):
            raise self.damaged(f"the record at byte {at} says more than is known of it")
        if BLOB_TYPES.get(code) != dtype:
            raise self.damaged(f"the tensor at byte {at} is {BLOB_TYPES.get(code, code)}, the program says {dtype}")
        bits = prod(sizes) * SUB_BYTE_BITS.get(dtype, 8 * np.dtype(NUMPY_TYPES.get(dtype, "u1")).itemsize)
        if size * 8 != bits + padding or padding > 7:
            raise self.damaged(
                f"the tensor at byte {at} has {size} bytes, {list(sizes)} of {dtype} need {-(-bits // 8)}"
            )
        if start % ALIGNMENT or start + size > len(self.data):
            raise self.damaged(f"the tensor at byte {at} ends at {start + size}, the file at {len(self.data)}")
        return from_bytes(self.data[start : start + size], dtype, sizes)


def from_bytes(data: Array, dtype: MilType, shape: tuple[int, ...]) -> Array:
    """Little-endian bytes as an array; integers below a byte are unpacked, one a byte, lowest bits first."""
    bits = SUB_BYTE_BITS.get(dtype)
    if bits is None:
        return data.view(NUMPY_TYPES[dtype]).reshape(shape)
    return unpack(data, bits, prod(shape), signed=dtype.startswith("int")).reshape(shape)


def unpack(data: Array, bits: int, count: int, signed: bool = False) -> Array:
    """`count` integers of `bits` bits each from consecutive bytes, lowest bits first."""
    flat = np.unpackbits(data.view(np.uint8), count=bits * count, bitorder="little").reshape(count, bits)
    numbers = flat @ (1 << np.arange(bits, dtype=np.uint8))
    if not signed:
        return numbers.astype(np.uint8)
    return np.where(numbers >= 1 << bits - 1, numbers.astype(np.int16) - (1 << bits), numbers).astype(np.int8)
