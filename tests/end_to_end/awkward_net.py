"""A user's own network, made of the operators that phone runtimes refuse, lack or run outside their delegates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 16
TAPS = 9


def shuffled(x: Tensor, groups: int) -> Tensor:
    """ShuffleNet's channel shuffle, as its ports spell it."""
    batch, channels, height, width = x.shape
    seen = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(seen, 1, 2).contiguous().view(batch, channels, height, width)


class Awkward(nn.Module):
    """Group norm, a cyclic shift, a reflected border, two shuffles (one that no weights can take), an unfold.

    It gives a map and scores. ExecuTorch's delegate computes two wrongly: the softmax over channels and the tanh GELU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, 2, 1)
        self.norm = nn.GroupNorm(4, CHANNELS)
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 3, groups=2)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 1, groups=2)
        self.third = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.weigh = nn.Conv2d(CHANNELS, TAPS, 1)
        self.unfold = nn.Unfold(3, padding=1)
        self.head = nn.Linear(CHANNELS, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm(self.stem(x)))
        x = torch.roll(x, (2, -1), (2, 3))
        x = self.first(F.pad(x, (1, 1, 1, 1), mode="reflect"))
        x = self.second(shuffled(x, 2))
        x = F.gelu(self.third(shuffled(F.relu(x), 4)), approximate="tanh")
        batch, channels, height, width = x.shape
        taps = self.unfold(x).view(batch, channels, TAPS, height, width)
        weights = self.weigh(x).softmax(1).view(batch, 1, TAPS, height, width)
        x = x + (taps * weights).sum(2)
        return {"features": x, "scores": self.head(x.mean((2, 3)))}


def make() -> nn.Module:
    """The network with seeded weights."""
    torch.manual_seed(0)
    return Awkward()
