"""All rules of a target on random networks of what they match: eager numbers, a valid program, nothing left to do."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix.toolkit.rewrite import rewrite

TARGETS = ("executorch", "tflite", "onnx", "coreml")
Step = Callable[[Tensor], Tensor]
INDEX = {4: [2, 0, 3, 1], 6: [5, 4, 0, 1, 2, 3], 8: [1, 0, 3, 2, 5, 4, 7, 6], 12: [*range(6, 12), *range(6)]}


class Applied(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Step) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Involution(nn.Module):
    """Every pixel's own 3 x 3 weights, shared by half of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weights = nn.Conv2d(channels, 18, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        patches = F.unfold(x, 3, padding=1).view(batch, 2, channels // 2, 9, height, width)
        weights = self.weights(x).view(batch, 2, 1, 9, height, width)
        return (patches * weights).sum(3).view(x.shape)


class Gated(nn.Module):
    """Squeeze and excitation by a GRU cell: the state is the maximum, the input the mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.cell(x.mean((2, 3)), torch.amax(x, (-1, -2)))
        return x * gate[:, :, None, None]


class Residual(nn.Module):
    """A branch and its input added, in place or not: one more reader of everything before."""

    def __init__(self, branch: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.branch, self.in_place = branch, in_place

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x)
        if not self.in_place:
            return x + y
        y = y * 1
        y += x
        return y


class Normed(nn.Module):
    """Layer norm and two linear layers over the channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.pair = nn.Sequential(nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.pair(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return result


def shuffled(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, x.shape[1] // 2)).transpose(1, 2).flatten(1, 2)


def windowed(x: Tensor) -> Tensor:
    """Softmax inside windows of 2 x 2, there and back through rank six."""
    batch, channels, height, width = x.shape
    seen = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    weights = seen.reshape(-1, channels, 4).softmax(2)
    back = weights.view(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return back.reshape(x.shape)


def resized(x: Tensor) -> Tensor:
    up = F.interpolate(x, scale_factor=1.5, mode="bicubic", align_corners=False)
    return F.interpolate(up, size=x.shape[-2:], mode="bilinear", antialias=True)


ACTIVATIONS: dict[str, Step] = {
    "relu_": torch.relu_,
    "spelled hard-swish": lambda x: x * F.relu6(x + 3, inplace=True) / 6,
    "spelled gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "softmax over channels": lambda x: x.softmax(-3) * 4,
    "log-softmax": lambda x: x.log_softmax(1) * 0.1,
    "gate": lambda x: x * F.hardsigmoid(x),
}
MOVES: dict[str, Step] = {
    "shuffle": shuffled,
    "native shuffle": lambda x: F.channel_shuffle(x, x.shape[1] // 2),
    "gather": lambda x: x[:, torch.tensor(INDEX[x.shape[1]])],
    "half twice": lambda x: x[:, torch.arange(x.shape[1] // 2).repeat(2)],
    "roll": lambda x: torch.roll(x, (1, -2, 0), (-2, 3, 1)),
    "windows": windowed,
    "resize": resized,
    "reflected": lambda x: F.pad(x, (1, 1, 0, 0), mode="reflect")[..., 2:],
    "wrapped": lambda x: F.pad(x, (1, 1, 2, 0), mode="circular")[:, :, 2:, 1:-1],
    "pool in pairs": lambda x: F.adaptive_max_pool2d(x, (x.shape[2] // 2, x.shape[3])).repeat_interleave(2, 2),
    "patches": lambda x: F.unfold(x, 2, stride=2).view(x.shape[0], x.shape[1], 4, -1).transpose(2, 3).reshape(x.shape),
    "halves swapped": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
}
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "convolution": lambda c: nn.Conv2d(c, c, 3, padding=1),
    "padded": lambda c: nn.Sequential(nn.ZeroPad2d((1, 1, 2, 2)), nn.Conv2d(c, c, (5, 3), bias=False)),
    "normed": lambda c: nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c)),
    "a norm alone": nn.BatchNorm2d,
    "depthwise": lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c),
    "groups": lambda c: nn.Conv2d(c, c, 1, groups=2),
    "pair": lambda c: nn.Sequential(nn.Conv2d(c, 2 * c, 1, bias=False), nn.Conv2d(2 * c, c, 3, padding=1)),
    "group norm": lambda c: nn.GroupNorm(2, c),
    "instance norm": lambda c: nn.InstanceNorm2d(c, affine=True),
    "slope": nn.PReLU,
    "layer norm": Normed,
    "involution": Involution,
    "gated": Gated,
    "maximum": lambda c: nn.MaxPool2d(3, 1, 1),
}


def step(name: str, channels: int) -> nn.Module:
    function = ACTIVATIONS.get(name) or MOVES.get(name)
    return LAYERS[name](channels) if function is None else Applied(function)


def network(names: list[str], residual: list[str], channels: int, in_place: bool) -> nn.Module:
    """The steps in a row, a residual branch in the middle; random weights and statistics."""
    middle = Residual(nn.Sequential(*(step(name, channels) for name in residual)), in_place)
    half = len(names) // 2
    rows = [step(name, channels) for name in names]
    # Doubled first: no step may write into the caller's input.
    module = nn.Sequential(Applied(partial(torch.mul, other=2)), *rows[:half], middle, *rows[half:])
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) * 0.8 + (0.5 if "var" in name else -0.4))
    return module.double().eval()


NAMES = st.sampled_from([*ACTIVATIONS, *MOVES, *LAYERS])


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    names=st.lists(NAMES, min_size=3, max_size=7),
    residual=st.lists(NAMES, min_size=1, max_size=3),
    channels=st.sampled_from(list(INDEX)),
    batch=st.integers(1, 2),
    in_place=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_random_network_keeps_its_numbers(
    target: str, names: list[str], residual: list[str], channels: int, batch: int, in_place: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    module = network(names, residual, channels, in_place)
    x = torch.randn(batch, channels, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        wanted = module(x)
        program = torch.export.export(module, (x,))
        rewrite(program, target)
        program.validate()
        assert rewrite(program, target) == ()
        found = program.module()(x)
        scale = float(wanted.abs().max())
        assert math.isfinite(scale)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10 * scale + 1e-14)
        assert all(n.meta["val"].dim() <= 5 or "involution" in names + residual for n in tensors(program))


def tensors(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)]


@pytest.mark.parametrize("target", TARGETS)
def test_a_network_of_every_step_survives_a_file(target: str) -> None:
    torch.manual_seed(0)
    names = [name for pair in zip([*MOVES, *ACTIVATIONS], [*LAYERS] * 2, strict=False) for name in pair]
    module = network(names, ["shuffle", "convolution"], 8, True)
    x = torch.randn(2, 8, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        program = torch.export.export(module, (x,))
        assert len(rewrite(program, target)) >= 12
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        wanted = module(x)
        found = torch.export.load(file).module()(x)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10 * float(wanted.abs().max()))
