"""GFNet's four networks: backbones that glance and focus, the policy between them, and the cascaded heads."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.models.mobilenet_v3 import LARGE, MobileNetV3

HIDDEN_CHANNELS = 256
STATE_CHANNELS = 32
EMBEDDING_CHANNELS = 1280
LAST_CHANNELS = {1.0: 960, 1.25: 1200}
"""Channels of the last feature map, by the width of the backbone."""


class Backbone(MobileNetV3):
    """MobileNetV3-Large, which both glances and focuses; state-dict keys of the official files."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__(LARGE, width)

    def pooled(self, state: Tensor) -> Tensor:
        """The embedding [N, 1280] of a last feature map, without computing the map twice."""
        return F.hardswish(self.conv_head(state.mean((2, 3), keepdim=True))).flatten(1)


class Glance(Backbone):
    """The whole image, shrunk to [N, 3, P, P], to logits [N, 1000], embedding [N, 1280] and state [N, C, P/32, P/32].

    The logits are those of the first exit; the state is the last feature map, which the policy looks at.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        state = self.feature_map(x)
        embedding = self.pooled(state)
        return self.classifier(self.dropout(embedding)), embedding, state


class Focus(Backbone):
    """A patch [N, 3, P, P], cut from the image at full size, to embedding [N, 1280] and state [N, C, P/32, P/32].

    Official files give it a classifier of its own, which nothing but the first training stage uses.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        state = self.feature_map(x)
        return self.pooled(state), state


def focus_for_inference(module: nn.Module, target: str) -> nn.Module:
    """The same Focus without its unused classifier, for any target."""
    assert isinstance(module, Focus)
    fused = copy.deepcopy(module)
    del fused.classifier
    return fused


class Policy(nn.Module):
    """Where to look next: state [N, C, P/32, P/32] and hidden [N, 256] to action [N, 2] and the next hidden.

    The action, in 0 to 1, places the patch: row floor(action[0] (S - P)), column floor(action[1] (S - P)) of an
    image of S x S.  It is the mean of the training distribution, as at test time; hidden starts as zeros.
    The critic is for training: its parameters load, and nothing reads them.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.state_encoder = nn.Sequential(
            nn.Conv2d(channels, STATE_CHANNELS, 1, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(STATE_CHANNELS * side**2, HIDDEN_CHANNELS),
            nn.ReLU(),
        )
        self.gru = nn.GRU(HIDDEN_CHANNELS, HIDDEN_CHANNELS)
        self.actor = nn.Sequential(nn.Linear(HIDDEN_CHANNELS, 2), nn.Sigmoid())
        self.critic = nn.Sequential(nn.Linear(HIDDEN_CHANNELS, 1))
        for layer in self.state_encoder:
            # torch's own start would let the state fade to a third before the GRU sees it.
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, state: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.state_encoder(state)
        _, following = self.gru(seen.unsqueeze(0), hidden.unsqueeze(0))
        return self.actor(following[0]), following[0]


class UnrolledPolicy(nn.Module):
    """Policy for inference: convolutions, linear layers and gates, with no reshape of a map and no critic."""

    def __init__(self, source: Policy) -> None:
        super().__init__()
        self.encode, linear = (copy.deepcopy(source.state_encoder[i]) for i in (0, 3))
        assert isinstance(linear, nn.Linear)
        # A linear layer of a flattened map is a convolution as large as the map. Flattening would first have to
        # undo the channels-last order that the runtimes keep maps in.
        side = math.isqrt(linear.in_features // STATE_CHANNELS)
        self.gather = _convolution(linear, side)
        read, recall, read_bias, recall_bias = source.gru.all_weights[0]
        self.read, self.recall = _linear(read, read_bias), _linear(recall, recall_bias)
        self.actor = copy.deepcopy(source.actor)

    def forward(self, state: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        n = HIDDEN_CHANNELS
        seen = F.relu(self.gather(F.relu(self.encode(state)))).flatten(1)
        read, recall = self.read(seen), self.recall(hidden)
        # Thirds in torch's order: reset, update, new.
        gates = torch.sigmoid(read[:, : 2 * n] + recall[:, : 2 * n])
        reset, update = gates[:, :n], gates[:, n:]
        new = torch.tanh(read[:, 2 * n :] + reset * recall[:, 2 * n :])
        following = new + update * (hidden - new)
        return self.actor(following), following


def policy_for_inference(module: nn.Module, target: str) -> nn.Module:
    """An equal UnrolledPolicy of a Policy, which stays as it is, for any target."""
    assert isinstance(module, Policy)
    with torch.no_grad():
        return UnrolledPolicy(module).train(module.training).requires_grad_(False)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return layer


def _convolution(linear: nn.Linear, side: int) -> nn.Conv2d:
    layer = nn.Conv2d(STATE_CHANNELS, linear.out_features, side, device="meta")
    layer.weight = nn.Parameter(linear.weight.detach().view(-1, STATE_CHANNELS, side, side).clone())
    layer.bias = nn.Parameter(linear.bias.detach().clone())
    return layer


class CascadedHead(nn.Module):
    """The classifier of exit `step`: embeddings of the glance and of every patch so far, each [N, 1280], to logits."""

    def __init__(self, step: int, classes: int = 1000) -> None:
        super().__init__()
        layer = nn.Linear(step * EMBEDDING_CHANNELS, classes)
        nn.init.normal_(layer.weight, 0, 0.01)
        nn.init.zeros_(layer.bias)
        self.key = f"fc_{step}"
        self.add_module(self.key, layer)

    def forward(self, *embeddings: Tensor) -> Tensor:
        logits: Tensor = self.get_submodule(self.key)(torch.cat(embeddings, 1))
        return logits
