"""Tiny adaptive models: a cascade of two sizes of the tiny network, and a pipeline that glances, places and focuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from acmix.apps.adaptive import chooser
from acmix.calibration.aims import parse_aim
from acmix.toolkit import catalog, pipeline
from acmix.toolkit.adaptive.artifact import AdaptiveArtifact
from acmix.toolkit.adaptive.cascade import cascade
from acmix.toolkit.adaptive.export import AdaptiveRequest, export_adaptive
from acmix.toolkit.adaptive.photos import SeededPhotos
from acmix.toolkit.adaptive.spec import AdaptiveSpec, Crop, Photo, Resize, Run, Stage, Zeros, zoo
from acmix.toolkit.request import ExportRequest, TargetRequest
from acmix.toolkit.spec import ModelSpec, TensorSpec, imagenet_preprocess

TINY = f"{Path(__file__).parents[2] / 'tiny_net.py'}:make_net"
SIDE, SMALL, CHANNELS, CLASSES = 48, 32, 8, 10


class Looker(nn.Module):
    """An image to logits, an embedding and a map: what glances and what focuses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, 2, 1), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1))
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state = self.stem(x)
        embedding = state.mean((2, 3))
        return self.head(embedding), embedding, state


class Placer(nn.Module):
    """A map and a past to a place and the next past."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Linear(2 * CHANNELS, 2)

    def forward(self, state: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.tanh(state.mean((2, 3)) * 3 + hidden)
        return torch.sigmoid(4 * self.place(torch.cat((seen, hidden), 1))), seen


class Joiner(nn.Module):
    """Two embeddings to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2 * CHANNELS, CLASSES)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat((one, other), 1))
        return logits


def pipeline_spec() -> AdaptiveSpec:
    """Glance at the whole image, then focus on one patch."""
    image = (TensorSpec("image", (1, 3, SMALL, SMALL), layout="nchw"),)
    state = TensorSpec("state", (1, CHANNELS, SMALL // 4, SMALL // 4), layout="nchw")
    looks = ("logits", "embedding", "map")
    networks = {
        "glance": ModelSpec("tiny_glance", Looker, image, looks),
        "policy": ModelSpec("tiny_policy", Placer, (state, TensorSpec("hidden", (1, CHANNELS))), ("action", "next")),
        "focus": ModelSpec("tiny_focus", Looker, image, looks),
        "head": ModelSpec("tiny_head", Joiner, tuple(TensorSpec(f"embedding_{i}", (1, CHANNELS)) for i in (1, 2))),
    }
    first = (
        Photo(imagenet_preprocess(SIDE), "image"),
        Resize("image", (SMALL, SMALL), "small"),
        Zeros((1, CHANNELS), "hidden"),
        Run("glance", ("small",), ("logits_1", "embedding_1", "state_1")),
    )
    second = (
        Run("policy", ("state_1", "hidden"), ("action", "next")),
        Crop("image", "action", (SMALL, SMALL), "patch"),
        Run("focus", ("patch",), ("unused", "embedding_2", "state_2")),
        Run("head", ("embedding_1", "embedding_2"), ("logits_2",)),
    )
    stages = (Stage("glance", first, "logits_1"), Stage("focus", second, "logits_2"))
    return AdaptiveSpec("tiny_pipeline", "tiny_pipeline", {n: zoo(s) for n, s in networks.items()}, stages)


@pytest.fixture(scope="session")
def tiny_spec() -> AdaptiveSpec:
    """The pipeline that glances, places and focuses, before any export."""
    return pipeline_spec()


def no_progress(target: str, stage: pipeline.Stage, seconds: float) -> None:
    """Nobody watches."""


def export(spec: AdaptiveSpec, targets: tuple[str, ...], out: Path, photos: int = 12) -> dict[str, AdaptiveArtifact]:
    """An adaptive model on seeded images, half of which end at the first stage."""
    requests = tuple(TargetRequest(name, catalog.load_target(name).options()) for name in targets)
    base = ExportRequest(next(iter(spec.networks.values())), catalog.load_recipe("float32"), requests, out)
    choose = chooser(parse_aim("rates=0.5,0.5"), spec.rule, 0, spec.stage_names)
    outcomes = export_adaptive(AdaptiveRequest(spec, base, SeededPhotos(photos, 3), choose), no_progress)
    assert [o.error for o in outcomes] == [""] * len(outcomes)
    return {o.target: o.artifact for o in outcomes if o.artifact is not None}


@pytest.fixture(scope="session")
def tiny_cascade(tmp_path_factory: pytest.TempPathFactory) -> AdaptiveArtifact:
    """The cascade on TFLite. Do not write into it."""
    out = tmp_path_factory.mktemp("cascade")
    return export(cascade(f"cascade:{TINY}@32,{TINY}@48", imagenet=True), ("tflite",), out)["tflite"]


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> AdaptiveArtifact:
    """The pipeline on TFLite, whose files keep channels last where eager has them first. Do not write into it."""
    return export(pipeline_spec(), ("tflite",), tmp_path_factory.mktemp("pipeline"))["tflite"]


@pytest.fixture
def copied(tiny_cascade: AdaptiveArtifact, tmp_path: Path) -> Path:
    """A folder that a test may spoil."""
    return Path(shutil.copytree(tiny_cascade.folder, tmp_path / tiny_cascade.name))


@pytest.fixture
def some_photos(tmp_path: Path) -> Path:
    """Ten seeded images as files, with labels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = ["file,label"]
    for number, photo in enumerate(SeededPhotos(10, 5)):
        Image.fromarray(photo).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{number}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def seeded() -> list[np.ndarray]:
    """A few seeded images."""
    return list(SeededPhotos(6, 1))
