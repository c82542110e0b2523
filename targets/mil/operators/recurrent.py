"""Recurrent layers: x [s, b, I], hidden states [b, H]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from acmix.targets.mil.call import Call, operator

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    # There is no operand for its alpha and beta: coremltools' test_recurrent takes both as 1.
    "scaled_tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "sigmoid_hard": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "relu": torch.relu,
    "linear": lambda x: x,
}


def _activation(call: Call, name: str, default: str) -> Callable[[Tensor], Tensor]:
    return ACTIVATIONS[call.choice(name, tuple(ACTIVATIONS), default)]


def _steps(call: Call) -> Tensor:
    """x in the order of processing."""
    x = call.tensor("x")
    if x.dim() != 3 or x.shape[0] == 0:
        raise call.refuse(f"x has the shape {list(x.shape)} in place of [steps, batch, features]")
    return x.flip(0) if call.choice("direction", ("forward", "reverse"), "forward") == "reverse" else x


def _sequence(call: Call, outputs: list[Tensor]) -> Tensor:
    """Every step's output in the order of processing, or the last one alone."""
    return torch.stack(outputs) if call.flag("output_sequence") else outputs[-1][None]


@operator("rnn")
def rnn(call: Call) -> tuple[Tensor, Tensor]:
    """h = activation(W_ih x + W_hh h + bias)."""
    act, h = _activation(call, "activation", "tanh"), call.tensor("initial_h")
    w_ih, w_hh = call.tensor("weight_ih").T, call.tensor("weight_hh").T
    bias = call.tensor("bias") if "bias" in call else h.new_zeros(())
    outputs = []
    for x in _steps(call):
        h = act(call.matmul(x, w_ih) + call.matmul(h, w_hh) + bias)
        outputs.append(h)
    return _sequence(call, outputs), h


@operator("gru")
def gru(call: Call) -> tuple[Tensor, Tensor]:
    """Gates in the order reset, output, update; h = (1 - z) o + z h.

    The reset gate multiplies h before W_ho, or, with reset_after (iOS 18), W_ho h plus its bias.
    """
    gate, act = _activation(call, "recurrent_activation", "sigmoid"), _activation(call, "activation", "tanh")
    h, w_ih = call.tensor("initial_h"), call.tensor("weight_ih").T
    hidden = h.shape[-1]
    w_hr, w_ho, w_hz = (part.T for part in call.tensor("weight_hh").chunk(3))
    zeros = h.new_zeros(3 * hidden)
    b_r, b_o, b_z = (call.tensor("bias") if "bias" in call else zeros).chunk(3)
    input_bias = call.tensor("input_bias") if "input_bias" in call else zeros
    outputs = []
    for x in _steps(call):
        in_r, in_o, in_z = (call.matmul(x, w_ih) + input_bias).chunk(3, -1)
        r = gate(in_r + call.matmul(h, w_hr) + b_r)
        z = gate(in_z + call.matmul(h, w_hz) + b_z)
        recurrent = r * (call.matmul(h, w_ho) + b_o) if call.flag("reset_after") else call.matmul(r * h, w_ho) + b_o
        h = (1 - z) * act(in_o + recurrent) + z * h
        outputs.append(h)
    return _sequence(call, outputs), h


@operator("lstm")
def lstm(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Gates in the order input, forget, output, cell; of both directions the results are side by side."""
    if call.choice("direction", ("forward", "reverse", "bidirectional"), "forward") != "bidirectional":
        outputs, h, c = _lstm_pass(call, "", _steps(call), call.tensor("initial_h"), call.tensor("initial_c"))
        return _sequence(call, outputs), h, c
    x = call.tensor("x")
    first_h, second_h = call.tensor("initial_h").chunk(2, -1)
    first_c, second_c = call.tensor("initial_c").chunk(2, -1)
    ahead, ahead_h, ahead_c = _lstm_pass(call, "", x, first_h, first_c)
    back, back_h, back_c = _lstm_pass(call, "_back", x.flip(0), second_h, second_c)
    if call.flag("output_sequence"):
        sequence = torch.cat([torch.stack(ahead), torch.stack(back).flip(0)], -1)
    else:
        sequence = torch.cat([ahead[-1], back[-1]], -1)[None]
    return sequence, torch.cat([ahead_h, back_h], -1), torch.cat([ahead_c, back_c], -1)


def _lstm_pass(call: Call, suffix: str, steps: Tensor, h: Tensor, c: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    gate, cell = _activation(call, "recurrent_activation", "sigmoid"), _activation(call, "cell_activation", "tanh")
    act, hidden = _activation(call, "activation", "tanh"), h.shape[-1]
    w_ih, w_hh = call.tensor(f"weight_ih{suffix}").T, call.tensor(f"weight_hh{suffix}").T
    bias = call.tensor(f"bias{suffix}") if f"bias{suffix}" in call else h.new_zeros(())
    peephole = call.tensor(f"peephole{suffix}") if f"peephole{suffix}" in call else h.new_zeros(3 * hidden)
    p_i, p_f, p_o = peephole.chunk(3)
    clip = call.number("clip") if "clip" in call else torch.inf
    outputs = []
    for x in steps:
        in_i, in_f, in_o, in_z = (call.matmul(x, w_ih) + call.matmul(h, w_hh) + bias).chunk(4, -1)
        i, f = gate(in_i + p_i * c), gate(in_f + p_f * c)
        c = torch.clamp(f * c + i * cell(in_z), -clip, clip)
        h = gate(in_o + p_o * c) * act(c)
        outputs.append(h)
    return outputs, h, c
