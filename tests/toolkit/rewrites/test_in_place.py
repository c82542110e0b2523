"""In-place operators beside what the rules change: the rewritten program gives the eager numbers, inputs untouched."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.rewrite import rewrite

Network = Callable[[Tensor], tuple[Tensor, ...]]
CONV = nn.Conv2d(6, 3, 1).double().requires_grad_(False)
CELL = nn.GRUCell(6, 4).double().requires_grad_(False)
GRU = nn.GRU(6, 4, batch_first=True).double().requires_grad_(False)
INDEX = torch.tensor([1, 2, 3])


def shuffled(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)


def partitioned(x: Tensor) -> Tensor:
    return x.view(1, 2, 3, 2, 2, 4).permute(0, 1, 3, 2, 4, 5).contiguous()


def linear_between(x: Tensor) -> tuple[Tensor, ...]:
    first = F.linear(x, torch.ones(4, 4, dtype=x.dtype))
    x.mul_(3)
    return F.linear(first, torch.ones(4, 4, dtype=x.dtype)), x


def gelu_around(x: Tensor) -> tuple[Tensor, ...]:
    half, inner = x * 0.5, torch.erf(x / math.sqrt(2))
    x.mul_(3)
    return half * (1 + inner), x


def hard_swish_around(x: Tensor) -> tuple[Tensor, ...]:
    product = x * F.relu6(x + 3)
    x.mul_(3)
    return product / 6, x


def gate_around(x: Tensor) -> tuple[Tensor, ...]:
    seen = x.view(-1)
    gate = F.hardsigmoid(x)
    seen.mul_(3)
    return x * gate, gate


def shuffle_then_write(x: Tensor) -> tuple[Tensor, ...]:
    moved = shuffled(x)
    x.mul_(3)
    return CONV(moved), x


def shuffle_of_a_view(x: Tensor) -> tuple[Tensor, ...]:
    return CONV(torch.relu_(shuffled(x.view(1, 6, 4, 4)))), x


def windows_then_write(x: Tensor) -> tuple[Tensor, ...]:
    windows = partitioned(x.view(2, 3, 16))
    x.mul_(3)
    return windows.view(4, 6, 4), x


def state_written_by_rows(x: Tensor) -> tuple[Tensor, ...]:
    state = torch.zeros(4, 4, dtype=x.dtype)
    state[:, 0] = 1.0
    return (CELL(x[0, :, :, 0].t(), state),)


def gru_outputs_apart(x: Tensor) -> tuple[Tensor, ...]:
    sequence, last = GRU(x[:, :, 0, 0].unsqueeze(1))
    last.mul_(3)
    return sequence, last


def weights_then_write(x: Tensor) -> tuple[Tensor, ...]:
    weights = x.mT.repeat(1, 3, 1, 1).narrow(1, 0, 9)
    shown = weights.mT.reshape(1, 1, 9, 16)
    weights.mul_(3)
    return (F.unfold(x[:, :1], 3, padding=1).view(1, 1, 9, 16) * shown).sum(2), weights


def doubled(function: Callable[[Tensor], Tensor]) -> Network:
    """The result is written, its source read after that."""

    def network(x: Tensor) -> tuple[Tensor, ...]:
        result = function(x)
        result.mul_(3)
        return result, x + 1

    return network


CASES: dict[str, Network] = {
    "linear_pair": linear_between,
    "gelu": gelu_around,
    "hard_swish": hard_swish_around,
    "a gate": gate_around,
    "channel_shuffle": shuffle_then_write,
    "channel_shuffle of a view": shuffle_of_a_view,
    "rank_above_five": windows_then_write,
    "gru_cell, its state": state_written_by_rows,
    "gru_cell, its two outputs": gru_outputs_apart,
    "unfold, its weights": weights_then_write,
    "channel_gather": doubled(lambda x: x[:, INDEX]),
    "adaptive_max_pool": doubled(lambda x: F.adaptive_max_pool2d(x, (4, 4))),
    "unfold of one pixel": doubled(lambda x: F.unfold(x, 1)),
    "roll by nothing": doubled(lambda x: torch.roll(x, 0)),
    "channel_shuffle of one group": doubled(lambda x: F.channel_shuffle(x, 1)),
}


class Scaled(nn.Module):
    """The network on memory of its own, or on the caller's."""

    def __init__(self, network: Network, factor: float | None) -> None:
        super().__init__()
        self.network, self.factor = network, factor
        self.conv, self.cell, self.gru = CONV, CELL, GRU

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.network(x if self.factor is None else x * self.factor)


def assert_equal_after_rules(module: nn.Module, x: Tensor, target: str | None) -> None:
    wanted = module(x.clone())
    program = torch.export.export(module, (x.clone(),))
    rewrite(program, target)
    program.validate()
    given = x.clone()
    found = program.module()(given)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(given, x)


@pytest.mark.parametrize("network", CASES.values(), ids=CASES)
def test_a_write_beside_a_rule_changes_nothing(network: Network) -> None:
    with torch.no_grad():
        assert_equal_after_rules(Scaled(network, 1.5), torch.randn(1, 6, 4, 4, dtype=torch.float64), None)


def test_the_callers_input_is_not_written() -> None:
    def network(x: Tensor) -> tuple[Tensor, ...]:
        return (CONV(torch.relu_(shuffled(x))),)

    with torch.no_grad():
        assert_equal_after_rules(Scaled(network, None), torch.randn(1, 6, 4, 4, dtype=torch.float64), "onnx")


def test_a_buffer_that_the_network_writes_is_no_constant() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.register_buffer("second", torch.eye(4))

        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.second, Tensor)
            self.second[0].add_(1)
            return F.linear(self.first(x), self.second)

    module = Counting().double()
    with torch.no_grad():
        program = torch.export.export(module, (torch.randn(2, 4, dtype=torch.float64),))
    assert "linear_pair" not in [applied.name for applied in rewrite(program)]


def test_in_place_activations_of_a_plain_network_stop_no_rule() -> None:
    layers = [nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.ChannelShuffle(2)]
    module = nn.Sequential(*layers, nn.ReLU6(inplace=True), nn.ZeroPad2d(1), nn.Conv2d(6, 4, 3), nn.ReLU(inplace=True))
    x = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        program = torch.export.export(module.double().eval(), (x,))
    applied = {rule.name: rule.times for rule in rewrite(program)}
    assert applied == {"fold_batch_norm": 1, "channel_shuffle": 1, "pad_into_convolution": 1}
    assert not [node for node in program.graph.nodes if "clone" in str(node.target)]
