"""InceptionNeXt (Yu et al., CVPR 2024, arXiv 2303.16900), under timm's parameter names."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.models._folding import absorb_affine, absorb_norm, scale_outputs
from acmix.toolkit.spec import Claims, ModelSpec, TensorSpec, imagenet_preprocess

EXPANSIONS = (4, 4, 4, 3)
HEAD_EXPANSION = 3
NORM_EPSILON = 1e-6
LAYER_SCALE = 0.25
"""Of a random network. The authors start at 1e-6, where no block but the downsampling ones would count."""


class InceptionMixer(nn.Module):
    """Depthwise convolutions of a quarter of the channels each: 3 x 3, 1 x band, band x 1; the rest goes through."""

    def __init__(self, channels: int, branch: int, band: int) -> None:
        super().__init__()
        half = band // 2
        self.dwconv_hw = nn.Conv2d(branch, branch, 3, padding=1, groups=branch)
        self.dwconv_w = nn.Conv2d(branch, branch, (1, band), padding=(0, half), groups=branch)
        self.dwconv_h = nn.Conv2d(branch, branch, (band, 1), padding=(half, 0), groups=branch)
        self.starts = (channels - 3 * branch, channels - 2 * branch, channels - branch)

    def forward(self, x: Tensor) -> Tensor:
        square, row, column = self.starts
        # Slices: ExecuTorch leaves a split outside its delegate.
        branches = (
            self.dwconv_hw(x[:, square:row]),
            self.dwconv_w(x[:, row:column]),
            self.dwconv_h(x[:, column:]),
        )
        return torch.cat((x[:, :square], *branches), 1) if square else torch.cat(branches, 1)


class FeedForward(nn.Module):
    """Two pointwise convolutions with GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class Block(nn.Module):
    """x + gamma * feed-forward(norm(mixer(x)))."""

    def __init__(self, channels: int, expansion: int, branch: int, band: int) -> None:
        super().__init__()
        self.token_mixer = InceptionMixer(channels, branch, band)
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        self.mlp = FeedForward(channels, expansion * channels)
        self.gamma: nn.Parameter | None = nn.Parameter(torch.full((channels,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(self.norm(self.token_mixer(x)))
        return x + y if self.gamma is None else x + y * self.gamma.view(1, -1, 1, 1)


class Stage(nn.Module):
    """Blocks of one width; all but the first stage halve the size before them."""

    def __init__(self, inputs: int, channels: int, blocks: list[Block]) -> None:
        super().__init__()
        halve = nn.Sequential(nn.BatchNorm2d(inputs), nn.Conv2d(inputs, channels, 2, 2))
        self.downsample: nn.Module = nn.Identity() if inputs == channels else halve
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(self.downsample(x))
        return y


class Head(nn.Module):
    """The classifier of the pooled features: linear, GELU, layer norm, linear."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, HEAD_EXPANSION * channels)
        self.norm = nn.LayerNorm(HEAD_EXPANSION * channels, eps=NORM_EPSILON)
        self.fc2 = nn.Linear(HEAD_EXPANSION * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.norm(F.gelu(self.fc1(x.mean((2, 3))))))
        return y


class FusedHead(nn.Module):
    """Head with its norm spelled out: gain and shift in the last layer, statistics as means of one row of pixels."""

    def __init__(self, source: Head) -> None:
        super().__init__()
        self.fc1, self.fc2 = copy.deepcopy(source.fc1), copy.deepcopy(source.fc2)
        absorb_affine(source.norm.weight.double(), source.norm.bias.double(), self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(x.mean((2, 3), keepdim=True).flatten(1)))
        # Of the means, XNNPACK takes only those over the last two axes of four.
        row = hidden.reshape(x.shape[0], 1, 1, -1)
        centred = row - row.mean((2, 3), keepdim=True)
        variance = (centred * centred).mean((2, 3), keepdim=True)
        normal = centred * torch.rsqrt(variance + NORM_EPSILON)
        y: Tensor = self.fc2(normal.flatten(1))
        return y


class InceptionNeXt(nn.Module):
    """Images [B, 3, H, W] to logits [B, classes].

    dims, depths: channels and blocks of the four stages, at 1/4, 1/8, 1/16 and 1/32 of the input.
    band: length of the two band kernels.  ratio: what part of the channels each branch convolves.
    """

    def __init__(
        self, dims: tuple[int, ...], depths: tuple[int, ...], band: int = 11, ratio: float = 0.125, classes: int = 1000
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), nn.BatchNorm2d(dims[0]))
        stages = []
        for channels, depth, expansion, before in zip(dims, depths, EXPANSIONS, (dims[0], *dims), strict=False):
            blocks = [Block(channels, expansion, int(channels * ratio), band) for _ in range(depth)]
            stages.append(Stage(before, channels, blocks))
        self.stages = nn.Sequential(*stages)
        self.head: nn.Module = Head(dims[-1], classes)
        self.initialise()

    def initialise(self) -> None:
        """Random weights that keep the activations' scale: kaiming normal; small classifier."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(self.stem(x)))
        return logits


def for_inference(module: nn.Module, _target: str) -> nn.Module:
    """An equal network, on every target: norms and layer scales in the convolutions beside them.

    `module` stays as it is.
    """
    assert isinstance(module, InceptionNeXt) and isinstance(module.head, Head)
    fused = copy.deepcopy(module)
    for layer in fused.modules():
        if isinstance(layer, Block):
            assert isinstance(layer.norm, nn.BatchNorm2d) and layer.gamma is not None
            absorb_norm(layer.norm, layer.mlp.fc1)
            scale_outputs(layer.mlp.fc2, layer.gamma.double())
            layer.norm, layer.gamma = nn.Identity(), None
        elif isinstance(layer, Stage) and isinstance(layer.downsample, nn.Sequential):
            norm, convolution = layer.downsample
            assert isinstance(norm, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d)
            absorb_norm(norm, convolution)
            layer.downsample = convolution
    fused.head = FusedHead(module.head)
    return fused.requires_grad_(False)


MODELS: dict[str, ModelSpec] = {
    "inception_next_atto": ModelSpec(
        name="inception_next_atto",
        build=partial(InceptionNeXt, (40, 80, 160, 320), (2, 2, 6, 2), band=9, ratio=0.25),
        inputs=(TensorSpec("image", (1, 3, 224, 224), layout="nchw"),),
        preprocess=imagenet_preprocess(224),
        for_inference=for_inference,
        paper="https://arxiv.org/abs/2303.16900",
        claims=Claims(
            parameters=4_156_520,
            macs=510_000_000,
            top1_percent=75.3,
            macs_note="0.51 G has one for each bias and two for each normalised value; 0.503 G without",
        ),
    ),
}
