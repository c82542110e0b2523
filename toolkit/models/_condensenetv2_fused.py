"""CondenseNetV2 as it is best exported: no gather, no shuffle, no index matrix, exact for any weights.

Everything is computed in float64 and stored in the source's dtype. The learned groups, and SFR with its index
matrix (four fifths of the released form's multiplications), are dense 1 x 1 convolutions. A batch norm that
cannot be folded is a 1 x 1 depthwise convolution: one pass over the map, where multiply, add and clamp are three.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.models import _condensenetv2_algebra as algebra
from acmix.toolkit.models._condensenetv2_algebra import convolution, per_channel, pointwise
from acmix.toolkit.models._condensenetv2_grouped import grouped_convolution
from acmix.toolkit.models._condensenetv2_layers import DenseLayer, SqueezeExcite, activate

if TYPE_CHECKING:
    from acmix.toolkit.models.condensenetv2 import CondenseNetV2

POOL = 2


def spatial_mean(x: Tensor, as_pooling: bool) -> Tensor:
    """The mean of each channel, [B, C, 1, 1].

    as_pooling: by the operator that ONNX Runtime has in its blocked layout.
    """
    if as_pooling:
        return F.avg_pool2d(x, (x.shape[2], x.shape[3]))
    return x.mean((2, 3), keepdim=True)


class FusedGate(nn.Module):
    """Squeeze and excite as 1 x 1 convolutions of the map of means.

    ONNX Runtime keeps maps in blocks of channels through pooling, resizing and products of equal shapes; for a
    mean or a broadcast it leaves that layout, and so do the sums and concatenations after it.
    """

    def __init__(self, source: SqueezeExcite, target: str) -> None:
        super().__init__()
        self.in_blocks = target == "onnx"
        self.chosen_form = "pooled and resized" if self.in_blocks else "mean and broadcast"
        first, second = (source.fc.get_submodule(i) for i in ("0", "2"))
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        dtype = first.weight.dtype
        self.reduce = pointwise(first.weight, None, dtype)
        self.expand = pointwise(second.weight, None, dtype)

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.sigmoid(self.expand(F.relu(self.reduce(spatial_mean(x, self.in_blocks)))))
        if self.in_blocks:
            gates = F.interpolate(gates, (x.shape[2], x.shape[3]), mode="nearest")
        return x * gates


class FusedLayer(nn.Module):
    """One dense layer, in pieces that its block puts together.

    without_entry: the block itself gives the layer its normalised, activated input.
    """

    def __init__(self, source: DenseLayer, target: str, without_entry: bool = False) -> None:
        super().__init__()
        dtype = source.conv_1.conv.weight.dtype
        entry = algebra.entry(source.conv_1)
        scale, shift = algebra.affine(source.conv_2.norm)
        self.activation = source.conv_1.activation
        self.entry = None if without_entry else entry.norm(dtype)
        self.chosen_form = "gather in the weights" if entry.is_ordered else "gather by a 1 x 1 convolution"
        self.expand = pointwise(entry.weight * scale[:, None], shift, dtype)
        self.grow = grouped_convolution(source.conv_2.conv, target)
        self.gate = FusedGate(source.se, target) if source.has_gate else None
        self.norm = per_channel(*algebra.affine(source.sfr.norm), dtype)
        self.reactivate = pointwise(algebra.reactivation_matrix(source.sfr), None, dtype)

    def new_channels(self, x: Tensor) -> Tensor:
        """The channels that the layer adds, before pooling. x: the layer's input, or without_entry its activation."""
        entered = x if self.entry is None else activate(self.entry(x), self.activation)
        new: Tensor = self.grow(activate(self.expand(entered), self.activation))
        return new if self.gate is None else self.gate(new)

    def joined(self, x: Tensor, new: Tensor, pooled: bool = False) -> Tensor:
        """What the layer gives: x, reactivated, and the new channels. pooled: x is pooled, and the rest shall be.

        Pooling is linear, so the reactivation and the concatenation are done on a quarter of the pixels.
        """
        active = activate(self.norm(new), self.activation)
        if pooled:
            active, new = F.avg_pool2d(active, POOL), F.avg_pool2d(new, POOL)
        return torch.cat((x + self.reactivate(active), new), 1)


class FusedBlock(nn.Module):
    """The layers of one block, and the pooling that follows all but the last block."""

    def __init__(self, source: list[DenseLayer], target: str, pools: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusedLayer(layer, target) for layer in source)
        self.pools = pools

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, FusedLayer)
            new = layer.new_channels(x)
            last = self.pools and number == len(self.layers) - 1
            x = layer.joined(F.avg_pool2d(x, POOL) if last else x, new, pooled=last)
        return x


class FusedStem(nn.Module):
    """The first convolution, and a first block that has one layer: the largest maps, so the least is kept of them.

    The layer's batch norm folds into one copy of the convolution. The other copy is read by the pooling only:
    convolution and pooling are one 5 x 5 convolution of stride 4, or 6 x 5 with a row of zeros. TFLite writes the
    padding as an operator of its own, which XNNPACK merges into its only reader. Two convolutions with the same
    padding share one, and it stays: 0.4 ms for the image. So the second convolution has another padding.
    """

    def __init__(self, convolution_: nn.Conv2d, layer: DenseLayer, target: str) -> None:
        super().__init__()
        weight, dtype = convolution_.weight.double(), convolution_.weight.dtype
        matrix, shift = algebra.entry(layer.conv_1).as_matrix()
        entered = torch.einsum("oc,cikl->oikl", matrix, weight)
        self.enter = convolution(entered, shift, dtype, stride=2)
        spare = 0 if target == "onnx" else 1
        self.chosen_form = f"pooled by a {5 + spare} x 5 convolution"
        kernel = F.pad(algebra.pooled_kernel(weight), (0, 0, spare, 0))
        self.pooled = convolution(kernel, None, dtype, stride=2 * POOL, padding=(1 + spare, 1))
        self.layer = FusedLayer(layer, target, without_entry=True)

    def forward(self, image: Tensor) -> Tensor:
        new = self.layer.new_channels(activate(self.enter(image), self.layer.activation))
        pooled, rows = self.pooled(image), new.shape[2] // POOL
        if pooled.shape[2] > rows:
            # The padding for the row of zeros is there below the image too.
            pooled = pooled[:, :, :rows]
        return self.layer.joined(pooled, new, pooled=True)


class FusedCondenseNetV2(nn.Module):
    """CondenseNetV2 without index, gather or shuffle: one image [1, 3, H, W] to logits [1, classes]."""

    def __init__(self, source: CondenseNetV2, target: str) -> None:
        super().__init__()
        blocks, first = source.blocks, source.features.get_submodule("init_conv")
        assert isinstance(first, nn.Conv2d)
        dtype = first.weight.dtype
        if len(blocks[0]) == 1:
            self.stem: nn.Module = FusedStem(first, blocks.pop(0)[0], target)
        else:
            self.stem = convolution(first.weight, None, dtype, stride=2)
        self.blocks = nn.Sequential(*(FusedBlock(block, target, block is not blocks[-1]) for block in blocks))
        norm, gate = source.features.get_submodule("norm_last"), source.features.get_submodule("se_last")
        assert isinstance(norm, nn.BatchNorm2d) and isinstance(gate, SqueezeExcite)
        self.norm = per_channel(*algebra.affine(norm), dtype)
        self.gate = FusedGate(gate, target)
        self.hidden = algebra.linear(source.fc, dtype)
        self.classifier = algebra.linear(source.classifier, dtype)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.stem(image))))
        vector = self.gate(spatial_mean(x, self.gate.in_blocks)).flatten(1)
        y: Tensor = self.classifier(F.hardswish(self.hidden(vector)))
        return y
