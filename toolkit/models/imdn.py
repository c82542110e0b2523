"""IMDN, information multi-distillation (Hui et al., ACM MM 2019, arXiv 1909.11856), and its two real-time variants.

Super-resolution, RGB from 0 to 1 to the same picture enlarged. Parameter names are those of the authors' checkpoints.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from acmix.toolkit.spec import Claims, ModelSpec, Preprocess, TensorSpec

SLOPE = 0.05
REDUCTION = 16
BLOCKS = 6
RTC_BLOCKS = 5
LARGEST_JOIN = 5


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A convolution, padded so that stride 1 keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)


class Fusion(nn.Conv2d):
    """A 1 x 1 convolution of the channels of several maps."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, input: Tensor | Sequence[Tensor]) -> Tensor:
        return super().forward(input if isinstance(input, Tensor) else torch.cat(tuple(input), 1))


class TwoPartFusion(nn.Module):
    """Fusion of equally wide maps as the sum of two: LiteRT's delegate joins up to five maps, and it joins six.

    A join of joins is no way out: LiteRT's converter makes it one again.
    """

    chosen_form = "two parts"

    def __init__(self, source: Fusion, maps: int) -> None:
        super().__init__()
        self.taken = maps // 2
        channels = source.in_channels // maps * self.taken
        rest, outputs, bias = source.in_channels - channels, source.out_channels, source.bias is not None
        # On the meta device no random numbers are drawn: the caller's seed goes on as if nothing was built.
        with torch.device("meta"):
            self.first = convolution(channels, outputs, 1, bias=False)
            self.second = convolution(rest, outputs, 1, bias=bias)
        self.first.weight = nn.Parameter(source.weight[:, :channels].detach().clone())
        self.second.weight = nn.Parameter(source.weight[:, channels:].detach().clone())
        if source.bias is not None:
            self.second.bias = nn.Parameter(source.bias.detach().clone())

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        first, second = tuple(maps[: self.taken]), tuple(maps[self.taken :])
        y: Tensor = self.first(torch.cat(first, 1)) + self.second(torch.cat(second, 1))
        return y


def upsampler(channels: int, factor: int) -> nn.Sequential:
    """A convolution to factor * factor RGB values for each pixel, and their shuffle into place."""
    return nn.Sequential(convolution(channels, 3 * factor**2), nn.PixelShuffle(factor))


class ContrastAttention(nn.Module):
    """Gates each channel by its standard deviation plus its mean (section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // REDUCTION
        enter, leave = convolution(channels, narrow, 1), convolution(narrow, channels, 1)
        self.conv_du = nn.Sequential(enter, nn.ReLU(), leave, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        centred = x - mean
        # A mean of squares of the centred map: a sum over the picture overflows float16.
        contrast = torch.sqrt((centred * centred).mean((2, 3), keepdim=True))
        y: Tensor = x * self.conv_du(contrast + mean)
        return y


class Distillation(nn.Module):
    """x + 1 x 1 convolution of what each 3 x 3 convolution left behind (section 3.1).

    outputs: channels of the convolutions c1, c2 and so on; each but the last gives its first `kept` to the
    result and the rest to its successor.  active_end: the last one has an activation too.
    """

    def __init__(
        self,
        outputs: tuple[int, ...],
        kept: int,
        activation: nn.Module,
        gated: bool = False,
        active_end: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.kept = kept
        self.steps = tuple(f"c{i + 1}" for i in range(len(outputs)))
        inputs = (outputs[0], *(before - kept for before, _ in pairwise(outputs)))
        for name, taken, given in zip(self.steps, inputs, outputs, strict=True):
            self.add_module(name, convolution(taken, given, bias=bias))
        self.act = activation
        self.end = activation if active_end else nn.Identity()
        self.cca = ContrastAttention(kept * len(outputs)) if gated else None
        self.fusion = f"c{len(outputs) + 1}"
        self.add_module(self.fusion, Fusion(kept * len(outputs), outputs[0], bias))

    def forward(self, x: Tensor) -> Tensor:
        rest, distilled = x, []
        for step in self.steps[:-1]:
            maps = self.act(self.get_submodule(step)(rest))
            # Slices: ExecuTorch leaves a split outside its delegate.
            distilled.append(maps[:, : self.kept])
            rest = maps[:, self.kept :]
        distilled.append(self.end(self.get_submodule(self.steps[-1])(rest)))
        maps = distilled if self.cca is None else self.cca(torch.cat(distilled, 1))
        y: Tensor = x + self.get_submodule(self.fusion)(maps)
        return y


def quarter_distillation(channels: int, gated: bool) -> Distillation:
    """The block of IMDN and, without the gate, of IMDN-RTC: a quarter of the channels is kept at each of four steps."""
    kept = channels // 4
    return Distillation((channels, channels, channels, kept), kept, nn.LeakyReLU(SLOPE), gated)


class IMDN(nn.Module):
    """Pictures [B, 3, H, W] to [B, 3, factor H, factor W]."""

    def __init__(self, factor: int, channels: int = 64) -> None:
        super().__init__()
        self.fea_conv = convolution(3, channels)
        for i in range(BLOCKS):
            self.add_module(f"IMDB{i + 1}", quarter_distillation(channels, gated=True))
        self.c = nn.Sequential(Fusion(BLOCKS * channels, channels), nn.LeakyReLU(SLOPE))
        self.LR_conv = convolution(channels, channels)
        self.upsampler = upsampler(channels, factor)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.fea_conv(x)
        deep, maps = shallow, []
        for i in range(BLOCKS):
            deep = self.get_submodule(f"IMDB{i + 1}")(deep)
            maps.append(deep)
        y: Tensor = self.upsampler(self.LR_conv(self.c(maps)) + shallow)
        return y


class Shortcut(nn.Module):
    """x + sub(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.sub = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.sub(x)
        return y


class RealTimeIMDN(nn.Module):
    """IMDN-RTC, the authors' entry to a real-time contest: narrow and without gates."""

    def __init__(self, factor: int = 2, channels: int = 12) -> None:
        super().__init__()
        blocks = (quarter_distillation(channels, gated=False) for _ in range(RTC_BLOCKS))
        shortcut = Shortcut(*blocks, convolution(channels, channels, 1))
        self.model = nn.Sequential(convolution(3, channels), shortcut, *upsampler(channels, factor))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y


class HalfSizeIMDN(nn.Module):
    """IMDN-RTE: six blocks of six steps at half the picture's size, without biases; H and W must be even."""

    def __init__(self, factor: int = 2, channels: int = 20) -> None:
        super().__init__()
        halve = convolution(channels, channels, stride=2, bias=False)
        self.fea_conv = nn.Sequential(convolution(3, channels), nn.ReLU(), halve)
        kept = channels // 4
        outputs = (channels, channels, channels, channels - kept, channels - 2 * kept, kept)
        for i in range(BLOCKS):
            block = Distillation(outputs, kept, nn.ReLU(), active_end=True, bias=False)
            self.add_module(f"block{i + 1}", block)
        self.LR_conv = convolution(channels, channels, 1, bias=False)
        self.upsampler = upsampler(channels, 2 * factor)

    def forward(self, x: Tensor) -> Tensor:
        shallow = deep = self.fea_conv(x)
        for i in range(BLOCKS):
            deep = self.get_submodule(f"block{i + 1}")(deep)
        y: Tensor = self.upsampler(self.LR_conv(deep) + shallow)
        return y


def for_inference(module: nn.Module, target: str) -> nn.Module:
    """An equal network: for TFLite, no more than LARGEST_JOIN maps are joined at once; `module` stays as it is."""
    fused = copy.deepcopy(module).requires_grad_(False)
    if target != "tflite":
        return fused
    if isinstance(fused, IMDN) and isinstance(fused.c[0], Fusion):
        fused.c[0] = TwoPartFusion(fused.c[0], BLOCKS)
    for block in fused.modules():
        if isinstance(block, Distillation) and len(block.steps) > LARGEST_JOIN and block.cca is None:
            source = block.get_submodule(block.fusion)
            assert isinstance(source, Fusion)
            block.add_module(block.fusion, TwoPartFusion(source, len(block.steps)))
    return fused.requires_grad_(False)


def _spec(name: str, build: Callable[[], nn.Module], claims: Claims, size: tuple[int, int] = (96, 96)) -> ModelSpec:
    return ModelSpec(
        name=name,
        build=build,
        inputs=(TensorSpec("image", (1, 3, *size), layout="nchw"),),
        outputs=("upscaled",),
        preprocess=Preprocess(min(size), size, (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
        for_inference=for_inference,
        classifies=False,
        paper="https://arxiv.org/abs/1909.11856",
        claims=claims,
    )


# Published for a picture of 1280 x 720 that comes out: 158.8, 71.5 and 40.9 G. Scaled here to 96 x 96 that go in.
MODELS: dict[str, ModelSpec] = {
    "imdn_x2": _spec("imdn_x2", partial(IMDN, 2), claims=Claims(parameters=694_404, macs=6_350_000_000)),
    "imdn_x3": _spec("imdn_x3", partial(IMDN, 3), claims=Claims(parameters=703_059, macs=6_430_000_000)),
    "imdn_x4": _spec("imdn_x4", partial(IMDN, 4), claims=Claims(parameters=715_176, macs=6_540_000_000)),
    "imdn_rtc": _spec(
        "imdn_rtc",
        RealTimeIMDN,
        claims=Claims(parameters=20_190, macs_note="none was published"),
        size=(120, 180),
    ),
    "imdn_rte": _spec(
        "imdn_rte",
        HalfSizeIMDN,
        claims=Claims(parameters=89_748, macs_note="none was published"),
        size=(120, 180),
    ),
}
