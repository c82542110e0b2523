from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from acmix.targets.onnx import TARGET, OnnxOptions
from acmix.toolkit.errors import UsageError
from acmix.toolkit.recipe import Precision, Recipe, Tolerance
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Lowered, LoweringJob
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

PREPROCESS = Preprocess(36, (32, 32), (120.0, 110.0, 100.0), (60.0, 50.0, 40.0))
LABELS = ("cat", "dog", "žába")
TINY_MACS = 16 * 3 * 9 * 256 + 16 * 64 * 256 + 64 * 9 * 64 + 2 * 64 * 8 + 64 * 24 * 64 + 24 * 10


class Squeeze(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * nn.functional.hardsigmoid(self.up(torch.relu(self.down(pooled))))


class Tiny(nn.Module):
    """32 x 32 pixels to 10 logits and their pooled features, with every kind of layer of our backbones."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
            nn.Conv2d(16, 64, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU6(),
            nn.Conv2d(64, 64, 3, 2, 1, groups=64, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU6(),
            Squeeze(64),
            nn.Conv2d(64, 24, 1),
        )
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).mean((2, 3))
        return self.head(features), features


@dataclass(frozen=True)
class Exported:
    file: Path
    lowered: Lowered
    image: np.ndarray
    eager: list[np.ndarray]


def recipe(weights: Precision, activations: Precision | None = None) -> Recipe:
    return Recipe(weights, weights, activations or weights, Tolerance(60.0, 1e-5))


def job(precision: Precision, opset: int = 18) -> LoweringJob:
    return LoweringJob(
        model="tiny",
        recipe=recipe(precision),
        inputs=(TensorSpec("image", (1, 3, 32, 32), layout="nchw"),),
        outputs=(TensorSpec("logits", (1, 10)), TensorSpec("features", (1, 24))),
        options=OnnxOptions(opset),
        preprocess=PREPROCESS,
        labels=LABELS,
    )


def snr_db(reference: np.ndarray, actual: np.ndarray) -> float:
    noise = np.square(reference - actual.astype(np.float64)).sum()
    return float(10 * np.log10(np.square(reference).sum() / max(noise, 1e-30)))


def run(exported: Exported) -> list[np.ndarray]:
    with TARGET.runner(exported.file, threads=1) as infer:
        return infer([exported.image])


@pytest.fixture(scope="module")
def captured() -> tuple[torch.export.ExportedProgram, np.ndarray, list[np.ndarray]]:
    torch.manual_seed(0)
    net = Tiny().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    image = torch.randn(1, 3, 32, 32)
    program = torch.export.export(net, (image,))
    with torch.no_grad():
        eager = [output.numpy() for output in net.double()(image.double())]
    net.float()
    return program, image.numpy(), eager


@pytest.fixture(scope="module")
def float32(captured, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    program, image, eager = captured
    file = tmp_path_factory.mktemp("float32") / "model.onnx"
    return Exported(file, TARGET.lower(program, job("float32"), file), image, eager)


@pytest.fixture(scope="module")
def float16(captured, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    program, image, eager = captured
    file = tmp_path_factory.mktemp("float16") / "model.onnx"
    return Exported(file, TARGET.lower(program, job("float16"), file), image, eager)


def test_float32_agrees_with_eager_float64_on_both_outputs(float32: Exported) -> None:
    logits, features = run(float32)
    assert snr_db(float32.eager[0], logits) > 110
    assert snr_db(float32.eager[1], features) > 110
