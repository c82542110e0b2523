"""What each form of ACmix costs: milliseconds, float32, one thread, x86-64 with AVX-512, 1 x 1 convolutions around it.

python tests/benchmarks/acmix_forms.py   prints these tables again.
"""

from __future__ import annotations

from acmix.toolkit.layers._acmix_attention import AttentionForm
from acmix.toolkit.layers._acmix_convolution import ConvolutionForm

Case = tuple[int, int, int]
"""Channels, side of the map in pixels, stride."""


def _tiles(target: str, **costs_ms: float) -> dict[AttentionForm, float]:
    forms = {}
    for tile, cost in costs_ms.items():
        rows, columns = (int(side) for side in tile.removeprefix("t").split("x"))
        forms[AttentionForm((rows, columns), floored=target == "onnx", channels_last=target == "tflite")] = cost
    return forms


def _convolutions(target: str, dense: float, direct: float, **merged_ms: float) -> dict[ConvolutionForm, float]:
    projected = {ConvolutionForm("projected", int(n.removeprefix("m"))): cost for n, cost in merged_ms.items()}
    last = target == "tflite"
    return {ConvolutionForm("dense"): dense, ConvolutionForm("direct", channels_last=last): direct, **projected}


ATTENTION: dict[str, dict[Case, dict[AttentionForm, float]]] = {
    "tflite": {
        (64, 56, 1): _tiles("tflite", t2x7=6.92, t2x8=6.29, t2x14=5.02, t4x4=6.81, t4x7=6.27, t4x14=5.77),
        (128, 56, 2): _tiles("tflite", t4x4=7.40, t4x7=6.28, t7x7=6.82, t7x14=8.31),
        (128, 28, 1): _tiles(
            "tflite", t2x14=2.32, t4x4=3.22, t4x7=2.41, t4x14=2.59, t7x7=2.59, t7x14=2.83, t14x14=3.41
        ),
        (256, 28, 2): _tiles("tflite", t7x7=4.01, t7x14=4.02, t14x14=4.52),
        (256, 14, 1): _tiles("tflite", t7x7=1.57, t7x14=1.37, t14x14=1.35),
        (512, 14, 2): _tiles("tflite", t7x7=2.86),
        (512, 7, 1): _tiles("tflite", t7x7=1.04),
    },
    "executorch": {
        (64, 56, 1): _tiles("executorch", t2x7=6.65, t2x8=6.37, t2x14=5.66, t4x4=6.92, t4x7=6.13),
        (128, 56, 2): _tiles("executorch", t4x4=6.88, t4x7=6.39, t4x14=7.13, t7x7=7.06, t7x14=8.28),
        (128, 28, 1): _tiles("executorch", t4x4=2.83, t4x7=2.58, t4x14=3.02, t7x7=2.70, t7x14=2.85, t14x14=3.55),
        (256, 28, 2): _tiles("executorch", t7x7=4.02, t7x14=4.00, t14x14=4.35),
        (256, 14, 1): _tiles("executorch", t7x7=1.60, t7x14=1.50, t14x14=1.46),
        (512, 14, 2): _tiles("executorch", t7x7=2.78),
        (512, 7, 1): _tiles("executorch", t7x7=1.11),
    },
    "onnx": {
        (64, 56, 1): _tiles("onnx", t2x7=6.37, t2x8=5.75, t2x14=6.11, t4x4=6.40, t4x7=6.07, t4x14=7.14),
        (128, 56, 2): _tiles("onnx", t4x4=5.98, t4x7=6.33, t4x14=7.41, t7x7=6.98, t7x14=8.72, t14x14=11.92),
        (128, 28, 1): _tiles("onnx", t4x4=2.73, t4x7=2.94, t4x14=3.09, t7x7=2.93, t7x14=3.33, t14x14=4.28),
        (256, 28, 2): _tiles("onnx", t7x7=4.08, t7x14=4.26, t14x14=4.50),
        (256, 14, 1): _tiles("onnx", t7x7=1.74, t7x14=1.58, t14x14=1.55),
        (512, 14, 2): _tiles("onnx", t7x7=2.78),
        (512, 7, 1): _tiles("onnx", t7x7=1.03),
    },
}
CONVOLUTION: dict[str, dict[Case, dict[ConvolutionForm, float]]] = {
    "tflite": {
        (64, 56, 1): _convolutions("tflite", dense=8.18, direct=9.20, m1=8.10, m4=8.13),
        (128, 56, 2): _convolutions("tflite", dense=7.73, direct=9.24, m1=7.97, m4=8.02),
        (128, 28, 1): _convolutions("tflite", dense=4.49, direct=3.84, m1=3.81, m4=3.70),
        (256, 28, 2): _convolutions("tflite", dense=6.25, direct=5.76, m1=5.89, m4=5.93),
        (256, 14, 1): _convolutions("tflite", dense=3.56, direct=1.97, m1=2.14, m4=2.10),
        (512, 14, 2): _convolutions("tflite", dense=4.99, direct=3.71, m1=4.55, m4=4.52),
        (512, 7, 1): _convolutions("tflite", dense=3.51, direct=1.39, m1=1.69, m4=1.71),
    },
    "executorch": {
        (64, 56, 1): _convolutions("executorch", dense=7.22, direct=8.95, m1=7.99, m4=7.89),
        (128, 56, 2): _convolutions("executorch", dense=7.45, direct=12.58, m1=7.94, m4=8.11),
        (128, 28, 1): _convolutions("executorch", dense=3.80, direct=3.37, m1=3.34, m4=3.30),
        (256, 28, 2): _convolutions("executorch", dense=5.36, direct=7.19, m1=5.64, m4=6.33),
        (256, 14, 1): _convolutions("executorch", dense=2.77, direct=1.85, m1=2.04, m4=2.10),
        (512, 14, 2): _convolutions("executorch", dense=4.93, direct=4.56, m1=4.37, m4=4.79),
        (512, 7, 1): _convolutions("executorch", dense=3.07, direct=1.40, m1=1.75, m4=1.71),
    },
    "onnx": {
        (64, 56, 1): _convolutions("onnx", dense=8.32, direct=9.39, m1=8.48, m4=9.04),
        (128, 56, 2): _convolutions("onnx", dense=7.48, direct=9.26, m1=8.44, m4=8.55),
        (128, 28, 1): _convolutions("onnx", dense=3.98, direct=4.02, m1=3.95, m4=4.15),
        (256, 28, 2): _convolutions("onnx", dense=5.37, direct=5.92, m1=6.60, m4=6.50),
        (256, 14, 1): _convolutions("onnx", dense=2.79, direct=2.38, m1=2.32, m4=2.65),
        (512, 14, 2): _convolutions("onnx", dense=4.49, direct=4.13, m1=4.72, m4=4.71),
        (512, 7, 1): _convolutions("onnx", dense=2.76, direct=1.83, m1=1.84, m4=2.02),
    },
}
"""The whole layer by its convolution path, with the attention of the table above."""
