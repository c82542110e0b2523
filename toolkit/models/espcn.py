"""ESPCN, sub-pixel convolution (Shi et al., CVPR 2016, arXiv 1609.05158), in the form of PyTorch's own example.

The paper has three convolutions and tanh, and published no PyTorch weights. The example has four and ReLU, and its
checkpoint is the common one. Luma only: scale the two chroma planes by other means.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.spec import Claims, ModelSpec, TensorSpec

RELU_GAIN = nn.init.calculate_gain("relu")


class ESPCN(nn.Module):
    """Luma [B, 1, H, W] from 0 to 1, to the same picture [B, 1, factor H, factor W]."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 5, padding=2)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 32, 3, padding=1)
        self.conv4 = nn.Conv2d(32, factor**2, 3, padding=1)
        self.pixel_shuffle = nn.PixelShuffle(factor)
        for convolution in (self.conv1, self.conv2, self.conv3):
            nn.init.orthogonal_(convolution.weight, RELU_GAIN)
        nn.init.orthogonal_(self.conv4.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))
        y: Tensor = self.pixel_shuffle(self.conv4(x))
        return y


def _spec(name: str, factor: int, claims: Claims) -> ModelSpec:
    return ModelSpec(
        name=name,
        build=partial(ESPCN, factor),
        inputs=(TensorSpec("luma", (1, 1, 224, 224), layout="nchw"),),
        outputs=("upscaled",),
        # Preprocess says how an RGB photo becomes the input; there is no way to say luma.
        preprocess=None,
        classifies=False,
        paper="https://arxiv.org/abs/1609.05158",
        claims=claims,
    )


MODELS: dict[str, ModelSpec] = {
    "espcn_x2": _spec("espcn_x2", 2, claims=Claims(macs_note="none was published")),
    "espcn_x3": _spec("espcn_x3", 3, claims=Claims(macs_note="none was published")),
    "espcn_x4": _spec("espcn_x4", 4, claims=Claims(macs_note="none was published")),
}
