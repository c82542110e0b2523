"""CondenseNetV2's two checkpoint forms: the masked one of training becomes the released one, without a loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix.toolkit.errors import UsageError
from acmix.toolkit.spec import StateDict

MASK = "._mask"
TRAINING_ONLY = ("._count", "._stage", MASK)
RELEASED = "Export the checkpoint of a finished training, or the one that the authors' convert script wrote."


def released_form(state: StateDict, groups: int) -> StateDict:
    """A checkpoint of either form as the released one; UsageError where it cannot be exactly that.

    groups: of every learned-group convolution.
    """
    masked = [key.removesuffix(MASK) for key in state if key.endswith(MASK)]
    adapted = {key: value for key, value in state.items() if not key.endswith(TRAINING_ONLY)}
    for layer in masked:
        if f"{layer}.conv.weight" in state:
            condense = _condense_reactivation if layer.endswith(".sfr") else _condense_convolution
            condense(adapted, layer, state[f"{layer}{MASK}"], groups)
    for key, value in adapted.items():
        if key.endswith(".conv_1.index"):
            _check_sources(key, value)
        elif key.endswith(".sfr.index"):
            _check_destinations(key, value)
    return adapted


def _condense_convolution(state: dict[str, Tensor], layer: str, mask: Tensor, groups: int) -> None:
    """Group j makes the outputs j, j + groups ... from the inputs that its mask keeps."""
    weight = _masked_weight(state, layer, mask)
    kept = _kept(layer, [weight[1][j::groups].any(0) for j in range(groups)], groups)
    parts = [weight[0][j::groups][:, kept[j]] for j in range(groups)]
    index = torch.cat(kept)
    state[f"{layer}.conv.weight"] = torch.cat(parts)[:, :, None, None]
    state[f"{layer}.index"] = index
    for name in ("weight", "bias", "running_mean", "running_var"):
        if (key := f"{layer}.norm.{name}") in state:
            state[key] = state[key][index]


def _condense_reactivation(state: dict[str, Tensor], layer: str, mask: Tensor, groups: int) -> None:
    """Group j reads the inputs j, j + groups ... and adds to the outputs that its mask keeps."""
    weight = _masked_weight(state, layer, mask)
    kept = _kept(layer, [weight[1][:, j::groups].any(1) for j in range(groups)], groups)
    parts = [weight[0][kept[j], j::groups] for j in range(groups)]
    state[f"{layer}.conv.weight"] = torch.cat(parts)[:, :, None, None]
    state[f"{layer}.index"] = F.one_hot(torch.cat(kept), weight[0].shape[0]).to(mask.dtype)


def _masked_weight(state: dict[str, Tensor], layer: str, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The weight under its mask and where the mask keeps it, both [outputs, inputs]."""
    weight = state[f"{layer}.conv.weight"]
    if weight.dim() != 4 or weight.shape != mask.shape or weight.shape[2:] != (1, 1):
        raise UsageError(
            f"{layer}.conv.weight is {list(weight.shape)} and its mask {list(mask.shape)}: a 1 x 1 convolution and a "
            f"mask of the same shape fit.\n{RELEASED}"
        )
    return (weight * mask)[:, :, 0, 0], mask[:, :, 0, 0] != 0


def _kept(layer: str, keeps: list[Tensor], groups: int) -> list[Tensor]:
    """For each group, the one channel in `groups` that it keeps; pruned ones fill up where it keeps fewer."""
    channels = keeps[0].numel()
    share = channels // groups
    if channels % groups:
        raise UsageError(
            f"{layer} has {channels} channels, which {groups} groups cannot share: another variant's checkpoint."
            "\nName the model that it was trained for: condensenetv2_a, condensenetv2_b or condensenetv2_c."
        )
    most = max(int(keep.sum()) for keep in keeps)
    if most > share:
        raise UsageError(
            f"{layer} is not pruned to the end: a group still keeps {most} of {channels} channels, and {share} are "
            f"the released network's.\n{RELEASED}"
        )
    return [(~keep).int().argsort(stable=True)[:share].sort().values for keep in keeps]


def _check_sources(key: str, index: Tensor) -> None:
    if index.is_floating_point() or index.dim() != 1 or not bool(((index >= 0) & (index < index.numel())).all()):
        raise UsageError(
            f"{key} must name {index.numel()} channels between 0 and {index.numel() - 1}, as integers; "
            f"it does not.\n{RELEASED}"
        )


def _check_destinations(key: str, index: Tensor) -> None:
    square = index.dim() == 2 and index.shape[0] == index.shape[1]
    if not square or not bool(((index == 0) | (index == 1)).all()) or not bool((index.sum(1) == 1).all()):
        raise UsageError(
            f"{key} must be a square matrix with a single 1 in each row, and 0 elsewhere; it is not.\n{RELEASED}"
        )
