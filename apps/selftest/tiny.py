"""The network that a selftest exports when it is given no artifact: small, seeded, with a mobile backbone's blocks."""

import torch
from torch import Tensor, nn

INPUT = "1x3x128x128"
REFERENCE = "acmix.apps.selftest.tiny:make_net"


class Block(nn.Module):
    """A depthwise and a pointwise convolution with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False), nn.BatchNorm2d(channels), nn.ReLU6()
        )
        self.point = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: [1, channels, H, W], and so is what comes out."""
        y: Tensor = self.point(self.depthwise(x))
        return x + y


def make_net() -> nn.Module:
    """The network with seeded weights, and statistics of its norms that are not the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), Block(16), Block(16),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 100),
        )  # fmt: skip
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                    assert tensor is not None
                    tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return net
