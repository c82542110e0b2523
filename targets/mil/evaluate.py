"""Running prepared blocks: each operation in turn, its results in the types that the file declares."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from acmix.targets.mil.arithmetic import Arithmetic
from acmix.targets.mil.call import Call, Implementation, RunBlock, TensorList, Value
from acmix.targets.mil.program import FLOATS, ListType, NamedType, Operation, TensorType, TextValue, ValueType
from acmix.targets.mil.work import OPERATION_COST, Work, cost_of
from acmix.toolkit.errors import UsageError

# coremltools declares one crop for each image here, whatever the boxes say.
UNRELIABLE_SHAPES = frozenset({"crop_resize"})
TEXT = frozenset({"string", "int64"})


@dataclass(frozen=True)
class Step:
    """One operation, ready to run.  literals: operands in the operation itself; last_uses: names free afterwards."""

    operation: Operation
    implementation: Implementation
    literals: Mapping[tuple[str, int], Value]
    types: Mapping[str, tuple[ValueType, ...]]
    blocks: tuple[ReadyBlock, ...]
    last_uses: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadyBlock:
    """A block whose constants are tensors."""

    inputs: tuple[NamedType, ...]
    constants: Mapping[str, Value]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Session:
    """What one prediction shares: the function's opset, the arithmetic, the states that it writes.

    work: what the loop that runs has cost; None outside of loops, where the program itself bounds the work.
    """

    opset: int
    arithmetic: Arithmetic
    states: MutableMapping[str, Tensor] = field(default_factory=dict)
    work: Work | None = None


@dataclass(frozen=True)
class Scope:
    """Values by name: those of a block, its constants, then the surrounding block's."""

    values: dict[str, Value]
    constants: Mapping[str, Value]
    outer: Scope | None = None

    def __getitem__(self, name: str) -> Value:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            if name in scope.constants:
                return scope.constants[name]
            scope = scope.outer
        raise UsageError(f"the program reads '{name}' before it has a value: export it again.")


def run_block(block: ReadyBlock, arguments: Sequence[Value], outer: Scope | None, session: Session) -> list[Value]:
    """The block's outputs; every value is dropped when its last reader is done."""
    if session.work is not None:
        session.work.charge(OPERATION_COST)
    names = (given.name for given in block.inputs)
    scope = Scope(dict(zip(names, arguments, strict=True)), block.constants, outer)
    for step in block.steps:
        for named, value in zip(step.operation.outputs, apply(step, scope, session), strict=True):
            scope.values[named.name] = value
        for name in step.last_uses:
            scope.values.pop(name, None)
    return [scope[name] for name in block.outputs]


def apply(step: Step, scope: Scope, session: Session) -> list[Value]:
    """One operation's results, checked and rounded to their declared types.  Raises UsageError."""
    operation = step.operation
    operands = {
        key: tuple(
            scope[binding] if isinstance(binding, str) else step.literals[key, index]
            for index, binding in enumerate(bindings)
        )
        for key, bindings in (*operation.inputs.items(), *((k, (v,)) for k, v in operation.attributes.items()))
    }
    inner = replace(session, work=session.work or Work()) if operation.kind == "while_loop" else session
    call = Call(
        operation.kind,
        operation.name,
        session.opset,
        session.arithmetic,
        operands,
        step.types,
        operation.outputs,
        tuple(_runner(block, scope, inner) for block in step.blocks),
        session.states,
    )
    try:
        results = step.implementation(call)
        values = results if isinstance(results, tuple) else (results,)
        if len(values) < len(operation.outputs):
            raise call.refuse(f"it has {len(values)} results and {len(operation.outputs)} outputs are declared")
        if session.work is not None:
            session.work.charge(cost_of(operation.kind, itertools.chain(*operands.values()), values))
        return [_declared(call, value, named) for value, named in zip(values, operation.outputs, strict=False)]
    except UsageError:
        raise
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise call.refuse(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _runner(block: ReadyBlock, scope: Scope, session: Session) -> RunBlock:
    return lambda arguments: run_block(block, arguments, scope, session)


def _declared(call: Call, value: Value, named: NamedType) -> Value:
    """The result in its declared type; raises UsageError where the program is mistyped."""
    kind = named.type
    if not isinstance(value, Tensor):
        agrees = isinstance(kind, ListType) if isinstance(value, TensorList) else not isinstance(kind, ListType)
        if not agrees or (isinstance(value, TextValue) and isinstance(kind, TensorType) and kind.dtype not in TEXT):
            raise call.refuse(f"the program declares another type for '{named.name}'")
        return value
    if not isinstance(kind, TensorType):
        raise call.refuse(f"the program declares no tensor for '{named.name}'")
    if _category(value) != _declared_category(kind):
        raise call.refuse(f"the program declares {kind.dtype} for '{named.name}', which is {value.dtype}")
    if call.kind not in UNRELIABLE_SHAPES and not fits(value.shape, kind.shape):
        raise call.refuse(f"the program declares {kind.shape} for '{named.name}', which is {list(value.shape)}")
    return call.arithmetic.store(value, kind.dtype)


def _category(value: Tensor) -> str:
    if value.dtype == torch.bool:
        return "bool"
    return "float" if value.is_floating_point() else "integer"


def _declared_category(kind: TensorType) -> str:
    if kind.dtype in FLOATS:
        return "float"
    return kind.dtype if kind.dtype in ("bool", "string") else "integer"


def fits(shape: Sequence[int], declared: tuple[int | None, ...] | None) -> bool:
    """Whether a shape is what the program declares."""
    if declared is None:
        return True
    return len(shape) == len(declared) and all(
        axis is None or size == axis for size, axis in zip(shape, declared, strict=True)
    )
