"""CondenseNetV2's indices and shuffles as matrices: what its fused layers are computed from, all in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.models._condensenetv2_layers import LearnedGroupConv, MaskedConv, Reactivation


def affine(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm at evaluation."""
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    return scale, bn.bias.double() - bn.running_mean.double() * scale


def convolution(
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    stride: int = 1,
    padding: int | tuple[int, int] | None = None,
    groups: int = 1,
) -> nn.Conv2d:
    """A convolution of these values; without `padding`, an odd square kernel of stride 1 keeps the size."""
    outputs, inputs, *kernel = weight.shape
    padding = kernel[0] // 2 if padding is None else padding
    # On the meta device no random numbers are drawn: the caller's seed goes on as if nothing was built.
    conv = nn.Conv2d(
        inputs * groups,
        outputs,
        (kernel[0], kernel[1]),
        stride,
        padding,
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    # Contiguous: litert-torch writes the values of another layer for a transposed weight.
    conv.weight = nn.Parameter(weight.to(dtype, copy=True, memory_format=torch.contiguous_format))
    conv.bias = None if bias is None else nn.Parameter(bias.to(dtype, copy=True))
    return conv


def pointwise(matrix: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Conv2d:
    """A 1 x 1 convolution by a matrix [outputs, inputs]."""
    return convolution(matrix[:, :, None, None], bias, dtype)


def per_channel(scale: Tensor, shift: Tensor, dtype: torch.dtype) -> nn.Conv2d:
    """scale * x + shift. XNNPACK runs a 1 x 1 depthwise convolution as one multiply-add-clamp pass."""
    return convolution(scale[:, None, None, None], shift, dtype, groups=scale.numel())


def linear(source: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    """A copy of a linear layer."""
    copy = nn.Linear(source.in_features, source.out_features, device="meta")
    copy.weight = nn.Parameter(source.weight.to(dtype, copy=True))
    copy.bias = nn.Parameter(source.bias.to(dtype, copy=True))
    return copy


@dataclass(frozen=True)
class Entry:
    """The first half of a learned-group convolution without its groups: gather, scale and shift, then a matrix.

    channels: before the gather.  index, scale, shift: [n], of the n different channels after it.
    weight: [outputs, n], to be applied to their activations.
    """

    channels: int

    index: Tensor
    scale: Tensor
    shift: Tensor
    weight: Tensor

    @property
    def is_ordered(self) -> bool:
        """Whether the gather moves nothing: entry channel c is input channel c."""
        return torch.equal(self.index, torch.arange(self.channels))

    def as_matrix(self) -> tuple[Tensor, Tensor]:
        """Gather, scale and shift as a matrix [n, channels] and a shift."""
        return F.one_hot(self.index, self.channels).double() * self.scale[:, None], self.shift

    def norm(self, dtype: torch.dtype) -> nn.Conv2d:
        """Gather, scale and shift as a convolution: depthwise where nothing moves."""
        if self.is_ordered:
            return per_channel(self.scale, self.shift, dtype)
        return pointwise(*self.as_matrix(), dtype)


def entry(source: LearnedGroupConv | MaskedConv) -> Entry:
    """How either form of a learned-group convolution begins, its groups and its shuffle in one matrix."""
    scale, shift = affine(source.norm)
    if isinstance(source, MaskedConv):
        return Entry(scale.numel(), torch.arange(scale.numel()), scale, shift, _masked(source))
    weight = _ungrouped(source)
    index, channels = source.index, scale.numel()
    readers = F.one_hot(index, channels).double()
    first = readers.argmax(0)
    if torch.equal(scale[first][index], scale) and torch.equal(shift[first][index], shift):
        used = readers.any(0)
        return Entry(channels, torch.arange(channels), scale[first] * used, shift[first] * used, weight @ readers)
    # Released files repeat a channel's batch norm wherever it is read. For any other file, channels are told
    # apart by all three values.
    triples = torch.stack((index.double(), scale, shift), 1)
    distinct, member = torch.unique(triples, dim=0, return_inverse=True)
    merged = weight @ F.one_hot(member, len(distinct)).double()
    return Entry(channels, distinct[:, 0].long(), distinct[:, 1], distinct[:, 2], merged)


def block_diagonal(blocks: Tensor) -> Tensor:
    """[groups, rows, columns] as one matrix [groups * rows, groups * columns], zeros between the blocks."""
    groups, rows, columns = blocks.shape
    eye = torch.eye(groups, dtype=blocks.dtype)
    return (eye[:, None, :, None] * blocks[:, :, None]).reshape(groups * rows, groups * columns)


def _grouped_matrix(source: LearnedGroupConv | Reactivation) -> Tensor:
    """The grouped 1 x 1 convolution alone as a matrix [outputs, inputs]."""
    weight, groups = source.conv.weight.double(), source.conv.groups
    return block_diagonal(weight.reshape(groups, -1, weight.shape[1]))


def _ungrouped(source: LearnedGroupConv) -> Tensor:
    """The grouped convolution and the shuffle after it as a matrix [outputs, inputs]."""
    matrix = _grouped_matrix(source)
    outputs, inputs = matrix.shape
    return matrix.reshape(source.conv.groups, -1, inputs).transpose(0, 1).reshape(outputs, inputs)


def reactivation_matrix(source: Reactivation | MaskedConv) -> Tensor:
    """Either form of SFR, behind its activation, as a matrix [outputs, inputs]."""
    if isinstance(source, MaskedConv):
        return _masked(source)
    matrix = _grouped_matrix(source)
    outputs, inputs = matrix.shape
    # Group j reads the inputs j, j + groups, ...: the shuffle, taken back.
    matrix = matrix.reshape(outputs, source.conv.groups, -1).transpose(1, 2).reshape(outputs, inputs)
    return torch.zeros_like(matrix).index_add(0, source.destination, matrix)


def _masked(source: MaskedConv) -> Tensor:
    return (source.conv.weight.double() * source.get_buffer("_mask").double())[:, :, 0, 0]


def pooled_kernel(weight: Tensor) -> Tensor:
    """The kernel of stride 4 that equals a 3 x 3 kernel of stride 2 and the mean of 2 x 2 after it."""
    shifts = [(0, 2, 0, 2), (2, 0, 0, 2), (0, 2, 2, 0), (2, 0, 2, 0)]
    return torch.stack([F.pad(weight, shift) for shift in shifts]).mean(0)
