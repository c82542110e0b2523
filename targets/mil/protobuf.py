"""Protocol buffers without a library: one message of a Core ML specification as nested dicts.

The wire format is public (protobuf.dev, "Encoding"); which fields there are is in `schema`. Damage of any kind
raises WireError and nothing else: lengths are checked before anything is read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_DEPTH = 64
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
PACKED: dict[str, np.dtype[np.generic]] = {"float": np.dtype("<f4"), "double": np.dtype("<f8")}
FIXED = {"float": ("<f", FIXED32), "double": ("<d", FIXED64)}

Message = dict[str, Any]


class WireError(ValueError):
    """Bytes that are no such message."""


@dataclass(frozen=True)
class Field:
    """kind: int (signed), uint, bool, float, double, string, bytes, or the name of a message.

    A map is a repeated field whose kind is the name of an entry message of `key` and `value`.
    """

    name: str
    kind: str
    repeated: bool = False
    is_map: bool = False


Schema = dict[str, dict[int, Field]]


def decode(data: bytes, schema: Schema, message: str) -> Message:
    """One message; fields that are absent on the wire are absent here.  Raises WireError."""
    try:
        return _message(data, 0, len(data), schema, message, 0)
    except (UnicodeDecodeError, struct.error, IndexError) as error:
        raise WireError(f"{message}: {error}") from error


def _message(data: bytes, at: int, end: int, schema: Schema, message: str, depth: int) -> Message:
    if depth > MAX_DEPTH:
        raise WireError(f"messages are nested more than {MAX_DEPTH} deep")
    fields, result = schema[message], Message()
    while at < end:
        key, at = _varint(data, at, end)
        wire, field = key & 7, fields.get(key >> 3)
        start, stop, at = _extent(data, at, end, wire)
        if field is None:
            continue
        values = _values(data, start, stop, wire, field, schema, depth)
        if field.is_map:
            entry = values[0]
            result.setdefault(field.name, {})[entry.get("key", "")] = entry.get("value", {})
        elif field.repeated:
            _extend(result, field, values)
        else:
            result[field.name] = values[0]
    return result


def _extend(result: Message, field: Field, values: Any) -> None:
    known = result.get(field.name)
    if known is None:
        result[field.name] = values
    elif isinstance(known, np.ndarray) or isinstance(values, np.ndarray):
        result[field.name] = np.concatenate([np.asarray(known), np.asarray(values)])
    else:
        known.extend(values)


def _extent(data: bytes, at: int, end: int, wire: int) -> tuple[int, int, int]:
    """Where the value starts and stops, and where the next field starts."""
    if wire == VARINT:
        _, after = _varint(data, at, end)
        return at, after, after
    if wire == LENGTH:
        length, at = _varint(data, at, end)
    elif wire in (FIXED32, FIXED64):
        length = 4 if wire == FIXED32 else 8
    else:
        raise WireError(f"wire type {wire} at byte {at}")
    if length > end - at:
        raise WireError(f"a field at byte {at} is {length} bytes long and {end - at} are left")
    return at, at + length, at + length


def _values(data: bytes, start: int, stop: int, wire: int, field: Field, schema: Schema, depth: int) -> Any:
    """The values of one occurrence: several when packed."""
    kind = field.kind
    if kind in schema:
        _expect(wire == LENGTH, field)
        return [_message(data, start, stop, schema, kind, depth + 1)]
    if kind in ("string", "bytes"):
        _expect(wire == LENGTH, field)
        raw = data[start:stop]
        return [raw.decode("utf-8") if kind == "string" else raw]
    if kind in PACKED:
        if wire == LENGTH and field.repeated:
            _expect((stop - start) % PACKED[kind].itemsize == 0, field)
            return np.frombuffer(data, PACKED[kind], (stop - start) // PACKED[kind].itemsize, start)
        code, fixed = FIXED[kind]
        _expect(wire == fixed, field)
        return list(struct.unpack_from(code, data, start))
    _expect(wire == VARINT or (wire == LENGTH and field.repeated), field)
    return _integers(data, start, stop, kind)


def _expect(holds: bool, field: Field) -> None:
    if not holds:
        raise WireError(f"field '{field.name}' has the wrong wire type or length")


def _integers(data: bytes, start: int, stop: int, kind: str) -> list[Any]:
    values: list[Any] = []
    while start < stop:
        number, start = _varint(data, start, stop)
        if kind == "bool":
            values.append(number != 0)
        else:
            values.append(number - (1 << 64) if kind == "int" and number >> 63 else number)
    return values


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    number = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            break
    raise WireError(f"a number that ends before byte {end} does not end")
