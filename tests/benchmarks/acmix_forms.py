"""What each form of ACmix costs on this host: the measurements behind toolkit/layers/_acmix_costs.py.

python tests/benchmarks/acmix_forms.py [--case 64,56,1 ...] [--target tflite ...] [--path attention,convolution]
                                       [--tile 8x8 ...] [--runs 40]

A case is channels, map size, stride.  float32, one thread, the median of all runs; each form stands between two
1 x 1 convolutions, as in a network, so that changes of layout at its ends count.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from acmix.toolkit import catalog
from acmix.toolkit.layers._acmix_attention import AttentionForm, TiledAttention
from acmix.toolkit.layers._acmix_choice import choose_attention
from acmix.toolkit.layers._acmix_convolution import ConvolutionForm
from acmix.toolkit.layers._acmix_inference import build_form, frozen_projection, scaled_queries
from acmix.toolkit.layers.acmix import ACmix
from acmix.toolkit.spec import TensorSpec
from acmix.toolkit.target import LoweringJob

CASES = ("64,56,1", "128,56,2", "128,28,1", "256,28,2", "256,14,1", "512,14,2", "512,7,1")
TARGETS = ("tflite", "onnx", "executorch")
TILES = ("2x14", "4x4", "4x7", "4x14", "7x7", "4x8", "8x8", "7x14", "14x14")
MERGED = (1, 4)
WARM_UP_RUNS = 4

Case = tuple[int, int, int]
Forms = Iterator[tuple[str, nn.Module]]


class BetweenConvolutions(nn.Module):
    """The form where a network has it."""

    def __init__(self, channels: int, form: nn.Module) -> None:
        super().__init__()
        self.before, self.form, self.after = nn.Conv2d(channels, channels, 1), form, nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.form(self.before(x).relu()).relu())
        return y


class AttentionPath(nn.Module):
    """Attention with its three projections, without the rest of the layer."""

    def __init__(self, layer: ACmix, inputs: tuple[int, ...], form: AttentionForm) -> None:
        super().__init__()
        self.q = scaled_queries(layer, layer.stride)
        self.k, self.v = frozen_projection(layer.conv2), frozen_projection(layer.conv3)
        self.attention = TiledAttention(layer, inputs, form)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(self.q(x), self.k(x), self.v(x))
        return y


def attention_forms(layer: ACmix, inputs: tuple[int, ...], target: str, tiles: list[str]) -> Forms:
    """The attention path by its tile."""
    queries = -(-inputs[2] // layer.stride)
    for tile in tiles or [t for t in TILES if all(queries % side == 0 for side in sides(t)) and sides(t)[0] <= 14]:
        form = AttentionForm(sides(tile), floored=target == "onnx", channels_last=target == "tflite")
        yield str(form), AttentionPath(layer, inputs, form)


def sides(tile: str) -> tuple[int, int]:
    """Rows and columns of "7x14"."""
    rows, columns = (int(side) for side in tile.split("x"))
    return rows, columns


def convolution_forms(layer: ACmix, inputs: tuple[int, ...], target: str, tiles: list[str]) -> Forms:
    """The whole layer by its convolution path, with the attention that it gets: some forms share the projections."""
    attention = choose_attention(layer, target, inputs)
    forms = [ConvolutionForm("dense"), ConvolutionForm("direct", channels_last=target == "tflite")]
    forms += [ConvolutionForm("projected", merged) for merged in MERGED if layer.head_channels % merged == 0]
    for form in forms:
        yield str(form), build_form(layer, inputs, (attention, form))


PATHS = {"attention": attention_forms, "convolution": convolution_forms}


def latency_ms(target_name: str, module: nn.Module, shape: tuple[int, ...], runs: int) -> float:
    """Lower the module and run it: the median."""
    target = catalog.load_target(target_name)
    x = torch.zeros(shape)
    with torch.no_grad():
        program = torch.export.export(module.eval(), (x,))
        outputs = tuple(module(x).shape)
    job = LoweringJob(
        "form",
        catalog.load_recipe("float32"),
        (TensorSpec("image", shape, layout="nchw"),),
        (TensorSpec("output", outputs, layout="nchw"),),
        target.options(),
    )
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if target_name == "tflite":
        image = image.transpose(0, 2, 3, 1).copy()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model{target.suffix}"
        target.lower(program, job, file)
        with target.runner(file, 1) as run:
            return statistics.median(list(_seconds(run, image, runs))) * 1e3


def _seconds(run: object, image: np.ndarray, runs: int) -> Iterator[float]:
    assert callable(run)
    for index in range(WARM_UP_RUNS + runs):
        started = time.perf_counter()
        run([image])
        if index >= WARM_UP_RUNS:
            yield time.perf_counter() - started


def measure(case: Case, path: str, target: str, tiles: list[str], runs: int) -> Iterator[tuple[str, float]]:
    """Each form of one path and its latency; the 1 x 1 convolutions around it are included."""
    channels, size, stride = case
    torch.manual_seed(0)
    layer = ACmix(channels, stride=stride)
    for name, form in PATHS[path](layer, (1, channels, size, size), target, tiles):
        yield name, latency_ms(target, BetweenConvolutions(channels, form), (1, channels, size, size), runs)


def main() -> None:
    """Measure and print one line a form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", nargs="*", default=CASES)
    parser.add_argument("--target", nargs="*", default=TARGETS)
    parser.add_argument("--path", nargs="*", default=tuple(PATHS))
    parser.add_argument("--tile", nargs="*", default=[])
    parser.add_argument("--runs", type=int, default=40)
    arguments = parser.parse_args()
    for text in arguments.case:
        channels, size, stride = (int(part) for part in text.split(","))
        for target in arguments.target:
            for path in arguments.path:
                for name, cost in measure((channels, size, stride), path, target, arguments.tile, arguments.runs):
                    label = f"{channels:4} x {size:2}^2 / {stride}"
                    print(f"{label}  {target:11} {path:11} {name:48} {cost:7.2f} ms", flush=True)


if __name__ == "__main__":
    main()
