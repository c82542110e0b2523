"""EfficientNet-Lite0 with its own weights, made to collapse in int8: still the same network, exactly in float64."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from acmix.toolkit.checkpoint import read_checkpoint
from acmix.toolkit.models.efficientnet_lite import MODELS
from acmix.toolkit.weights import load_weights, packaged_weights

FACTOR = 100.0
CHANNEL = 3
PLACES = ((0, 1), (15, None))
"""Blocks that no residual leaves, and the block that reads them; None: the head. Only linear maps are between."""


def make_original() -> nn.Module:
    """The published network with its packaged weights."""
    spec = MODELS["efficientnet_lite0"]
    assert spec.weights is not None
    module = spec.build()
    load_weights(module, spec, read_checkpoint(packaged_weights(spec.weights)))
    return module.eval()


def make_net() -> nn.Module:
    """One channel of a projection's batch norm is 100 times as large; what reads it has weights 100 times as small."""
    return collapse(make_original())


def collapse(module: nn.Module) -> nn.Module:
    """Scale a channel between two layers, at each of PLACES; the products stay as they are."""
    with torch.no_grad():
        for writer, reader in PLACES:
            block: nn.Module = module.get_submodule(f"_blocks.{writer}")
            for name in ("_bn2.weight", "_bn2.bias"):
                _tensor(block, name)[CHANNEL] *= FACTOR
            reads = "_conv_head.weight" if reader is None else f"_blocks.{reader}._expand_conv.weight"
            _tensor(module, reads)[:, CHANNEL] /= FACTOR
    return module


def _tensor(module: nn.Module, name: str) -> Tensor:
    return dict(module.named_parameters())[name].data


COLLAPSED = replace(MODELS["efficientnet_lite0"], name="collapsed", build=make_net, weights=None)
