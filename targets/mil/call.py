"""What an operator's implementation is given, and the table of implementations.

An implementation is a function from a Call to its results, registered under MIL's name for the operator:

    @operator("relu")
    def relu(call: Call) -> Tensor:
        return torch.relu(call.tensor("x"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acmix.targets.mil.arithmetic import Arithmetic, half_matmul, half_reduce
from acmix.targets.mil.program import NamedType, StateType, TensorType, TextValue, ValueType, elements_of
from acmix.toolkit.errors import UsageError


@dataclass(frozen=True)
class TensorList:
    """MIL's list: items that were never written are None.  element: their declared type."""

    items: tuple[Tensor | None, ...]
    element: TensorType


@dataclass(frozen=True)
class StateReference:
    """A state as an operand: its name."""

    name: str


Value = Tensor | TextValue | TensorList | StateReference | dict[str | int, float]
Results = Value | tuple[Value, ...]
RunBlock = Callable[[Sequence[Value]], list[Value]]


@dataclass(frozen=True)
class Call:
    """One operation with its operands.  opset: 15 to 18, for the iOS version whose rules hold.

    types: the declared type of every operand.  blocks: the nested blocks, ready to run.  states: of the prediction.
    """

    kind: str
    name: str
    opset: int
    arithmetic: Arithmetic
    operands: Mapping[str, tuple[Value, ...]]
    types: Mapping[str, tuple[ValueType, ...]]
    outputs: tuple[NamedType, ...]
    blocks: tuple[RunBlock, ...]
    states: MutableMapping[str, Tensor]

    def __contains__(self, name: str) -> bool:
        return bool(self.operands.get(name))

    def refuse(self, reason: str) -> UsageError:
        """The error that says what is wrong with this operation."""
        return UsageError(f"operator '{self.kind}' ('{self.name}') cannot be evaluated: {reason}.")

    def value(self, name: str) -> Value:
        if name not in self:
            raise self.refuse(f"its operand '{name}' is missing")
        return self.operands[name][0]

    def values(self, name: str) -> tuple[Value, ...]:
        """All values of a tuple operand."""
        self.value(name)
        return self.operands[name]

    def tensor(self, name: str) -> Tensor:
        value = self.value(name)
        if not isinstance(value, Tensor):
            raise self.refuse(f"its operand '{name}' is not a tensor")
        return value

    def tensors(self, name: str) -> list[Tensor]:
        return [value for value in self.values(name) if isinstance(value, Tensor)]

    def optional(self, name: str) -> Tensor | None:
        return self.tensor(name) if name in self else None

    def integer(self, name: str, default: int | None = None) -> int:
        if name not in self and default is not None:
            return default
        return int(self.scalar(name).item())

    def number(self, name: str, default: float | None = None) -> float:
        """A float operand; the default is rounded like the operand x, whose type it would have."""
        if name not in self and default is not None:
            return self.rounded(default)
        return float(self.scalar(name).item())

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.scalar(name).item()) if name in self else default

    def word(self, name: str, default: str | None = None) -> str:
        if name not in self and default is not None:
            return default
        value = self.value(name)
        if not isinstance(value, TextValue) or len(value.texts) != 1:
            raise self.refuse(f"its operand '{name}' is not a string")
        return str(value.texts[0])

    def choice(self, name: str, known: Sequence[str], default: str | None = None) -> str:
        """A string operand that must be one of some, in any case of letters."""
        word = self.word(name, default)
        match = next((one for one in known if one.lower() == word.lower()), None)
        if match is None:
            raise self.refuse(f"'{name}' is '{word}', known are {', '.join(known)}")
        return match

    def scalar(self, name: str) -> Tensor:
        tensor = self.tensor(name)
        if tensor.numel() != 1:
            raise self.refuse(f"its operand '{name}' has {tensor.numel()} elements in place of one")
        return tensor

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """A vector of integers, or a tuple of scalars."""
        if name not in self:
            if default is not None:
                return list(default)
            raise self.refuse(f"its operand '{name}' is missing")
        return [int(number) for tensor in self.tensors(name) for number in tensor.reshape(-1).tolist()]

    def axis(self, name: str, rank: int, default: int | None = None) -> int:
        """An axis from 0 to rank - 1; negative ones count from the end."""
        return self.positive(self.integer(name, default), rank)

    def positive(self, axis: int, rank: int) -> int:
        if not -rank <= axis < rank:
            raise self.refuse(f"there is no axis {axis} in a tensor of rank {rank}")
        return axis % rank

    def reserve(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape as a tuple, refused before it is allocated when nothing could hold it."""
        elements_of(tuple(shape), f"the result of '{self.name}'")
        return tuple(shape)

    def broadcast(self, *tensors: Tensor) -> None:
        """Refuse tensors that do not broadcast to one shape, or to one that nothing could hold."""
        self.reserve(np.broadcast_shapes(*(tuple(tensor.shape) for tensor in tensors)))

    def dtype_of(self, name: str) -> str:
        """The declared element type of an operand, MIL's name for it."""
        kinds = self.types.get(name, ())
        kind = kinds[0].element if kinds and isinstance(kinds[0], StateType) else kinds[0] if kinds else None
        return kind.dtype if isinstance(kind, TensorType) else ""

    def rounded(self, number: float) -> float:
        """A default value, in the type of the operand x."""
        if self.dtype_of("x") == "fp16" and self.arithmetic.precision == "declared":
            return torch.tensor(number).half().item()
        return number

    @property
    def halves(self) -> bool:
        """Whether sums are accumulated in float16 here."""
        kind = self.outputs[0].type if self.outputs else None
        return isinstance(kind, TensorType) and self.arithmetic.halves(kind.dtype)

    def sum(self, x: Tensor, axes: Sequence[int], keepdim: bool = False) -> Tensor:
        if not axes:
            return x
        return half_reduce(x, axes, keepdim) if self.halves else x.sum(dim=tuple(axes), keepdim=keepdim)

    def mean(self, x: Tensor, axes: Sequence[int], keepdim: bool = False) -> Tensor:
        count = 1
        for axis in axes:
            count *= x.shape[axis]
        return self.sum(x, axes, keepdim) / count

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        return half_matmul(x, y) if self.halves else torch.matmul(x, y)


Implementation = Callable[[Call], Results]
OPERATORS: dict[str, Implementation] = {}


def operator(*names: str) -> Callable[[Implementation], Implementation]:
    """Register a function under MIL's names of the operators that it implements."""

    def register(implementation: Implementation) -> Implementation:
        for name in names:
            assert name not in OPERATORS, name
            OPERATORS[name] = implementation
        return implementation

    return register
