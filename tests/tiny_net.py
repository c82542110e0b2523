"""The smallest network with every block that a mobile backbone has; exported by its path, like a user's own."""

import torch
from torch import Tensor, nn


class TinyNet(nn.Module):
    """Strided, depthwise and pointwise convolutions, batch norms, gating, a residual and a linear head."""

    def __init__(self, classes: int = 2000) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.point = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(x)
        x = x + self.point(y * self.gate(y))
        return self.head(x.mean((2, 3)))


def make_net() -> nn.Module:
    """A tiny network with seeded weights and statistics that are not the identity."""
    generator = torch.Generator().manual_seed(1)
    net = TinyNet()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return net


def make_branching() -> nn.Module:
    """A network that torch.export refuses: its path depends on a value."""

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return x
            return x * 2

    return Branching()


def make_middle_cumsum() -> nn.Module:
    """A network with an operator that no phone delegate takes."""

    class MiddleCumsum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.cumsum(2) * 0.1)

    return MiddleCumsum()


def make_number() -> int:
    """No network at all."""
    return 7


NOT_A_MODEL = 7
