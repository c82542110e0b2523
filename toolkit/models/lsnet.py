"""LSNet: "see large, focus small" networks (Wang et al., CVPR 2025, arXiv 2503.23135)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = 9
SHARING = 8
HEADS = 4
KEY_CHANNELS = 16


class ConvBN(nn.Sequential):
    """A convolution without bias, padded to keep its size at stride 1, and its batch normalisation."""

    c: nn.Conv2d
    bn: nn.BatchNorm2d

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.add_module("c", conv)
        self.add_module("bn", nn.BatchNorm2d(outputs))

    def fused(self) -> nn.Conv2d:
        """The same as one convolution with bias."""
        scale, shift = _affine(self.bn)
        return _conv_like(self.c, self.c.weight.double() * _column(scale), shift)


class RepVGGDW(nn.Module):
    """Depthwise 3 x 3, depthwise 1 x 1 and the identity, summed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvBN(channels, channels, 3, groups=channels)
        self.conv1 = ConvBN(channels, channels, 1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.conv1(x) + x  # type: ignore[no-any-return]

    def fused(self) -> nn.Conv2d:
        """The three branches as one depthwise 3 x 3 convolution."""
        scale, shift = _affine(self.conv.bn)
        point_scale, point_shift = _affine(self.conv1.bn)
        weight = self.conv.c.weight.double() * _column(scale)
        weight[:, :, 1:2, 1:2] += self.conv1.c.weight.double() * _column(point_scale) + 1
        return _conv_like(self.conv.c, weight, shift + point_shift)


class SqueezeExcite(nn.Module):
    """Gate each channel by what its mean says (a quarter of the channels in between)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = _multiple_of_8(channels / 4)
        self.fc1 = nn.Conv2d(channels, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(pooled))))


class LargeKernelPerception(nn.Module):
    """Predict 9 weights per pixel for each of C / 8 channel sets (section 3.2), [B, C / 8, 9, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, sets = channels // 2, channels // SHARING
        self.cv1 = ConvBN(channels, half)
        self.cv2 = ConvBN(half, half, 7, groups=half)
        self.cv3 = ConvBN(half, half)
        self.cv4 = nn.Conv2d(half, TAPS * sets, 1)
        self.norm = nn.GroupNorm(sets, TAPS * sets)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.norm(self.cv4(F.relu(self.cv3(self.cv2(F.relu(self.cv1(x)))))))
        batch, channels, height, width = weights.shape
        return weights.view(batch, channels // TAPS, TAPS, height, width)  # type: ignore[no-any-return]


def small_kernel_aggregation(x: Tensor, weights: Tensor) -> Tensor:
    """Sum each zero-padded 3 x 3 neighbourhood of x under its own predicted weights (section 3.2).

    x: [B, C, H, W].  weights: [B, S, 9, H, W] for S sets; channel c reads set c mod S.
    """
    batch, channels, height, width = x.shape
    sets = weights.shape[1]
    padded = F.pad(x.view(batch, channels // sets, sets, height, width), (1, 1, 1, 1))
    total = torch.zeros_like(x).view(batch, channels // sets, sets, height, width)
    for tap in range(TAPS):
        top, left = divmod(tap, 3)
        total = total + padded[..., top : top + height, left : left + width] * weights[:, None, :, tap]
    return total.reshape(batch, channels, height, width)


class LSConv(nn.Module):
    """Large-small convolution: x + BN(aggregation of x under perceived weights)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lkp = LargeKernelPerception(channels)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn(small_kernel_aggregation(x, self.lkp(x)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head attention over all positions with a learned bias per distance (as in LeViT).

    resolution: (rows, columns) of its input; there is one bias per head and |dy|, |dx|.
    """

    attention_bias_idxs: Tensor

    def __init__(self, channels: int, resolution: tuple[int, int]) -> None:
        super().__init__()
        keys = HEADS * KEY_CHANNELS
        self.qkv = ConvBN(channels, 2 * keys + channels)
        self.proj = nn.Sequential(nn.ReLU(), ConvBN(channels, channels))
        self.dw = ConvBN(keys, keys, 3, groups=keys)
        self.attention_biases = nn.Parameter(torch.zeros(HEADS, math.prod(resolution)))
        self.register_buffer("attention_bias_idxs", distance_indices(resolution))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        keys, tokens = HEADS * KEY_CHANNELS, height * width
        q, k, v = self.qkv(x).split((keys, keys, channels), 1)
        q, k, v = (t.reshape(batch, HEADS, -1, tokens) for t in (self.dw(q), k, v))
        bias = self.attention_biases[:, self.attention_bias_idxs]
        scores = (q.transpose(2, 3) @ k * KEY_CHANNELS**-0.5 + bias).softmax(-1)
        return self.proj((v @ scores.transpose(2, 3)).reshape(batch, channels, height, width))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """x + m(x)."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x)  # type: ignore[no-any-return]


class FeedForward(nn.Sequential):
    """Two pointwise convolutions, twice as wide in between."""

    pw1: ConvBN
    pw2: ConvBN

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.add_module("pw1", ConvBN(channels, 2 * channels))
        self.add_module("act", nn.ReLU())
        self.add_module("pw2", ConvBN(2 * channels, channels))


class Block(nn.Module):
    """A token mixer, gated where it is convolutional, and a feed-forward network."""

    def __init__(self, channels: int, mixer: nn.Module, gated: bool) -> None:
        super().__init__()
        self.mixer = mixer
        self.se = SqueezeExcite(channels) if gated else nn.Identity()
        self.ffn = Residual(FeedForward(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.se(self.mixer(x)))  # type: ignore[no-any-return]


class BNLinear(nn.Sequential):
    """Batch normalisation of a feature vector and a linear layer."""

    bn: nn.BatchNorm1d
    l: nn.Linear  # noqa: E741

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.add_module("bn", nn.BatchNorm1d(inputs))
        self.add_module("l", nn.Linear(inputs, outputs))
        nn.init.trunc_normal_(self.l.weight, std=0.02)
        nn.init.zeros_(self.l.bias)


class LSNet(nn.Module):
    """The network in train form: [B, 3, H, W] to class scores [B, 1000].

    dims, depths: channels and blocks of the four stages, at 1/8, 1/16, 1/32 and 1/64 of size.
    size: (height, width) of the input, which fixes the resolution of the last stage's attention.
    distilled: a second head; at evaluation the two are averaged.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        distilled: bool = False,
        size: tuple[int, int] = (224, 224),
        classes: int = 1000,
    ) -> None:
        super().__init__()
        first = dims[0]
        self.patch_embed = nn.Sequential(
            ConvBN(3, first // 4, 3, 2),
            nn.ReLU(),
            ConvBN(first // 4, first // 2, 3, 2),
            nn.ReLU(),
            ConvBN(first // 2, first, 3, 2),
        )
        for stage, (channels, depth) in enumerate(zip(dims, depths, strict=True), 1):
            down = _downsample(dims[stage - 2], channels) if stage > 1 else []
            resolution = attention_resolution(size) if stage == len(dims) else None
            blocks = [_block(channels, index, resolution) for index in range(depth)]
            self.add_module(f"blocks{stage}", nn.Sequential(*down, *blocks))
        self.head = BNLinear(dims[-1], classes)
        self.head_dist = BNLinear(dims[-1], classes) if distilled else None

    def features(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to the last stage's feature map."""
        for name in ("patch_embed", "blocks1", "blocks2", "blocks3", "blocks4"):
            x = self.get_submodule(name)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.features(x).mean((2, 3))
        if self.head_dist is None:
            return self.head(pooled)  # type: ignore[no-any-return]
        return (self.head(pooled) + self.head_dist(pooled)) / 2  # type: ignore[no-any-return]


def attention_resolution(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the last stage: six halvings, rounded up."""
    return math.ceil(size[0] / 64), math.ceil(size[1] / 64)


def distance_indices(resolution: tuple[int, int]) -> Tensor:
    """[N, N] of |dy| * columns + |dx| between the N positions."""
    rows, columns = resolution
    y, x = torch.arange(rows * columns) // columns, torch.arange(rows * columns) % columns
    return (y[:, None] - y).abs() * columns + (x[:, None] - x).abs()


def _downsample(inputs: int, outputs: int) -> list[nn.Module]:
    return [ConvBN(inputs, inputs, 3, 2, groups=inputs), ConvBN(inputs, outputs)]


def _block(channels: int, index: int, resolution: tuple[int, int] | None) -> Block:
    if index % 2 == 0:
        return Block(channels, RepVGGDW(channels), gated=True)
    if resolution is None:
        return Block(channels, LSConv(channels), gated=False)
    return Block(channels, Residual(Attention(channels, resolution)), gated=False)


def _multiple_of_8(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class InferenceLSConv(nn.Module):
    """LSConv as convolutions, rank-4 elementwise operations and slices, for a batch of one.

    perceive: the first three convolutions.  The predicted kernels are tap-major (channel = tap * S + set).
    A kernel is (y - mean) * rsqrt(variance) * gamma + beta. Its constant part beta, the batch norm's shift
    and the residual are one static depthwise convolution; the batch norm's scale is applied to x.
    """

    scale: Tensor

    def __init__(self, source: LSConv) -> None:
        super().__init__()
        lkp, norm = source.lkp, source.lkp.norm
        sets = norm.num_groups
        order = torch.arange(TAPS * sets).view(sets, TAPS).t().reshape(-1)
        weight, bias = lkp.cv4.weight.double()[order], _bias(lkp.cv4)[order]
        gamma, beta = norm.weight.double()[order], norm.bias.double()[order]
        scale, shift = _affine(source.bn)
        self.perceive = nn.Sequential(lkp.cv1.fused(), nn.ReLU(), lkp.cv2.fused(), lkp.cv3.fused(), nn.ReLU())
        same_set = torch.eye(sets, dtype=torch.float64).repeat(TAPS, 1)
        average = same_set @ same_set.t() / TAPS
        self.predict = _pointwise(weight, bias, lkp.cv4)
        self.mean = _pointwise(torch.einsum("oi,ichw->ochw", average, weight), average @ bias, lkp.cv4)
        pooling = (same_set.t() / TAPS)[..., None, None]
        self.variance = _pointwise(pooling, torch.full((sets,), norm.eps, dtype=torch.float64), lkp.cv4)
        self.spread = _pointwise((same_set * gamma[:, None])[..., None, None], torch.zeros_like(gamma), lkp.cv4)
        constant = beta.view(TAPS, sets).t().repeat(SHARING, 1) * scale[:, None]
        constant[:, TAPS // 2] += 1
        self.constant = _depthwise(constant.view(-1, 1, 3, 3), shift, lkp.cv2.c)
        self.register_buffer("scale", scale.view(1, -1, 1, 1).to(lkp.cv4.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        perceived = self.perceive(x)
        centred = self.predict(perceived) - self.mean(perceived.mean((2, 3), keepdim=True))
        variance = self.variance((centred * centred).mean((2, 3), keepdim=True))
        kernels = centred * self.spread(torch.rsqrt(variance))
        return self.constant(x) + aggregate(x * self.scale, kernels)  # type: ignore[no-any-return]


def aggregate(x: Tensor, kernels: Tensor) -> Tensor:
    """small_kernel_aggregation for one image and tap-major kernels, channels innermost.

    x: [1, C, H, W].  kernels: [1, 9 S, H, W].  Only pad, slice, multiply and add remain, of rank 4.
    """
    _, channels, height, width = x.shape
    sets = kernels.shape[1] // TAPS
    x = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).reshape(height + 2, width + 2, channels // sets, sets)
    kernels = kernels.permute(0, 2, 3, 1).reshape(height, width, TAPS, sets)
    total = None
    for tap in range(TAPS):
        top, left = divmod(tap, 3)
        term = x[top : top + height, left : left + width] * kernels[:, :, tap : tap + 1]
        total = term if total is None else total + term
    assert total is not None
    return total.reshape(1, height, width, channels).permute(0, 3, 1, 2)


class InferenceAttention(nn.Module):
    """Attention with its bias as a constant and the scale of q folded into the convolution of q."""

    bias: Tensor

    def __init__(self, source: Attention) -> None:
        super().__init__()
        self.qkv = source.qkv.fused()
        dw = source.dw.fused()
        self.dw = _conv_like(source.dw.c, dw.weight.double() * KEY_CHANNELS**-0.5, _bias(dw) * KEY_CHANNELS**-0.5)
        self.proj = nn.Sequential(nn.ReLU(), source.proj[1].fused())  # type: ignore[operator, union-attr]
        self.register_buffer("bias", source.attention_biases[:, source.attention_bias_idxs].detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        keys, tokens = HEADS * KEY_CHANNELS, height * width
        qkv = self.qkv(x)
        q = self.dw(qkv[:, :keys]).reshape(HEADS, KEY_CHANNELS, tokens).transpose(1, 2)
        k = qkv[:, keys : 2 * keys].reshape(HEADS, KEY_CHANNELS, tokens)
        v = qkv[:, 2 * keys :].reshape(HEADS, channels // HEADS, tokens)
        scores = (torch.bmm(q, k) + self.bias).softmax(-1)
        return self.proj(torch.bmm(v, scores.transpose(1, 2)).reshape(1, channels, height, width))  # type: ignore[no-any-return]


class InferenceLSNet(nn.Module):
    """What for_inference makes of LSNet: the same layers fused, one linear head."""

    def __init__(self, source: LSNet) -> None:
        super().__init__()
        self.stages = nn.Sequential(source.patch_embed, source.blocks1, source.blocks2, source.blocks3, source.blocks4)
        self.stages = _fuse(self.stages)
        heads = [head for head in (source.head, source.head_dist) if head is not None]
        weights, biases = zip(*(_head(head) for head in heads), strict=True)
        self.head = _linear(torch.stack(weights).mean(0), torch.stack(biases).mean(0), source.head.l)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x).mean((2, 3), keepdim=True).flatten(1))  # type: ignore[no-any-return]


def for_inference(module: nn.Module) -> nn.Module:
    """An equal network for one image at a time; the argument stays as it is."""
    if not isinstance(module, LSNet):
        raise TypeError(f"for_inference of LSNet was given a {type(module).__name__}")
    with torch.no_grad():
        return InferenceLSNet(module).eval()


def _fuse(module: nn.Module) -> nn.Module:
    match module:
        case ConvBN() | RepVGGDW():
            return module.fused()
        case LSConv():
            return InferenceLSConv(module)
        case Attention():
            return InferenceAttention(module)
    clone = copy.copy(module)
    clone._modules = {name: _fuse(child) for name, child in module.named_children()}
    if not clone._modules:
        return copy.deepcopy(module)
    return clone


def _head(head: BNLinear) -> tuple[Tensor, Tensor]:
    scale, shift = _affine(head.bn)
    weight = head.l.weight.double()
    return weight * scale, head.l.bias.double() + weight @ shift


def _affine(bn: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift, in float64, of a batch norm at evaluation."""
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    return scale, bn.bias.double() - bn.running_mean.double() * scale


def _column(vector: Tensor) -> Tensor:
    return vector.view(-1, 1, 1, 1)


def _bias(conv):
    return conv.bias.double()


def _conv_like(like, weight, bias):
    conv = nn.utils.skip_init(
        nn.Conv2d,
        weight.shape[1] * like.groups,
        weight.shape[0],
        weight.shape[2],
        like.stride,
        like.padding,
        groups=like.groups,
    )
    conv.weight = nn.Parameter(weight.to(like.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(like.weight.dtype), requires_grad=False)
    return conv


def _pointwise(weight, bias, like):
    conv = nn.utils.skip_init(nn.Conv2d, weight.shape[1], weight.shape[0], 1)
    conv.weight = nn.Parameter(weight.to(like.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(like.weight.dtype), requires_grad=False)
    return conv


def _depthwise(weight, bias, like):
    conv = nn.utils.skip_init(
        nn.Conv2d,
        weight.shape[0],
        weight.shape[0],
        weight.shape[2],
        padding=weight.shape[2] // 2,
        groups=weight.shape[0],
    )
    conv.weight = nn.Parameter(weight.to(like.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(like.weight.dtype), requires_grad=False)
    return conv


def _linear(weight, bias, like):
    l = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    l.weight = nn.Parameter(weight.to(like.weight.dtype), requires_grad=False)
    l.bias = nn.Parameter(bias.to(like.weight.dtype), requires_grad=False)
    return l
