"""MSDNet cut at its exits: one network a block, which hands its maps to the next."""

from __future__ import annotations

import re
from functools import partial

from torch import Tensor, nn

from acmix.toolkit.adaptive.spec import AdaptiveSpec, Photo, Run, Stage, zoo
from acmix.toolkit.models._msdnet_layers import FACTORS
from acmix.toolkit.models.msdnet import BASE, CHANNELS, EXITS, GROWTH, MODELS, SCALES, MSDNet, scales_after
from acmix.toolkit.spec import ModelSpec, StateDict, TensorSpec, imagenet_preprocess

STEM_STRIDE = 4


class Block(nn.Module):
    """Maps of the exit before (the first: an image) to logits and, but for the last, the maps of this one.

    Keys are those of the whole network.
    """

    def __init__(self, whole: MSDNet, number: int) -> None:
        super().__init__()
        self.number = number
        self.blocks = nn.ModuleDict({str(number): whole.blocks[number]})
        self.classifier = nn.ModuleDict({str(number): whole.classifier[number]})
        self.is_last = number == len(whole.blocks) - 1

    def forward(self, *seen: Tensor) -> tuple[Tensor, ...]:
        maps = self.blocks[str(self.number)](list(seen) if self.number else seen[0])
        logits = self.classifier[str(self.number)](maps)
        return (logits,) if self.is_last else (logits, *maps)


def build_block(step: int, number: int, channels: int = CHANNELS, growth: int = GROWTH, classes: int = 1000) -> Block:
    """One block of the whole network, so that one seed gives all of them the weights of one network."""
    return Block(MSDNet(step, channels, growth, classes), number)


def keys_of_block(state: StateDict, number: int) -> StateDict:
    """The part of a whole network's checkpoint that one block has."""
    own = re.compile(rf"(blocks|classifier)\.{number}\.")
    return {key: value for key, value in state.items() if own.match(key)}


def widths_at_exits(step: int, channels: int = CHANNELS, growth: int = GROWTH) -> list[tuple[int, int]]:
    """Channels of the finest scale there was, and scales that are left, behind each exit."""
    total, width, found = BASE + step * (EXITS - 1), channels, []
    for layer in range(1, total + 1):
        width += growth
        if scales_after(layer - 1, total) > scales_after(layer, total):
            width //= 2
        if layer >= BASE and (layer - BASE) % step == 0:
            found.append((width, scales_after(layer, total)))
    return found


def map_shapes(width: int, scales: int, side: int) -> list[tuple[int, int, int, int]]:
    """Of the maps behind an exit, fine to coarse, for square images of `side`."""
    kept = range(SCALES - scales, SCALES)
    sides = [side // STEM_STRIDE >> scale for scale in kept]
    return [(1, width * FACTORS[scale], size, size) for scale, size in zip(kept, sides, strict=True)]


def in_blocks(
    name: str, whole: ModelSpec, step: int, channels: int = CHANNELS, growth: int = GROWTH, classes: int = 1000
) -> AdaptiveSpec:
    """A whole MSDNet as an adaptive model of five stages."""
    side = whole.inputs[0].shape[2]
    shapes = [map_shapes(width, scales, side) for width, scales in widths_at_exits(step, channels, growth)]
    networks, stages = {}, []
    for number in range(EXITS):
        block = f"block_{number + 1}"
        seen = whole.inputs if not number else tuple(_spec(i, s) for i, s in enumerate(shapes[number - 1], 1))
        maps = () if number == EXITS - 1 else tuple(f"map_{i}" for i in range(1, len(shapes[number]) + 1))
        spec = ModelSpec(
            name=f"{name}_{block}",
            build=partial(build_block, step, number, channels, growth, classes),
            inputs=seen,
            outputs=("logits", *maps),
            preprocess=None if number else whole.preprocess,
            adapt_checkpoint=partial(keys_of_block, number=number),
            paper=whole.paper,
        )
        networks[block] = zoo(spec, name)
        taken = ("image",) if not number else tuple(f"maps_{number}_{i}" for i in range(1, len(seen) + 1))
        gives = tuple(f"maps_{number + 1}_{i}" for i in range(1, len(maps) + 1))
        run = Run(block, taken, (f"logits_{number + 1}", *gives))
        photo = () if number else (Photo(whole.preprocess or imagenet_preprocess(side), "image"),)
        stages.append(Stage(f"exit_{number + 1}", (*photo, run), f"logits_{number + 1}"))
    return AdaptiveSpec(name, name, networks, tuple(stages), paper=whole.paper, one_checkpoint=True)


def _spec(number: int, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(f"seen_{number}", shape, layout="nchw")


ADAPTIVE: dict[str, AdaptiveSpec] = {
    "msdnet_step4_exits": in_blocks("msdnet_step4_exits", MODELS["msdnet_step4"], 4),
    "msdnet_step6_exits": in_blocks("msdnet_step6_exits", MODELS["msdnet_step6"], 6),
    "msdnet_step7_exits": in_blocks("msdnet_step7_exits", MODELS["msdnet_step7"], 7),
}
