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


def _convolutions(dense: float, **merged_ms: float) -> dict[ConvolutionForm, float]:
    projected = {ConvolutionForm("projected", int(n.removeprefix("m"))): cost for n, cost in merged_ms.items()}
    return {ConvolutionForm("dense"): dense, **projected}


ATTENTION: dict[str, dict[Case, dict[AttentionForm, float]]] = {
    "tflite": {
        (64, 56, 1): _tiles("tflite", t4x4=7.06, t4x7=6.49, t4x14=6.26, t7x7=6.76, t7x14=7.22, t8x8=6.93, t14x14=9.21),
        (128, 56, 2): _tiles("tflite", t4x4=7.40, t4x7=6.28, t7x7=6.82, t7x14=8.31),
        (128, 28, 1): _tiles("tflite", t4x4=3.22, t4x7=2.50, t4x14=2.59, t7x7=2.59, t7x14=2.83, t14x14=3.41),
        (256, 28, 2): _tiles("tflite", t7x7=4.01, t7x14=4.02, t14x14=4.52),
        (256, 14, 1): _tiles("tflite", t7x7=1.57, t7x14=1.37, t14x14=1.35),
        (512, 14, 2): _tiles("tflite", t7x7=2.86),
        (512, 7, 1): _tiles("tflite", t7x7=1.04),
    },
    "executorch": {
        (64, 56, 1): _tiles("executorch", t4x4=6.90, t4x7=6.08, t4x14=6.39, t7x7=6.68, t7x14=7.47, t8x8=6.89),
        (128, 56, 2): _tiles("executorch", t4x4=6.88, t4x7=6.39, t4x14=7.13, t7x7=7.06, t7x14=8.28),
        (128, 28, 1): _tiles("executorch", t4x4=2.83, t4x7=2.58, t4x14=3.02, t7x7=2.70, t7x14=2.85, t14x14=3.55),
        (256, 28, 2): _tiles("executorch", t7x7=4.02, t7x14=4.00, t14x14=4.35),
        (256, 14, 1): _tiles("executorch", t7x7=1.60, t7x14=1.50, t14x14=1.46),
        (512, 14, 2): _tiles("executorch", t7x7=2.78),
        (512, 7, 1): _tiles("executorch", t7x7=1.11),
    },
    "onnx": {
        (64, 56, 1): _tiles("onnx", t4x4=6.39, t4x7=6.50, t4x8=6.72, t4x14=7.32, t7x7=7.22, t8x8=7.59, t14x14=11.86),
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
        (64, 56, 1): _convolutions(2.64, m1=2.59, m4=2.58, m16=5.55),
        (128, 56, 2): _convolutions(3.16, m1=3.46, m4=3.22, m16=4.85),
        (128, 28, 1): _convolutions(2.54, m1=1.59, m4=1.66, m16=3.18),
        (256, 28, 2): _convolutions(3.12, m1=2.77, m4=2.76, m16=3.70),
        (256, 14, 1): _convolutions(2.58, m1=1.15, m4=1.20, m16=1.82),
        (512, 14, 2): _convolutions(3.19, m1=2.49, m4=2.60, m16=3.07),
        (512, 7, 1): _convolutions(2.73, m1=1.01, m4=1.00, m16=1.39),
    },
    "executorch": {
        (64, 56, 1): _convolutions(2.13, m1=2.47, m2=2.23, m4=2.13, m8=2.74, m16=4.19),
        (128, 56, 2): _convolutions(2.74, m1=3.51, m4=3.41, m16=4.38),
        (128, 28, 1): _convolutions(1.95, m1=1.38, m4=1.36, m16=2.42),
        (256, 28, 2): _convolutions(2.67, m1=2.75, m4=2.78, m16=3.26),
        (256, 14, 1): _convolutions(2.03, m1=1.04, m4=1.11, m16=1.59),
        (512, 14, 2): _convolutions(2.75, m1=2.49, m4=2.57, m16=2.87),
        (512, 7, 1): _convolutions(2.41, m1=0.99, m4=1.11, m16=1.41),
    },
    "onnx": {
        (64, 56, 1): _convolutions(1.93, m1=2.87, m2=3.05, m4=3.50, m8=4.40, m16=3.84),
        (128, 56, 2): _convolutions(2.43, m1=8.67, m4=9.03, m16=8.07),
        (128, 28, 1): _convolutions(1.84, m1=1.82, m4=2.10, m16=2.34),
        (256, 28, 2): _convolutions(2.43, m1=3.46, m4=3.70, m16=3.21),
        (256, 14, 1): _convolutions(1.84, m1=1.48, m4=1.63, m16=1.53),
        (512, 14, 2): _convolutions(2.53, m1=3.01, m4=3.11, m16=2.74),
        (512, 7, 1): _convolutions(2.08, m1=1.30, m4=1.47, m16=1.27),
    },
}
