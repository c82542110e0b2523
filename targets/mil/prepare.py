"""Before a program runs: every operator known, every name defined before it is read, every constant a tensor."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

import acmix.targets.mil.operators  # noqa: F401  (fills OPERATORS)
from acmix.targets.mil.arithmetic import Arithmetic
from acmix.targets.mil.call import OPERATORS, Value
from acmix.targets.mil.evaluate import ReadyBlock, Scope, Session, Step, apply
from acmix.targets.mil.program import (
    ArrayValue,
    Block,
    Function,
    Literal_,
    Operation,
    Program,
    StateType,
    TensorType,
    TextValue,
    ValueType,
)
from acmix.targets.mil.weights import WeightFile
from acmix.toolkit.errors import UsageError

MODEL_PATH = "@model_path/"
SEALED_FILE = "weights/weight.bin"
ADVICE = "the package is damaged or was not written by coremltools: export it again."


@dataclass
class Constants:
    """Turns literals into values; a tensor of the weight file is read and converted once, whoever shares it."""

    folder: Path
    arithmetic: Arithmetic
    fingerprint: str = ""
    files: dict[str, WeightFile] = field(default_factory=dict)
    blobs: dict[tuple[str, int, TensorType], Tensor] = field(default_factory=dict)

    def value(self, literal: Literal_) -> Value:
        if isinstance(literal, TextValue):
            return literal
        if isinstance(literal, ArrayValue):
            return self.arithmetic.load(literal.array, literal.type.dtype)
        key = (literal.file, literal.offset, literal.type)
        if key not in self.blobs:
            self.blobs[key] = self.arithmetic.load(self.file(literal.file).read(literal), literal.type.dtype)
        return self.blobs[key]

    def file(self, name: str) -> WeightFile:
        if name not in self.files:
            path = self.folder / name.removeprefix(MODEL_PATH)
            if not name.startswith(MODEL_PATH) or not _is_inside(path, self.folder):
                raise UsageError(f"the program names the weights {name!r}, outside its package: {ADVICE}")
            expected = self.fingerprint if name == MODEL_PATH + SEALED_FILE else ""
            self.files[name] = WeightFile(path, name.removeprefix(MODEL_PATH), expected)
        return self.files[name]


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):
        return False


def prepare(program: Program, arithmetic: Arithmetic) -> dict[str, ReadyBlock]:
    """Every function, ready to run.  Raises UsageError for a program that could not."""
    _refuse_unknown(program)
    constants = Constants(program.folder, arithmetic, program.fingerprint)
    ready = {}
    for name, function in program.functions.items():
        _check_interface(function)
        types = {given.name: given.type for given in function.inputs}
        block = replace(function.block, inputs=function.inputs)
        ready[name] = _ready(block, types, None, constants, Session(function.opset, arithmetic))
    return ready


def operations_of(block: Block) -> Iterator[Operation]:
    """Every operation in order, those of nested blocks after the one that holds them."""
    for operation in block.operations:
        yield operation
        for nested in operation.blocks:
            yield from operations_of(nested)


def _refuse_unknown(program: Program) -> None:
    blocks = (function.block for function in program.functions.values())
    kinds = Counter(operation.kind for block in blocks for operation in operations_of(block))
    unknown = [
        f"'{kind}' ({count} times)" for kind, count in kinds.items() if kind not in OPERATORS and kind != "const"
    ]
    if unknown:
        raise UsageError(
            f"the reference evaluator does not know {len(unknown)} of the program's operators: "
            f"{', '.join(sorted(unknown))}. It knows {len(OPERATORS)}; run this package on a Mac."
        )


def _check_interface(function: Function) -> None:
    states = {given.name: given.type.element for given in function.inputs if isinstance(given.type, StateType)}
    fed = sorted(given.name for given in function.inputs if given.name not in states)
    if fed != sorted({one.name for one in function.interface.inputs}):
        raise UsageError(f"the inputs of function '{function.name}' are not those it describes: {ADVICE}")
    described = {one.name: one.shape for one in function.interface.states}
    if {name: element.shape for name, element in states.items()} != described:
        raise UsageError(f"the states of function '{function.name}' are not those it describes: {ADVICE}")
    if missing := {one.name for one in function.interface.outputs} - set(function.block.outputs):
        raise UsageError(f"function '{function.name}' does not compute its outputs {sorted(missing)}: {ADVICE}")


def _ready(
    block: Block, types: Mapping[str, ValueType], outer: Scope | None, constants: Constants, session: Session
) -> ReadyBlock:
    known: ChainMap[str, ValueType] = ChainMap({given.name: given.type for given in block.inputs}, dict(types))
    folded: dict[str, Value] = {}
    scope = Scope({}, folded, outer)
    steps = []
    for operation in block.operations:
        if operation.kind == "const":
            folded.update(_constant(operation, constants))
        else:
            _check_order(block, operation, known)
            step = _step(operation, known, scope, constants, session)
            if operation.kind.startswith("constexpr_"):
                names = [named.name for named in operation.outputs]
                folded.update(zip(names, apply(step, scope, session), strict=True))
            else:
                steps.append(step)
        _define(operation, known)
    for name in block.outputs:
        if name not in known:
            raise UsageError(f"the program returns '{name}', which it never computes: {ADVICE}")
    return ReadyBlock(block.inputs, folded, tuple(_with_last_uses(steps, block)), block.outputs)


def _check_order(block: Block, operation: Operation, known: Mapping[str, ValueType]) -> None:
    """Refuse an operation that reads what is not there yet, saying whether it comes later."""
    for name in operation.names():
        if name not in known:
            made = {named.name for one in block.operations for named in one.outputs}
            why = "before it is computed: the program is cyclic or out of order" if name in made else "which is nowhere"
            raise UsageError(f"operation '{operation.name}' ({operation.kind}) reads '{name}' {why}; {ADVICE}")


def _define(operation: Operation, known: ChainMap[str, ValueType]) -> None:
    for named in operation.outputs:
        if named.name in known.maps[0]:
            raise UsageError(f"the program computes '{named.name}' twice: {ADVICE}")
        known[named.name] = named.type


def _constant(operation: Operation, constants: Constants) -> dict[str, Value]:
    literal = operation.attributes.get("val")
    if literal is None or len(operation.outputs) != 1:
        raise UsageError(f"the constant '{operation.name}' has no value: {ADVICE}")
    declared = operation.outputs[0].type
    if not isinstance(literal, TextValue) and literal.type != declared:
        raise UsageError(f"the constant '{operation.name}' is {literal.type}, declared as {declared}: {ADVICE}")
    return {operation.outputs[0].name: constants.value(literal)}


def _step(
    operation: Operation, known: Mapping[str, ValueType], scope: Scope, constants: Constants, session: Session
) -> Step:
    literals, types = {}, {}
    bindings = {**operation.inputs, **{key: (value,) for key, value in operation.attributes.items()}}
    for key, values in bindings.items():
        kinds = []
        for index, value in enumerate(values):
            if isinstance(value, str):
                kinds.append(known[value])
                continue
            literals[key, index] = constants.value(value)
            kinds.append(TensorType("string") if isinstance(value, TextValue) else value.type)
        types[key] = tuple(kinds)
    blocks = tuple(_ready(nested, known, scope, constants, session) for nested in operation.blocks)
    return Step(operation, OPERATORS[operation.kind], literals, types, blocks)


def _with_last_uses(steps: Iterable[Step], block: Block) -> list[Step]:
    """The steps, each with the names of this block that nobody reads after it."""
    alive = set(block.outputs)
    own = {given.name for given in block.inputs}
    done: list[Step] = []
    steps = list(steps)
    for step in steps:
        own |= {named.name for named in step.operation.outputs}
    for step in reversed(steps):
        touched = _reads(step.operation) | {named.name for named in step.operation.outputs}
        done.append(replace(step, last_uses=tuple(sorted((touched & own) - alive))))
        alive |= touched
    return done[::-1]


def _reads(operation: Operation) -> set[str]:
    names = set(operation.names())
    for nested in operation.blocks:
        names |= set(nested.outputs)
        for one in operations_of(nested):
            names |= set(one.names()) | {name for block in one.blocks for name in block.outputs}
    return names
