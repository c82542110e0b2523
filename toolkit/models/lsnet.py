"""LSNet, "see large, focus small" (Wang et al., CVPR 2025, arXiv 2503.23135), under its authors' parameter names."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.errors import UsageError
from acmix.toolkit.models._folding import affine
from acmix.toolkit.models._lsnet_convolution import LSConv
from acmix.toolkit.models._lsnet_layers import (
    Attention,
    ConvBN,
    Fusable,
    RepVGGDW,
    SqueezeExcite,
    distance_indices,
)
from acmix.toolkit.spec import Claims, ModelSpec, StateDict, TensorSpec, imagenet_preprocess

BRANCH_ENDS = (".pw2.bn", ".proj.1.bn", ".mixer.conv.bn", ".mixer.conv1.bn", ".mixer.bn")
ATTENTION_ENTRIES = (".qkv.bn", ".m.dw.bn")
BRANCH_SCALE = 0.25
STAGES = ("patch_embed", "blocks1", "blocks2", "blocks3", "blocks4")


def attention_resolution(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the last stage for an input of (height, width): six halvings, rounded up."""
    return math.ceil(size[0] / 64), math.ceil(size[1] / 64)


class Residual(nn.Module):
    """x + m(x)."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.m(x)
        return y


def feed_forward(channels: int) -> Residual:
    """Two pointwise convolutions, twice as wide in between, around which x is added."""
    layers = nn.Sequential()
    layers.add_module("pw1", ConvBN(channels, 2 * channels))
    layers.add_module("act", nn.ReLU())
    layers.add_module("pw2", ConvBN(2 * channels, channels))
    return Residual(layers)


class Block(nn.Module):
    """Block `index` of a stage: a mixer of positions and a feed-forward network.

    Even ones mix by a gated depthwise convolution; odd ones by LSConv, or by attention where a
    resolution is given.
    """

    def __init__(self, channels: int, index: int, resolution: tuple[int, int] | None) -> None:
        super().__init__()
        even = index % 2 == 0
        odd = LSConv(channels) if resolution is None else Residual(Attention(channels, resolution))
        self.mixer = RepVGGDW(channels) if even else odd
        self.se = SqueezeExcite(channels) if even else nn.Identity()
        self.ffn = feed_forward(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.ffn(self.se(self.mixer(x)))
        return y


class BNLinear(nn.Module):
    """A linear classifier of the batch-normalised vector."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(inputs)
        self.l = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.l(self.bn(x))
        return y

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, in float64, of the one linear layer that does the same."""
        scale, shift = affine(self.bn)
        weight = self.l.weight.double()
        return weight * scale, self.l.bias.double() + weight @ shift


class LSNet(nn.Module):
    """Images [B, 3, H, W] to logits [B, classes].

    dims, depths: channels and blocks of the four stages, at 1/8, 1/16, 1/32 and 1/64 of the input.
    distilled: there is a second head, and the logits are the mean of both.
    size: (height, width) of the input: the last stage's attention has one bias for each distance.
    """

    def __init__(
        self,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        distilled: bool = False,
        size: tuple[int, int] = (224, 224),
        classes: int = 1000,
    ) -> None:
        super().__init__()
        half, quarter = dims[0] // 2, dims[0] // 4
        convolutions = (ConvBN(3, quarter, 3, 2), ConvBN(quarter, half, 3, 2), ConvBN(half, dims[0], 3, 2))
        self.patch_embed = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])
        for stage, (channels, depth) in enumerate(zip(dims, depths, strict=True)):
            before = dims[stage - 1]
            down = (ConvBN(before, before, 3, 2, groups=before), ConvBN(before, channels)) if stage else ()
            resolution = attention_resolution(size) if stage == len(dims) - 1 else None
            blocks = (Block(channels, index, resolution) for index in range(depth))
            self.add_module(STAGES[stage + 1], nn.Sequential(*down, *blocks))
        self.head = BNLinear(dims[-1], classes)
        self.head_dist = BNLinear(dims[-1], classes) if distilled else None
        self.initialise()

    def initialise(self) -> None:
        """Random weights: kaiming normal, branches that start small, small classifiers.

        The authors start feed-forward branches and attention biases at zero: a network left random would not
        depend on half of its weights. At BRANCH_SCALE it does, its activations stay in the hundreds, and its
        softmax is not saturated: a saturated one turns float16's rounding into another choice (16 dB for 45).
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d) and name.endswith(BRANCH_ENDS + ATTENTION_ENTRIES):
                nn.init.constant_(module.weight, BRANCH_SCALE)
            elif isinstance(module, Attention):
                nn.init.trunc_normal_(module.attention_biases, std=0.02)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @property
    def heads(self) -> tuple[BNLinear, ...]:
        """The classifier, and the one that learned from a teacher."""
        return (self.head,) if self.head_dist is None else (self.head, self.head_dist)

    def embedding(self, x: Tensor) -> Tensor:
        """The pooled feature vector, [B, dims[-1]]."""
        for stage in STAGES:
            x = self.get_submodule(stage)(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        vector = self.embedding(x)
        logits: Tensor = self.head(vector)
        return logits if self.head_dist is None else (logits + self.head_dist(vector)) / 2


class FusedLSNet(nn.Module):
    """LSNet with every layer fused and one linear classifier: one image [1, 3, H, W] to logits [1, classes]."""

    def __init__(self, source: LSNet) -> None:
        super().__init__()
        stages = (copy.deepcopy(source.get_submodule(stage)) for stage in STAGES)
        self.stages = nn.Sequential(*stages)
        fuse(self.stages)
        weights, biases = zip(*(head.folded() for head in source.heads), strict=True)
        outputs, inputs = weights[0].shape
        self.head = nn.Linear(inputs, outputs, device="meta")
        self.head.weight = nn.Parameter(torch.stack(weights).mean(0).to(source.head.l.weight.dtype))
        self.head.bias = nn.Parameter(torch.stack(biases).mean(0).to(source.head.l.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        # Of the means, XNNPACK takes only those that keep their axes.
        y: Tensor = self.head(self.stages(x).mean((2, 3), keepdim=True).flatten(1))
        return y


def fuse(module: nn.Module) -> None:
    """Replace each layer below `module`, in place, by its equal for inference."""
    for name, child in module.named_children():
        if isinstance(child, Fusable):
            module.add_module(name, child.fused())
        else:
            fuse(child)


def for_inference(module: nn.Module, target: str = "") -> nn.Module:
    """An equal FusedLSNet of an LSNet, which stays as it is; the same one for every target."""
    assert isinstance(module, LSNet)
    with torch.no_grad():
        return FusedLSNet(module).train(module.training).requires_grad_(False)


def resize_attention_biases(state: StateDict, size: tuple[int, int]) -> StateDict:
    """A checkpoint of a square input for another one: its tables of biases bicubically resized (as published)."""
    resolution = attention_resolution(size)
    adapted = dict(state)
    for key, table in state.items():
        if key.endswith("attention_bias_idxs"):
            adapted[key] = distance_indices(resolution)
        elif key.endswith("attention_biases") and table.shape[1] != math.prod(resolution):
            side = math.isqrt(table.shape[1])
            if side**2 != table.shape[1]:
                raise UsageError(
                    f"{key} of the checkpoint has {table.shape[1]} distances, which is no square: it cannot be resized."
                    "\nExport at the size that it was trained for: --input 1x3xHxW."
                )
            square = table.float().view(1, -1, side, side)
            adapted[key] = F.interpolate(square, resolution, mode="bicubic", align_corners=False)[0].flatten(1)
    return adapted


POINTWISE_BRANCHES = r"\.mixer\.conv1\.(c\.weight|bn\.(weight|bias|running_mean|running_var))$"
"""What published LSNet-B checkpoints may lack: trained without the 1 x 1 branch (their logs count 15,360 fewer)."""


def silence_pointwise_branches(module: nn.Module, missing: frozenset[str]) -> None:
    """Make the 1 x 1 branches whose parameters are `missing` add exactly nothing; UsageError for half a branch."""
    for branch in sorted({key.rpartition(".conv1.")[0] + ".conv1" for key in missing}):
        layer = module.get_submodule(branch)
        assert isinstance(layer, ConvBN)
        tensors = {k: v for k, v in layer.state_dict().items() if v.is_floating_point()}
        if present := [key for key in tensors if f"{branch}.{key}" not in missing]:
            raise UsageError(
                f"the checkpoint has {branch}.{present[0]} but not the rest of {branch}.\n"
                "All five of its tensors are needed, or none: load the checkpoint as it was published."
            )
        for key, tensor in tensors.items():
            tensor.fill_(1 if key == "bn.running_var" else 0)


def _at_size(spec: ModelSpec, size: tuple[int, int], network: partial[LSNet]) -> ModelSpec:
    return replace(
        spec, build=partial(network, size=size), adapt_checkpoint=partial(resize_attention_biases, size=size)
    )


def _spec(name: str, network: partial[LSNet], claims: Claims, may_lack_branches: bool = False) -> ModelSpec:
    return ModelSpec(
        name=name,
        build=network,
        inputs=(TensorSpec("image", (1, 3, 224, 224), layout="nchw"),),
        preprocess=imagenet_preprocess(224),
        for_inference=for_inference,
        optional_keys=POINTWISE_BRANCHES if may_lack_branches else None,
        neutralise=silence_pointwise_branches if may_lack_branches else None,
        resized=partial(_at_size, network=network),
        paper="https://arxiv.org/abs/2503.23135",
        claims=claims,
    )


_T = partial(LSNet, (64, 128, 256, 384), (0, 2, 8, 10))
_S = partial(LSNet, (96, 192, 320, 448), (1, 2, 8, 10))
_B = partial(LSNet, (128, 256, 384, 512), (4, 6, 8, 10))

# Parameters are those of the train form (the paper counts fused ones).
MODELS: dict[str, ModelSpec] = {
    "lsnet_t": _spec(
        "lsnet_t",
        _T,
        claims=Claims(parameters=11_409_832, macs=300_000_000, top1_percent=74.9),
    ),
    "lsnet_s": _spec(
        "lsnet_s",
        _S,
        claims=Claims(parameters=16_146_304, macs=500_000_000, top1_percent=77.8),
    ),
    "lsnet_b": _spec(
        "lsnet_b",
        _B,
        claims=Claims(parameters=23_313_608, macs=1_300_000_000, top1_percent=80.3, macs_note="the code has 1.24 G"),
        may_lack_branches=True,
    ),
    "lsnet_t_distill": _spec(
        "lsnet_t_distill",
        partial(_T, distilled=True),
        claims=Claims(parameters=11_795_600, macs=300_000_000, top1_percent=76.1),
    ),
    "lsnet_s_distill": _spec(
        "lsnet_s_distill",
        partial(_S, distilled=True),
        claims=Claims(parameters=16_596_200, macs=500_000_000, top1_percent=79.0),
    ),
    "lsnet_b_distill": _spec(
        "lsnet_b_distill",
        partial(_B, distilled=True),
        claims=Claims(parameters=23_827_632, macs=1_300_000_000, top1_percent=81.6, macs_note="the code has 1.24 G"),
        may_lack_branches=True,
    ),
}
