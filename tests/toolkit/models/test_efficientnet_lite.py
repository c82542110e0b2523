"""EfficientNet-Lite: TensorFlow's padding, another implementation's logits, and real photos."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from acmix.toolkit.checkpoint import read_checkpoint
from acmix.toolkit.models.efficientnet_lite import MODELS, EfficientNetLite, SameConv2d, same_padding
from acmix.toolkit.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Preprocess
from acmix.toolkit.weights import load_weights, packaged_weights

PHOTOS = Path(__file__).resolve().parents[4] / "shared" / "data" / "imagenet_sample"

# First four logits, norm and argmax on the golden input, in float64, of the PyPI package
# efficientnet-lite-pytorch 0.1.0 (an architecture by others) with the same checkpoints.
OTHER_IMPLEMENTATION = {
    "efficientnet_lite0": ((-1.45425, -0.25825, -1.7763, -2.69033), 44.90598, 905),
    "efficientnet_lite1": ((-0.86319, 0.72789, -0.84266, -1.14742), 37.03987, 92),
    "efficientnet_lite2": ((-0.73183, 0.58483, -0.88415, -1.75121), 39.36174, 916),
}


def trained(spec: ModelSpec) -> nn.Module:
    """The network with its packaged checkpoint; a skip where the package is not installed."""
    assert spec.weights is not None
    pytest.importorskip(spec.weights.distribution.replace("-", "_"), reason="pip install 'acmix[weights]'")
    module = spec.build()
    report = load_weights(module, spec, read_checkpoint(packaged_weights(spec.weights)))
    assert report.loaded == len(module.state_dict()) and not report.ignored
    return module.eval()


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", range(5, 12))
def test_same_padding_is_the_least_that_keeps_ceil_of_size_over_stride(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    outputs = [(size + total - kernel) // stride + 1 for total in range(12)]
    wanted = -(-size // stride)
    least = 0 if outputs[0] >= wanted else outputs.index(wanted)
    assert (before + after, after - before) == (least, least % 2)


@pytest.mark.parametrize("height", [7, 8])
@pytest.mark.parametrize("width", [8, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_every_convolution_equals_one_on_a_padded_image(height: int, width: int, kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = SameConv2d(2, 4, kernel, stride, groups=2).double()
    x = torch.randn(1, 2, height, width, dtype=torch.float64)
    rows, columns = same_padding(height, kernel, stride), same_padding(width, kernel, stride)
    canvas = torch.zeros(1, 2, height + sum(rows), width + sum(columns), dtype=torch.float64)
    canvas[:, :, rows[0] : rows[0] + height, columns[0] : columns[0] + width] = x
    with torch.no_grad():
        assert torch.allclose(layer(x), F.conv2d(canvas, layer.weight, stride=stride, groups=2), atol=1e-12)


@pytest.mark.parametrize(("size", "pads"), [(224, 5), (97, 0)])
def test_only_uneven_padding_is_left_in_the_graph(size: int, pads: int) -> None:
    program = torch.export.export(EfficientNetLite().eval(), (torch.zeros(1, 3, size, size),))
    assert sum(node.target == torch.ops.aten.pad.default for node in program.graph.nodes) == pads


@pytest.mark.parametrize("name", MODELS)
def test_the_logits_are_those_of_another_implementation(
    name: str, golden_input: Callable[[tuple[int, ...]], Tensor]
) -> None:
    module = trained(MODELS[name]).double()
    first, norm, argmax = OTHER_IMPLEMENTATION[name]
    with torch.no_grad():
        logits = module(golden_input(MODELS[name].inputs[0].shape).double())[0]
    assert logits[:4].tolist() == pytest.approx(first, abs=1e-5)
    assert float(logits.norm()) == pytest.approx(norm, abs=1e-5)
    assert int(logits.argmax()) == argmax


def read_photo(path: Path, wanted: Preprocess) -> Tensor:
    """The preprocessing that the spec describes, done here with Pillow alone."""
    photo = Image.open(path).convert("RGB")
    scale = wanted.resize_short / min(photo.size)
    photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
    height, width = wanted.crop
    left, top = (photo.width - width) // 2, (photo.height - height) // 2
    pixels = np.asarray(photo.crop((left, top, left + width, top + height)), np.float32)
    normal = (pixels - np.float32(wanted.mean)) / np.float32(wanted.std)
    return torch.from_numpy(normal).permute(2, 0, 1)


@pytest.fixture(scope="module")
def photos() -> list[tuple[Path, int]]:
    """Twenty photos of as many classes; a skip where they are not."""
    if not PHOTOS.is_dir():
        pytest.skip("the labelled photos are not beside this checkout (shared/data/imagenet_sample)")
    with (PHOTOS / "labels.csv").open(newline="") as file:
        return [(PHOTOS / row["file"], int(row["label"])) for row in csv.DictReader(file)][::25]


def test_lite0_recognises_at_least_sixteen_of_twenty_photos(photos: list[tuple[Path, int]]) -> None:
    spec = MODELS["efficientnet_lite0"]
    assert spec.preprocess is not None and len(photos) == 20
    batch = torch.stack([read_photo(path, spec.preprocess) for path, _ in photos])
    with torch.no_grad():
        guesses = trained(spec)(batch).argmax(1).tolist()
    assert sum(guess == label for guess, (_, label) in zip(guesses, photos, strict=True)) >= 16


@pytest.mark.parametrize(
    ("mean", "std"), [((0.0,) * 3, (255.0,) * 3), (IMAGENET_MEAN, IMAGENET_STD), ((127.0,) * 3, (64.0,) * 3)]
)
def test_lite0_is_surer_of_the_labels_than_with_other_pixel_statistics(
    photos: list[tuple[Path, int]], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    spec = MODELS["efficientnet_lite0"]
    assert spec.preprocess is not None
    module = trained(spec)
    labels = torch.tensor([label for _, label in photos])
    losses = []
    for preprocess in (spec.preprocess, replace(spec.preprocess, mean=mean, std=std)):
        with torch.no_grad():
            logits = module(torch.stack([read_photo(path, preprocess) for path, _ in photos]))
        losses.append(float(F.cross_entropy(logits, labels)))
    assert losses[0] < losses[1]


@pytest.mark.parametrize("name", MODELS)
def test_random_logits_have_a_scale_and_follow_the_input(name: str) -> None:
    torch.manual_seed(0)
    module = MODELS[name].build().eval()
    with torch.no_grad():
        logits = module(torch.randn(2, 3, 96, 96))
    assert 0.1 < float(logits.std()) < 100
    assert float((logits[0] - logits[1]).std()) > 0.05
