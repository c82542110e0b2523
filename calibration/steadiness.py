"""Steadiness: what a quantized program keeps of its outputs when its float operators stray as far as runtimes' do.

Integers are computed to the last bit (acmix.toolkit.int8_kernels), and every runtime gives the same. A softmax or a
sigmoid between them is not: each runtime has its own, right to a few units of float32's last place. One value beside
a rounding edge then falls on its other side, and in a deep network most values behind it follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from acmix.toolkit.grid import ACTIVATIONS, MOVES, Grid
from acmix.toolkit.int8_kernels import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE, with_kernels
from acmix.toolkit.prepare import flat_tensors
from acmix.toolkit.quantize import with_pairs
from acmix.toolkit.samples import Samples
from acmix.toolkit.target import Array, Int8Kernels
from acmix.toolkit.verify import SNR_LIMIT_DB, snr_db

STRAY = 1e-6
"""Relative: eight units of float32's last place, as far as sums of some hundred products differ by their order."""
KERNELS: Int8Kernels = "xnnpack"
EXACT = MOVES | ACTIVATIONS | {torch.ops.aten.cat.default, torch.ops.aten.pad.default}
"""Give back values that they were given."""


def steady_db(program: ExportedProgram, grid: Grid, samples: Samples) -> float:
    """The least signal-to-noise ratio, over outputs and samples, between two runs whose float operators differ.

    SNR_LIMIT_DB where no float operator stands before a rounding: then there is nothing to stray.
    """
    module = with_kernels(with_pairs(program, grid), KERNELS)
    if not _reaches_integers(module):
        return SNR_LIMIT_DB
    runs = [_outputs(_Straying(module, seed), samples) for seed in (None, 0)]
    ratios = [snr_db(one, other) for pair in zip(*runs, strict=True) for one, other in zip(*pair, strict=True)]
    return min((ratio for ratio in ratios if ratio is not None), default=SNR_LIMIT_DB)


def _outputs(run: _Straying, samples: Samples) -> list[list[Array]]:
    with torch.no_grad():
        return [run.outputs(sample) for sample in samples]


def _strays(node: Node) -> bool:
    return node.op == "call_function" and node.target not in EXACT | {QUANTIZE, DEQUANTIZE, DEQUANTIZE_CHANNELS}


def _reaches_integers(module: GraphModule) -> bool:
    """Whether what a float operator gives is rounded to integers somewhere."""
    found: set[Node] = set()
    for node in module.graph.nodes:
        if _strays(node) or any(source in found for source in node.all_input_nodes):
            if node.target is QUANTIZE:
                return True
            found.add(node)
    return False


class _Straying(fx.Interpreter):
    """Runs a program of kernels. seed: of the noise on the results of float operators; None for none."""

    def __init__(self, module: GraphModule, seed: int | None) -> None:
        super().__init__(module)
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def outputs(self, inputs: Sequence[Array]) -> list[Array]:
        tensors = [torch.from_numpy(np.array(array)) for array in inputs]
        return [t.contiguous().numpy() for t in flat_tensors(self.run(*tensors, enable_io_processing=False))]

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if self.generator is None or not _strays(n) or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value * (1 + STRAY * torch.randn(value.shape, generator=self.generator))
