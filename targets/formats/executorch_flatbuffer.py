"""The few parts of the FlatBuffers format that reading a .pte file needs (flatbuffers.dev, internals)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import cast


def root(data: bytes) -> Table:
    """The root table of a FlatBuffer."""
    return Table(data, _unsigned(data, 0))


@dataclass(frozen=True)
class Table:
    """One table: `slot` is the number of a field in its schema, an absent field reads as 0 or empty.

    Raises struct.error or IndexError where an offset leaves the buffer.
    """

    data: bytes
    position: int

    def number(self, slot: int, form: str) -> int:
        """A scalar; form: its letter in the struct module (B, b, i, I, Q)."""
        at = self._field(slot)
        return int(struct.unpack_from(f"<{form}", self.data, at)[0]) if at else 0

    def table(self, slot: int) -> Table:
        """A table, or the value of a union."""
        at = self._field(slot)
        if not at:
            raise IndexError(f"field {slot} of the table at byte {self.position} is missing")
        return Table(self.data, at + _unsigned(self.data, at))

    def tables(self, slot: int) -> list[Table]:
        """A vector of tables."""
        start, length = self._vector(slot)
        positions = range(start, start + 4 * length, 4)
        return [Table(self.data, at + _unsigned(self.data, at)) for at in positions]

    def numbers(self, slot: int, form: str) -> list[int]:
        """A vector of scalars."""
        start, length = self._vector(slot)
        return [cast(int, number) for number in struct.unpack_from(f"<{length}{form}", self.data, start)]

    def string(self, slot: int) -> str:
        """A string."""
        start, length = self._vector(slot)
        return self.data[start : start + length].decode()

    def _field(self, slot: int) -> int:
        (back,) = struct.unpack_from("<i", self.data, self.position)
        vtable = self.position - back
        if not 0 <= vtable < len(self.data):
            raise IndexError(f"the table at byte {self.position} points outside the file")
        (size,) = struct.unpack_from("<H", self.data, vtable)
        if 4 + 2 * slot >= size:
            return 0
        (offset,) = struct.unpack_from("<H", self.data, vtable + 4 + 2 * slot)
        return self.position + offset if offset else 0

    def _vector(self, slot: int) -> tuple[int, int]:
        at = self._field(slot)
        if not at:
            return 0, 0
        start = at + _unsigned(self.data, at)
        length = _unsigned(self.data, start)
        if start + 4 + length > len(self.data):
            raise IndexError(f"the vector at byte {start} is longer than the file")
        return start + 4, length


def _unsigned(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])
