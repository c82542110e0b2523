"""Swin-ACmix: Swin Transformers whose attention is mixed with convolution (Pan et al., CVPR 2022, arXiv 2111.14556)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from acmix.toolkit.errors import UsageError
from acmix.toolkit.models._acmix_swin_inference import InferenceSwin
from acmix.toolkit.models._acmix_swin_layers import (
    WINDOW,
    PatchEmbedding,
    Size,
    Stage,
    WindowACmix,
    relative_positions,
    shift_mask,
)
from acmix.toolkit.spec import Claims, ModelSpec, StateDict, TensorSpec, imagenet_preprocess

CHANNELS = 96
HEADS = (3, 6, 12, 24)
SIZE_STEP = 4 * 2 ** (len(HEADS) - 1) * WINDOW
"""Inputs are multiples of this, so that every stage is whole windows."""


class AcmixSwin(nn.Module):
    """Images [B, 3, H, W] to logits [B, classes].

    depths: blocks of the stages, which have `heads` heads of `channels` / heads[0] channels, twice as many channels
    each time.  size: (height, width) of the input, multiples of 224: the masks of shifted blocks depend on it.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        size: Size = (224, 224),
        channels: int = CHANNELS,
        heads: tuple[int, ...] = HEADS,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(channels)
        self.layers = nn.ModuleList(
            Stage(channels << i, heads[i], stage_size(size, i), depth, merges=i + 1 < len(depths))
            for i, depth in enumerate(depths)
        )
        width = channels << (len(depths) - 1)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self.initialise()

    def initialise(self) -> None:
        """Random weights as published: small linear layers and biases, `dep_conv` as nine shifts."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowACmix):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
                with torch.no_grad():
                    module.dep_conv.weight.copy_(torch.eye(9).view(9, 3, 3).expand_as(module.dep_conv.weight))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x)
        logits: Tensor = self.head(self.norm(x).mean((1, 2)))
        return logits


def stage_size(size: Size, stage: int) -> Size:
    """Rows and columns of a stage's map."""
    return size[0] >> (2 + stage), size[1] >> (2 + stage)


def for_inference(module: nn.Module, target: str) -> nn.Module:
    """An equal InferenceSwin of an AcmixSwin, which stays as it is, in the forms that suit the target."""
    assert isinstance(module, AcmixSwin)
    with torch.no_grad():
        stages = [(layer, layer.size) for layer in module.layers if isinstance(layer, Stage)]
        network = InferenceSwin(module.patch_embed, stages, module.norm, module.head, target)
    return network.train(module.training).requires_grad_(False)


def with_tables(state: StateDict, depths: tuple[int, ...], size: Size) -> StateDict:
    """A checkpoint with the index tables and masks of this size: they follow from it and carry nothing learned.

    Files trained at another size have other masks, and some have neither.
    """
    adapted = {key: value for key, value in state.items() if not key.endswith(".attn_mask")}
    for stage, depth in enumerate(depths):
        height, width = stage_size(size, stage)
        for block in range(depth):
            prefix = f"layers.{stage}.blocks.{block}"
            adapted[f"{prefix}.attn.relative_position_index"] = relative_positions()
            if block % 2 == 1 and min(height, width) > WINDOW:
                adapted[f"{prefix}.attn_mask"] = shift_mask((height, width))
    return adapted


def _at_size(spec: ModelSpec, size: Size, depths: tuple[int, ...]) -> ModelSpec:
    if any(side % SIZE_STEP for side in size):
        raise UsageError(
            f"{spec.name} cannot take {size[0]} x {size[1]}: its maps would not be whole windows.\n"
            f"Height and width must be multiples of {SIZE_STEP}: --input 1x3x{SIZE_STEP}x{SIZE_STEP}."
        )
    return replace(
        spec,
        build=partial(AcmixSwin, depths, size),
        adapt_checkpoint=partial(with_tables, depths=depths, size=size),
    )


def _spec(name: str, depths: tuple[int, ...], claims: Claims) -> ModelSpec:
    return ModelSpec(
        name=name,
        build=partial(AcmixSwin, depths),
        inputs=(TensorSpec("image", (1, 3, 224, 224), layout="nchw"),),
        preprocess=imagenet_preprocess(224),
        for_inference=for_inference,
        adapt_checkpoint=partial(with_tables, depths=depths, size=(224, 224)),
        resized=partial(_at_size, depths=depths),
        paper="https://arxiv.org/abs/2111.14556",
        claims=claims,
    )


MODELS: dict[str, ModelSpec] = {
    "acmix_swin_tiny": _spec(
        "acmix_swin_tiny",
        (2, 2, 6, 2),
        claims=Claims(parameters=28_649_908, macs=4_600_000_000, top1_percent=81.9),
    ),
    "acmix_swin_small": _spec(
        "acmix_swin_small",
        (2, 2, 18, 2),
        claims=Claims(parameters=50_345_080, macs=9_000_000_000, top1_percent=83.5),
    ),
}
