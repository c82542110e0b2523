"""Branches, loops, lists, states, and the classifier's end."""

from __future__ import annotations

import torch
from torch import Tensor

from acmix.targets.mil.call import Call, StateReference, TensorList, Value, operator
from acmix.targets.mil.program import DATA_TYPES, TensorType, TextValue

MAX_ITERATIONS = 100_000
MAX_ITEMS = 1_000_000


@operator("cond")
def cond(call: Call) -> tuple[Value, ...]:
    """The first block's outputs where pred is true, else the second's."""
    if len(call.blocks) != 2:
        raise call.refuse(f"it has {len(call.blocks)} blocks in place of two")
    return tuple(call.blocks[0 if call.flag("pred") else 1]([]))


@operator("while_loop")
def while_loop(call: Call) -> tuple[Value, ...]:
    """The second block again and again on its own outputs, while the first is true of them."""
    if len(call.blocks) != 2:
        raise call.refuse(f"it has {len(call.blocks)} blocks in place of two")
    values = list(call.values("loop_vars"))
    for _ in range(MAX_ITERATIONS):
        (goes_on,) = call.blocks[0](values)
        if not isinstance(goes_on, Tensor) or goes_on.numel() != 1:
            raise call.refuse("its condition is not one boolean")
        if not goes_on:
            return tuple(values)
        values = call.blocks[1](values)
    raise call.refuse(f"it did not end within {MAX_ITERATIONS} rounds")


@operator("make_list")
def make_list(call: Call) -> TensorList:
    """A list of tensors of one shape and type, empty places at first.  Sizes that are names are not known yet."""
    dtype = next((one for one in DATA_TYPES.values() if one == call.word("dtype", "fp32")), None)
    if dtype is None:
        raise call.refuse(f"there is no type '{call.word('dtype')}'")
    shape = [
        int(size.item()) if isinstance(size, Tensor) and size.numel() == 1 else None
        for size in call.operands.get("elem_shape", ())
    ]
    return TensorList((None,) * _length(call, call.integer("init_length", 1)), TensorType(dtype, tuple(shape)))


def _length(call: Call, length: int) -> int:
    if not 0 <= length <= MAX_ITEMS:
        raise call.refuse(f"a list of {length} items is out of question")
    return length


def _list(call: Call) -> TensorList:
    value = call.value("ls")
    if not isinstance(value, TensorList):
        raise call.refuse("its operand 'ls' is no list")
    return value


def _item(call: Call, values: TensorList, index: int) -> Tensor:
    """An item, zeros where nothing was written."""
    if not 0 <= index < len(values.items):
        raise call.refuse(f"there is no item {index} in a list of {len(values.items)}")
    item = values.items[index]
    if item is not None:
        return item
    shape = values.element.shape
    if shape is None or None in shape:
        raise call.refuse(f"item {index} was never written, and its shape is not known")
    zeros = torch.zeros(call.reserve([axis or 0 for axis in shape]), dtype=torch.int64)
    if values.element.dtype == "bool":
        return zeros.bool()
    return zeros.to(call.arithmetic.dtype) if values.element.dtype.startswith("fp") else zeros


def _written(call: Call, values: TensorList, index: int, item: Tensor) -> TensorList:
    if index < 0:
        raise call.refuse(f"there is no item {index} in a list")
    items = [*values.items, *[None] * (_length(call, index + 1) - len(values.items))]
    items[index] = item
    return TensorList(tuple(items), values.element)


@operator("list_length")
def list_length(call: Call) -> Tensor:
    """How many items a list has."""
    return torch.tensor(len(_list(call).items))


@operator("list_read")
def list_read(call: Call) -> Tensor:
    """One item."""
    return _item(call, _list(call), call.integer("index"))


@operator("list_gather")
def list_gather(call: Call) -> Tensor:
    """Several items, stacked."""
    items = [_item(call, _list(call), index) for index in call.integers("indices")]
    call.reserve((len(items), *(items[0].shape if items else ())))
    return torch.stack(items)


@operator("list_write")
def list_write(call: Call) -> TensorList:
    """The list with one item written; it grows to hold it."""
    return _written(call, _list(call), call.integer("index"), call.tensor("value"))


@operator("list_scatter")
def list_scatter(call: Call) -> TensorList:
    """The list with the slices of a tensor written, one for each index; it grows to hold them."""
    values = _list(call)
    for index, item in zip(call.integers("indices"), call.tensor("value").unbind(), strict=True):
        values = _written(call, values, index, item)
    return values


def _state(call: Call, operand: str) -> str:
    value = call.value(operand)
    if not isinstance(value, StateReference) or value.name not in call.states:
        raise call.refuse(f"its operand '{operand}' is no state of this model")
    return value.name


@operator("read_state")
def read_state(call: Call) -> Tensor:
    """A copy of the state."""
    return call.states[_state(call, "input")].clone()


@operator("write_state")
def write_state(call: Call) -> tuple[()]:
    """Replace the state."""
    _replace(call, _state(call, "input"), call.tensor("data"))
    return ()


@operator("coreml_update_state")
def coreml_update_state(call: Call) -> Tensor:
    """Replace the state and return it."""
    value = call.tensor("value")
    _replace(call, _state(call, "state"), value)
    return value.clone()


def _replace(call: Call, name: str, value: Tensor) -> None:
    if value.shape != call.states[name].shape:
        raise call.refuse(f"the state '{name}' is {list(call.states[name].shape)}, not {list(value.shape)}")
    call.states[name] = value.clone()


@operator("classify")
def classify(call: Call) -> tuple[TextValue, dict[str | int, float]]:
    """The class with the highest probability, and every class with its own."""
    classes, probabilities = call.value("classes"), call.tensor("probabilities").reshape(-1)
    if not isinstance(classes, TextValue) or len(classes.texts) != probabilities.numel():
        raise call.refuse(f"there are {probabilities.numel()} probabilities for another number of classes")
    best = classes.texts[int(probabilities.argmax())]
    return TextValue((best,)), dict(zip(classes.texts, probabilities.tolist(), strict=True))
