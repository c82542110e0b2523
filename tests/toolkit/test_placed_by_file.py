"""Pairs placed where a saved file holds integers: who reads the integers, and who the float value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.toolkit.grid import Grid
from acmix.toolkit.int8_kernels import DEQUANTIZE
from acmix.toolkit.quantize import graph_module
from acmix.toolkit.quantized import placed_by_file, simulate
from acmix.toolkit.ranges import QuantizedTensor


class Skipped(nn.Module):
    """A hard swish that a layer and a sum read, as in MobileNetV3's first block; the sum perhaps with a relu."""

    def __init__(self, activates: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last, self.activates = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1), activates

    def forward(self, x: Tensor) -> Tensor:
        swished = F.hardswish(x)
        total = swished + self.layer(swished)
        return self.last(F.relu(total) if self.activates else total)


def placed(activates: bool, sum_is_made: bool) -> ExportedProgram:
    """As a TFLite file has it. sum_is_made: by an integer operator; else a float sum is rounded for the last layer."""
    program = torch.export.export(Skipped(activates).eval(), (torch.zeros(1, 3, 4, 4),))
    end = "relu" if activates else "add"
    tensors = (
        QuantizedTensor("hardswish", 0.02, -10, for_all=False),
        QuantizedTensor("conv2d", 0.03, 5),
        QuantizedTensor(end, 0.04, -3, for_all=sum_is_made),
    )
    return placed_by_file(program, tensors, Grid({}, frozenset(), frozenset(), frozenset({"conv2d", "conv2d_1"})))


def sum_of(program: ExportedProgram) -> Node:
    return next(n for n in graph_module(program).graph.nodes if n.target is torch.ops.aten.add.Tensor)


@pytest.mark.parametrize("activates", [False, True])
def test_a_float_sum_reads_the_float_map_though_its_result_is_rounded(activates: bool) -> None:
    reads = [one.target for one in sum_of(placed(activates, sum_is_made=False)).all_input_nodes]
    assert reads == [torch.ops.aten.hardswish.default, DEQUANTIZE]


@pytest.mark.parametrize("activates", [False, True])
def test_a_sum_of_integers_reads_the_rounded_map(activates: bool) -> None:
    reads = [one.target for one in sum_of(placed(activates, sum_is_made=True)).all_input_nodes]
    assert reads == [DEQUANTIZE, DEQUANTIZE]


def test_the_difference_is_a_rounding_of_the_map() -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)
    floats, integers = (simulate(placed(False, made))([x])[0] for made in (False, True))
    assert not np.array_equal(floats, integers)
    assert float(np.abs(floats - integers).max()) < 0.1
