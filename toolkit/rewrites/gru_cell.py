"""A GRU of few steps, unrolled to linear layers and gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.rewrites._calls import arguments, is_floating, parts
from acmix.toolkit.rewrites._graph import Emit, calls, emit_before, remove_unused, replace, shape_of
from acmix.toolkit.rewrites._memory import writers

ATEN = torch.ops.aten
MOST_STEPS = 8
"""A longer sequence would be a file full of copies of one cell."""


@dataclass(frozen=True)
class GruCell:
    """Replace a GRU cell, or a GRU over at most 8 steps, by its formula.

    1. x and the state have fixed shapes; no dropout is active. Any number of layers, either order of the axes,
       one direction or both.
    2. With rows r, z, n of the weights: r and z are sigmoids of W x + b + U h + c,
       n = tanh(W x + b + r (U h + c)), and h' = n + z (h - n). A state of zeros needs no U h.

        gru_cell(x, h, W, U, b, c)   becomes   linear(x, W, b), linear(h, U, c), slices, sigmoid, tanh, mul, add

    coremltools 9 refuses a GRU cell; ExecuTorch splits one by split_with_sizes_copy and squeeze_copy, which leave
    XNNPACK's delegate (3 pieces for one step, 12 for a bidirectional one of 4). ONNX has an operator for it.
    """

    name: str = "gru_cell"
    claim: str = "exact"
    targets: tuple[str, ...] = ("coreml", "executorch", "tflite")

    def apply(self, program: ExportedProgram) -> int:
        """Replace wherever the precondition holds; how often it did."""
        times = sum(_replace_cell(program, node) for node in calls(program, ATEN.gru_cell.default))
        times += sum(_replace_sequence(program, node) for node in calls(program, ATEN.gru.input))
        if times:
            remove_unused(program)
        return times


@dataclass(frozen=True)
class Weights:
    """One layer and direction: rows in the order r, z, n.  input: [3 H, I].  state: [3 H, H]."""

    input: Node
    state: Node
    input_bias: Node | None
    state_bias: Node | None


def _replace_cell(program: ExportedProgram, cell: Node) -> bool:
    given = arguments(cell)
    x, state = given["input"], given["hx"]
    shape = shape_of(x)
    if shape is None or len(shape) != 2 or shape_of(state) is None or not is_floating(x):
        return False
    emit = emit_before(program, cell)
    weights = Weights(given["w_ih"], given["w_hh"], given["b_ih"], given["b_hh"])
    projected = emit(ATEN.linear.default, x, weights.input, weights.input_bias)
    replace(program, cell, _step(emit, projected, _given_state(state), weights))
    return True


def _step(emit: Emit, projected: Node, state: Node | None, weights: Weights) -> Node:
    """The next state, [N, H], from W x + b, [N, 3 H]; a state of None is all zeros."""
    size = int(projected.meta["val"].shape[1]) // 3
    reset, update, new = (_thirds(emit, projected, 1, size, i) for i in range(3))
    remembered, along = weights.state_bias, 0
    if state is not None:
        remembered, along = emit(ATEN.linear.default, state, weights.state, weights.state_bias), 1
    if remembered is not None:
        reset = emit(ATEN.add.Tensor, reset, _thirds(emit, remembered, along, size, 0))
        update = emit(ATEN.add.Tensor, update, _thirds(emit, remembered, along, size, 1))
        recalled = _thirds(emit, remembered, along, size, 2)
        new = emit(ATEN.add.Tensor, new, emit(ATEN.mul.Tensor, emit(ATEN.sigmoid.default, reset), recalled))
    candidate, kept = emit(ATEN.tanh.default, new), emit(ATEN.sigmoid.default, update)
    if state is None:
        return emit(ATEN.sub.Tensor, candidate, emit(ATEN.mul.Tensor, kept, candidate))
    change = emit(ATEN.mul.Tensor, kept, emit(ATEN.sub.Tensor, state, candidate))
    return emit(ATEN.add.Tensor, candidate, change)


def _thirds(emit: Emit, rows: Node, along: int, size: int, index: int) -> Node:
    return emit(ATEN.slice.Tensor, rows, along, size * index, size * (index + 1))


def _given_state(state: Node) -> Node | None:
    """The state, or None when it is made of zeros: torch makes one where the caller gives none."""
    return None if state.target is ATEN.zeros.default and not writers(state) else state


def _replace_sequence(program: ExportedProgram, gru: Node) -> bool:
    given = arguments(gru)
    shape, readers = shape_of(given["input"]), parts(gru)
    if shape is None or len(shape) != 3 or shape_of(given["hx"]) is None or readers is None:
        return False
    time = 1 if given["batch_first"] else 0
    if shape[time] > MOST_STEPS or (given["train"] and given["dropout"]) or not is_floating(given["input"]):
        return False
    outputs = _unrolled(emit_before(program, gru), given, shape[time], time)
    for part, nodes in readers.items():
        for node in nodes:
            replace(program, node, outputs[part])
    return True


def _unrolled(emit: Emit, given: dict[str, Any], steps: int, time: int) -> tuple[Node, Node]:
    """Every step's state of the last layer, and the last state of each layer and direction."""
    directions = 2 if given["bidirectional"] else 1
    weights = _weights(given["params"], given["has_biases"])
    sequence: Node = given["input"]
    last: list[Node] = []
    for layer in range(given["num_layers"]):
        tracks: list[list[Node]] = []
        for direction in range(directions):
            index = layer * directions + direction
            first = _given_state(given["hx"])
            state = None if first is None else _reshaped(emit, _slice(emit, first, 0, index), 0)
            track = _track(emit, sequence, state, weights[index], time, range(steps)[:: -1 if direction else 1])
            last.append(track[-1])
            tracks.append(track[::-1] if direction else track)
        joined = [
            emit(ATEN.cat.default, list(pair), 1) if len(pair) > 1 else pair[0] for pair in zip(*tracks, strict=True)
        ]
        sequence = _stacked(emit, joined, time)
    return sequence, _stacked(emit, last, 0)


def _track(emit: Emit, sequence: Node, state: Node | None, weights: Weights, time: int, order: range) -> list[Node]:
    """The state after each step, in the order of the steps taken."""
    projected = emit(ATEN.linear.default, sequence, weights.input, weights.input_bias)
    track: list[Node] = []
    for step in order:
        state = _step(emit, _reshaped(emit, _slice(emit, projected, time, step), time), state, weights)
        track.append(state)
    return track


def _weights(parameters: list[Node], has_biases: bool) -> list[Weights]:
    each = 4 if has_biases else 2
    rows = [parameters[i : i + each] for i in range(0, len(parameters), each)]
    return [Weights(row[0], row[1], *(row[2:] or (None, None))) for row in rows]


def _slice(emit: Emit, x: Node, along: int, index: int) -> Node:
    return x if x.meta["val"].shape[along] == 1 else emit(ATEN.slice.Tensor, x, along, index, index + 1)


def _reshaped(emit: Emit, x: Node, dropped: int) -> Node:
    shape = list(x.meta["val"].shape)
    return emit(ATEN.reshape.default, x, shape[:dropped] + shape[dropped + 1 :])


def _stacked(emit: Emit, rows: list[Node], along: int) -> Node:
    """Tensors of [N, H] stacked along a new axis."""
    shape = list(rows[0].meta["val"].shape)
    raised = [emit(ATEN.reshape.default, row, [*shape[:along], 1, *shape[along:]]) for row in rows]
    return raised[0] if len(raised) == 1 else emit(ATEN.cat.default, raised, along)


REWRITE = GruCell()
