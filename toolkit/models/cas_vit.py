"""CAS-ViT, convolutional additive self-attention (Zhang et al., 2024, arXiv 2408.03703), under its authors' names."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from acmix.toolkit.models._folding import absorb_norm, assign
from acmix.toolkit.spec import Claims, ModelSpec, TensorSpec, imagenet_preprocess

EXPANSION = 4


def depthwise(channels: int) -> nn.Conv2d:
    """A depthwise 3 x 3 convolution with bias that keeps the size."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


class Gate(nn.Module):
    """x times what `block` says of it, broadcast over channels or positions."""

    def __init__(self, *block: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*block)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.block(x)
        return y


def spatial_gate(channels: int) -> Gate:
    """One factor for each position, from its neighbourhood (section 3.2)."""
    point = nn.Conv2d(channels, 1, 1, bias=False)
    return Gate(depthwise(channels), nn.BatchNorm2d(channels), nn.ReLU(), point, nn.Sigmoid())


class SpatialMean(nn.Module):
    """The mean of each channel, [B, C, H, W] to [B, C, 1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


def channel_gate(channels: int) -> Gate:
    """One factor for each channel, from all channels' means (section 3.2)."""
    return Gate(SpatialMean(), nn.Conv2d(channels, channels, 1, bias=False), nn.Sigmoid())


class AdditiveTokenMixer(nn.Module):
    """Convolutional additive attention (section 3.2): gated query plus gated key, convolved, weights the value."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.oper_q = nn.Sequential(spatial_gate(channels), channel_gate(channels))
        self.oper_k = nn.Sequential(spatial_gate(channels), channel_gate(channels))
        self.dwc = depthwise(channels)
        self.proj = depthwise(channels)

    def forward(self, x: Tensor) -> Tensor:
        qkv, channels = self.qkv(x), x.shape[1]
        query = self.oper_q(qkv[:, :channels])
        key = self.oper_k(qkv[:, channels : 2 * channels])
        y: Tensor = self.proj(self.dwc(query + key) * qkv[:, 2 * channels :])
        return y


class LocalIntegration(nn.Module):
    """Pointwise, depthwise, GELU, pointwise."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        enter, leave = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.network = nn.Sequential(enter, nn.BatchNorm2d(channels), depthwise(channels), nn.GELU(), leave)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        return y


class FeedForward(nn.Module):
    """Two pointwise convolutions, four times as wide in between, with GELU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, EXPANSION * channels, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(EXPANSION * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class Block(nn.Module):
    """Local integration, additive attention and a feed-forward network, each added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.local_perception = LocalIntegration(channels)
        self.norm1: nn.Module = nn.BatchNorm2d(channels)
        self.attn = AdditiveTokenMixer(channels)
        self.norm2: nn.Module = nn.BatchNorm2d(channels)
        self.mlp = FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local_perception(x)
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class Embedding(nn.Module):
    """Half the size: a 3 x 3 convolution of stride 2 and its norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 3, 2, 1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.proj(x))
        return y


class CASViT(nn.Module):
    """Images [B, 3, H, W] to logits [B, classes], the mean of two heads.

    dims, depths: channels and blocks of the four stages, at 1/4, 1/8, 1/16 and 1/32 of the input.
    """

    def __init__(self, dims: tuple[int, ...], depths: tuple[int, ...], classes: int = 1000) -> None:
        super().__init__()
        half, full = dims[0] // 2, dims[0]
        first, second = nn.Conv2d(3, half, 3, 2, 1), nn.Conv2d(half, full, 3, 2, 1)
        self.patch_embed = nn.Sequential(
            first, nn.BatchNorm2d(half), nn.ReLU(), second, nn.BatchNorm2d(full), nn.ReLU()
        )
        stages: list[nn.Module] = []
        for stage, (channels, depth) in enumerate(zip(dims, depths, strict=True)):
            if stage:
                stages.append(Embedding(dims[stage - 1], channels))
            stages.append(nn.Sequential(*(Block(channels) for _ in range(depth))))
        self.network = nn.Sequential(*stages)
        self.norm: nn.Module = nn.BatchNorm2d(dims[-1])
        self.head = nn.Linear(dims[-1], classes)
        self.dist_head: nn.Linear | None = nn.Linear(dims[-1], classes)
        for head in (self.head, self.dist_head):
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    def embedding(self, x: Tensor) -> Tensor:
        """The pooled feature vector, [B, dims[-1]]."""
        features: Tensor = self.norm(self.network(self.patch_embed(x)))
        return features.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        vector = self.embedding(x)
        logits: Tensor = self.head(vector)
        return logits if self.dist_head is None else (logits + self.dist_head(vector)) / 2


def for_inference(module: nn.Module, _target: str) -> nn.Module:
    """An equal CASViT, on every target: norms in the layers behind them, both heads as one; `module` stays as it is."""
    assert isinstance(module, CASViT)
    fused = copy.deepcopy(module).requires_grad_(False)
    for block in fused.modules():
        if isinstance(block, Block):
            assert isinstance(block.norm1, nn.BatchNorm2d) and isinstance(block.norm2, nn.BatchNorm2d)
            absorb_norm(block.norm1, block.attn.qkv)
            absorb_norm(block.norm2, block.mlp.fc1)
            block.norm1 = block.norm2 = nn.Identity()
    merge_heads(fused)
    return fused


def merge_heads(fused: CASViT) -> None:
    """One linear layer for the mean of both heads; the last norm is affine, so it may follow the spatial mean."""
    assert isinstance(fused.norm, nn.BatchNorm2d) and fused.dist_head is not None
    heads = (fused.head, fused.dist_head)
    weight = torch.stack([head.weight.double() for head in heads]).mean(0)
    bias = torch.stack([head.bias.double() for head in heads]).mean(0)
    assign(fused.head, weight, bias)
    absorb_norm(fused.norm, fused.head)
    fused.norm, fused.dist_head = nn.Identity(), None


def _spec(name: str, dims: tuple[int, ...], depths: tuple[int, ...], claims: Claims) -> ModelSpec:
    return ModelSpec(
        name=name,
        build=partial(CASViT, dims, depths),
        inputs=(TensorSpec("image", (1, 3, 224, 224), layout="nchw"),),
        preprocess=imagenet_preprocess(224),
        for_inference=for_inference,
        paper="https://arxiv.org/abs/2408.03703",
        claims=claims,
    )


# The paper's MACs have one for each bias and two for each normalised value; ours are convolutions and products.
MODELS: dict[str, ModelSpec] = {
    "cas_vit_xs": _spec(
        "cas_vit_xs",
        (48, 56, 112, 220),
        (2, 2, 4, 2),
        claims=Claims(
            parameters=3_200_000,
            macs=560_000_000,
            top1_percent=78.3,
            macs_note="biases and norms are counted in it; 0.547 G without",
        ),
    ),
    "cas_vit_s": _spec(
        "cas_vit_s",
        (48, 64, 128, 256),
        (3, 3, 6, 3),
        claims=Claims(
            parameters=5_760_000,
            macs=932_000_000,
            top1_percent=80.9,
            macs_note="biases and norms are counted in it; 0.912 G without",
        ),
    ),
    "cas_vit_m": _spec(
        "cas_vit_m",
        (64, 96, 192, 384),
        (3, 3, 6, 3),
        claims=Claims(
            parameters=12_420_000,
            macs=1_887_000_000,
            top1_percent=82.8,
            macs_note="biases and norms are counted in it; 1.859 G without",
        ),
    ),
    "cas_vit_t": _spec(
        "cas_vit_t",
        (96, 128, 256, 512),
        (3, 3, 6, 3),
        claims=Claims(
            parameters=21_760_000,
            macs=3_597_000_000,
            top1_percent=83.9,
            macs_note="biases and norms are counted in it; 3.557 G without",
        ),
    ),
}
