"""A small MSDNet of a user's own: two scales, three exits, for the 28x28 photos of fashion-mnist.

NET is what a user hands in: acmix-export --model fashion_net.py:NET; its weights lie beside this file.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from acmix.toolkit.adaptive.spec import AdaptiveSpec, Photo, Run, Stage, own
from acmix.toolkit.spec import ModelSpec, Preprocess, TensorSpec

SIDE, CLASSES = 28, 10
FINE, COARSE, GROWTH = 8, 16, 6
"""Channels of the two scales, 14x14 and 7x7, behind the stem, and how many each layer adds to a map."""
LAYERS = (1, 1, 2)
"""Of each block: an exit follows."""
PREPROCESS = Preprocess(SIDE, (SIDE, SIDE), (72.94,) * 3, (90.02,) * 3)
WEIGHTS = Path(__file__).with_name("fashion.pt")


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Layer(nn.Module):
    """Two maps, each joined with new channels: the fine one from itself, the coarse one from both.

    is_last: nobody needs the fine map any more.
    """

    def __init__(self, fine: int, coarse: int, is_last: bool) -> None:
        super().__init__()
        self.fine = None if is_last else convolution(fine, GROWTH)
        self.down = convolution(fine, GROWTH, 2)
        self.same = convolution(coarse, GROWTH)

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat((coarse, self.down(fine), self.same(coarse)), 1)
        return (fine if self.fine is None else torch.cat((fine, self.fine(fine)), 1)), joined


class Block(nn.Module):
    """An image, or the maps of the block before, to logits and, but for the last, its own maps."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.is_last = number == len(LAYERS) - 1
        fine, coarse = widths(number)
        if not number:
            self.stem = nn.ModuleList([convolution(3, fine, 2), convolution(fine, coarse, 2)])
        self.layers = nn.ModuleList()
        for layer in range(LAYERS[number]):
            self.layers.append(Layer(fine, coarse, self.is_last and layer == LAYERS[number] - 1))
            fine, coarse = fine + GROWTH, coarse + 2 * GROWTH
        self.head = convolution(coarse, coarse, 2)
        self.linear = nn.Linear(coarse, CLASSES)

    def forward(self, *seen: Tensor) -> tuple[Tensor, ...]:
        if len(seen) == 1:
            fine = self.stem[0](seen[0])
            coarse = self.stem[1](fine)
        else:
            fine, coarse = seen
        for layer in self.layers:
            fine, coarse = layer(fine, coarse)
        logits = self.linear(self.head(coarse).mean((2, 3)))
        return (logits,) if self.is_last else (logits, fine, coarse)


def widths(number: int) -> tuple[int, int]:
    """Channels of the fine and the coarse map that reach a block."""
    before = sum(LAYERS[:number])
    return FINE + before * GROWTH, COARSE + before * 2 * GROWTH


def blocks() -> nn.ModuleList:
    """The whole network: a module an exit."""
    return nn.ModuleList(Block(number) for number in range(len(LAYERS)))


def trained_block(number: int) -> Block:
    """One block with its trained weights."""
    state = torch.load(WEIGHTS, weights_only=True)
    block = Block(number)
    block.load_state_dict({k.removeprefix(f"{number}."): v for k, v in state.items() if k.startswith(f"{number}.")})
    return block


def _network(number: int) -> ModelSpec:
    fine, coarse = widths(number)
    maps = (
        TensorSpec("fine_in", (1, fine, SIDE // 2, SIDE // 2), layout="nchw"),
        TensorSpec("coarse_in", (1, coarse, SIDE // 4, SIDE // 4), layout="nchw"),
    )
    return ModelSpec(
        name=f"fashion_block_{number + 1}",
        build=partial(trained_block, number),
        inputs=maps if number else (TensorSpec("image", (1, 3, SIDE, SIDE), layout="nchw"),),
        outputs=("logits",) if number == len(LAYERS) - 1 else ("logits", "fine", "coarse"),
        preprocess=None if number else PREPROCESS,
    )


def _stage(number: int) -> Stage:
    seen = (f"fine_{number}", f"coarse_{number}") if number else ("image",)
    made = () if number == len(LAYERS) - 1 else (f"fine_{number + 1}", f"coarse_{number + 1}")
    logits = f"logits_{number + 1}"
    run = Run(f"block_{number + 1}", seen, (logits, *made))
    return Stage(f"exit_{number + 1}", (run,) if number else (Photo(PREPROCESS, "image"), run), logits)


NET = AdaptiveSpec(
    name="fashion",
    reference="fashion_net.py:NET",
    networks={f"block_{number + 1}": own(_network(number)) for number in range(len(LAYERS))},
    stages=tuple(_stage(number) for number in range(len(LAYERS))),
)
