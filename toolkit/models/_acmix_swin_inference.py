"""Swin-ACmix for inference: one image, no tensor above rank 4, every operator one that mobile delegates take.

A map is its tokens, [H * W, C]. Layers are computed in float64 from their sources and stored in the sources' dtype.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.models._acmix_swin_convolution import ConvForm, ConvolutionPath, affine, linear
from acmix.toolkit.models._acmix_swin_layers import (
    SHIFT,
    WINDOW,
    Block,
    PatchEmbedding,
    PatchMerging,
    Size,
    Stage,
    WindowACmix,
)

NormForm = Literal["layer norm", "matrix products"]
GeluForm = Literal["gelu", "error function"]
TOKENS = WINDOW * WINDOW
MASK_FACTOR = 2
"""The mask is -200 where the published one is -100: e^-100 is no normal float32, and ONNX Runtime's product with it
takes ten times as long; e^-200 is 0. To differ by 1e-9, a masked logit must exceed all others by 79."""


@dataclass(frozen=True)
class Forms:
    """What a target runs best: its norms, its GELU, and up to how many heads the convolution path is dense."""

    norm: NormForm
    gelu: GeluForm = "gelu"
    dense_heads: int = 0

    def convolution(self, heads: int) -> ConvForm:
        """The form of the convolution path of a block with so many heads."""
        return "dense 3 x 3" if heads <= self.dense_heads else "1 x 1 and grouped 3 x 3"


# Measured on one x86 core at 56 x 56 with 3 heads, dense against grouped: 3.2 and 4.4 ms on ONNX Runtime, 4.8 and
# 4.8 on TFLite; from 6 heads on grouped takes half the time and less. A norm of 3136 tokens by products and as it
# is: 0.32 and 0.28 ms on TFLite; ExecuTorch's XNNPACK delegate takes no layer norm and no mean over channels.
FORMS: dict[str, Forms] = {
    "tflite": Forms("layer norm"),
    "executorch": Forms("matrix products"),
    "onnx": Forms("layer norm", "error function", dense_heads=3),
    "coreml": Forms("layer norm", dense_heads=3),
}


class Gelu(nn.Module):
    """The exact GELU. "error function": spelled as ONNX Runtime fuses it; opset 18 has no such operator."""

    def __init__(self, form: GeluForm) -> None:
        super().__init__()
        self.chosen_form = form

    def forward(self, x: Tensor) -> Tensor:
        if self.chosen_form == "gelu":
            return F.gelu(x)
        return x * (torch.erf(x / math.sqrt(2)) + 1) * 0.5


class Mean(nn.Linear):
    """The mean over the channels plus a constant, [N, C] to [N, 1], as a matrix product.

    XNNPACK takes means over two spatial axes only, after a transposition.
    """

    def __init__(self, channels: int, constant: float, dtype: torch.dtype) -> None:
        super().__init__(channels, 1, device="meta")
        self.weight = nn.Parameter(torch.full((1, channels), 1 / channels, dtype=dtype))
        self.bias = nn.Parameter(torch.full((1,), constant, dtype=dtype))


class Normalise(nn.Module):
    """A layer norm of [N, C] without gain and shift, which the next layer has."""

    def __init__(self, source: nn.LayerNorm, form: NormForm) -> None:
        super().__init__()
        self.chosen_form = form
        self.channels, self.eps = source.normalized_shape[0], source.eps
        self.is_native = form == "layer norm"
        if not self.is_native:
            self.mean = Mean(self.channels, 0.0, source.weight.dtype)
            self.variance = Mean(self.channels, self.eps, source.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_native:
            return F.layer_norm(x, (self.channels,), eps=self.eps)
        x = x - self.mean(x)
        return x * torch.rsqrt(self.variance(x * x))


def rolled(x: Tensor, shift: int) -> Tensor:
    """A map [H, W, C] that begins `shift` rows and columns further on, cyclically."""
    if shift == 0:
        return x
    x = torch.cat((x[shift:], x[:shift]), 0)
    return torch.cat((x[:, shift:], x[:, :shift]), 1)


class InferenceAttention(nn.Module):
    """Window attention: normalised tokens of windows [windows * 49, C] to the same, rate1 included.

    Windows and heads are the batch; one constant has the position bias and the mask.
    """

    bias: Tensor

    def __init__(self, source: WindowACmix, norm: nn.LayerNorm, mask: Tensor | None) -> None:
        super().__init__()
        dtype = source.qkv.weight.dtype
        self.heads = source.heads
        weight, bias = affine(source.qkv, norm)
        weights, biases = list(weight.chunk(3)), list(bias.chunk(3))
        scale = (weights[0].shape[0] // self.heads) ** -0.5
        weights[0], biases[0] = weights[0] * scale, biases[0] * scale
        self.q, self.k, self.v = (linear(w, b, dtype) for w, b in zip(weights, biases, strict=True))
        rate = source.rate1.double()
        self.proj = linear(source.proj.weight.double() * rate, source.proj.bias.double() * rate, dtype)
        table = source.bias().double()
        table = table[None] if mask is None else table + MASK_FACTOR * mask[:, None].double()
        self.register_buffer("bias", table.flatten(1, 2).to(dtype))

    def split(self, x: Tensor) -> Tensor:
        """[windows * 49, C] to [windows * heads, 49, C / heads]."""
        x = x.reshape(-1, TOKENS, self.heads, x.shape[-1] // self.heads)
        return x.permute(0, 2, 1, 3).reshape(-1, TOKENS, x.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        # Rank 3: with the heads as an axis of their own ExecuTorch 1.5.1 refuses this sum or computes another.
        logits = torch.bmm(q, k.transpose(1, 2)).reshape(-1, self.heads * TOKENS, TOKENS) + self.bias
        mixed = torch.bmm(logits.softmax(-1).reshape(-1, TOKENS, TOKENS), v)
        mixed = mixed.reshape(-1, self.heads, TOKENS, mixed.shape[-1]).permute(0, 2, 1, 3)
        y: Tensor = self.proj(mixed.reshape(x.shape))
        return y


class InferenceBlock(nn.Module):
    """One block: the tokens of a map [H * W, C] to the same."""

    def __init__(self, source: Block, size: Size, forms: Forms) -> None:
        super().__init__()
        dtype = source.mlp.fc1.weight.dtype
        self.size = size
        self.shift = 0 if source.attn_mask is None else SHIFT
        self.norm1 = Normalise(source.norm1, forms.norm)
        self.attention = InferenceAttention(source.attn, source.norm1, source.attn_mask)
        self.convolution = ConvolutionPath(source.attn, source.norm1, size, forms.convolution(source.attn.heads))
        self.norm2 = Normalise(source.norm2, forms.norm)
        self.fc1 = linear(*affine(source.mlp.fc1, source.norm2), dtype)
        self.gelu = Gelu(forms.gelu)
        self.fc2 = copy.deepcopy(source.mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.size
        rows, columns, channels = height // WINDOW, width // WINDOW, x.shape[-1]
        maps = rolled(self.norm1(x).reshape(height, width, channels), self.shift)
        windows = maps.reshape(rows, WINDOW, columns, WINDOW * channels).transpose(1, 2).reshape(x.shape)
        attended = self.attention(windows).reshape(rows, columns, WINDOW, WINDOW * channels).transpose(1, 2)
        mixed = attended.reshape(height, width, channels) + self.convolution(maps)
        x = x + rolled(mixed, -self.shift).reshape(x.shape)
        y: Tensor = x + self.fc2(self.gelu(self.fc1(self.norm2(x))))
        return y


class InferenceMerging(nn.Module):
    """2 x 2 tokens into one: [H * W, C] to [H * W / 4, 2 C]."""

    def __init__(self, source: PatchMerging, size: Size, forms: Forms) -> None:
        super().__init__()
        self.size = size
        self.norm = Normalise(source.norm, forms.norm)
        weight, bias = affine(source.reduction, source.norm)
        # Published channels come column by column of the 2 x 2; tokens come row by row.
        weight = weight.reshape(weight.shape[0], 2, 2, -1).transpose(1, 2).flatten(1)
        self.reduction = linear(weight, bias, source.reduction.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.size
        channels = x.shape[-1]
        x = x.reshape(height // 2, 2, width // 2, 2 * channels).transpose(1, 2).reshape(-1, 4 * channels)
        y: Tensor = self.reduction(self.norm(x))
        return y


class InferencePatches(nn.Module):
    """An image [1, 3, H, W] to the tokens of its 4 x 4 patches, [H * W / 16, C]."""

    gain: Tensor
    shift: Tensor

    def __init__(self, source: PatchEmbedding, forms: Forms) -> None:
        super().__init__()
        self.proj = copy.deepcopy(source.proj)
        self.norm = Normalise(source.norm, forms.norm)
        self.register_buffer("gain", source.norm.weight.detach().clone())
        self.register_buffer("shift", source.norm.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.proj(x).permute(0, 2, 3, 1)
        y: Tensor = self.norm(tokens.reshape(-1, tokens.shape[-1])) * self.gain + self.shift
        return y


class InferenceSwin(nn.Module):
    """The whole network for one image, [1, 3, H, W] to [1, classes], in the forms that suit `target`."""

    def __init__(
        self,
        patches: PatchEmbedding,
        stages: Sequence[tuple[Stage, Size]],
        norm: nn.LayerNorm,
        head: nn.Linear,
        target: str,
    ) -> None:
        super().__init__()
        forms = FORMS[target]
        layers: list[nn.Module] = [InferencePatches(patches, forms)]
        for stage, size in stages:
            layers += [InferenceBlock(block, size, forms) for block in stage.blocks if isinstance(block, Block)]
            if stage.downsample is not None:
                layers.append(InferenceMerging(stage.downsample, size, forms))
        self.layers = nn.Sequential(*layers)
        self.size = stages[-1][1]
        self.norm = Normalise(norm, forms.norm)
        self.head = linear(*affine(head, norm), head.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.layers(x))
        maps = tokens.reshape(1, *self.size, tokens.shape[-1]).permute(0, 3, 1, 2)
        y: Tensor = self.head(maps.mean((2, 3), keepdim=True).flatten(1))
        return y
