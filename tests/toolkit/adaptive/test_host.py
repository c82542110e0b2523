"""Host steps against torch, and against Pillow and numpy written out; views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from acmix.calibration.photos import normalise, pixels
from acmix.toolkit.adaptive import host
from acmix.toolkit.errors import GateError
from acmix.toolkit.spec import Preprocess, imagenet_preprocess


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(90, 140), (140, 90), (20, 300), (73, 110), (110, 73), (74, 400), (292, 389)])
def test_a_photo_is_resized_cropped_and_normalised_and_single_models_get_the_same(
    interpolation: str, size: tuple[int, int], tmp_path: Path
) -> None:
    preprocess = Preprocess(73, (64, 60), (120.0, 110.0, 100.0), (58.0, 57.0, 60.0), interpolation)  # type: ignore[arg-type]
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = tmp_path / "photo.png"
    Image.fromarray(photo).save(file)
    found = host.normalised(host.fitted(photo, preprocess), preprocess)
    height, width = size
    # The short side to 73, then the middle 64 by 60.
    tall, wide = round(height * 73 / min(size)), round(width * 73 / min(size))
    kind = Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    large = np.asarray(Image.fromarray(photo).resize((wide, tall), kind))
    top, left = (tall - 64) // 2, (wide - 60) // 2
    middle = large[top : top + 64, left : left + 60]
    np.testing.assert_array_equal(host.fitted(photo, preprocess), middle)
    wanted = (middle.astype(np.float64) - preprocess.mean) / preprocess.std
    np.testing.assert_allclose(found[0], wanted, rtol=1e-6, atol=1e-6)
    single = normalise(pixels(file, preprocess), preprocess)
    assert single.flags.c_contiguous
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), single)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_resizing_is_torchs_bicubic_between_aligned_corners(layout: host.ImageLayout) -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 200)).astype(np.float32)
    wanted = F.interpolate(torch.from_numpy(image).double(), (96, 128), mode="bicubic", align_corners=True).numpy()
    given = image if layout == "nchw" else np.ascontiguousarray(image.transpose(0, 2, 3, 1))
    found = host.resized(given, layout, (96, 128))
    found = found if layout == "nchw" else found.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_corners_are_those_of_the_published_pipeline() -> None:
    actions = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    actions[:4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 1.0], [0.9999999, 0.0]])
    wanted = torch.floor(actions * (224 - 96)).int().tolist()
    found = [host.corner(action.numpy()[None], (224, 224), (96, 96)) for action in actions]
    assert found == [tuple(row) for row in wanted]
    assert found[1] == (128, 128)


@pytest.mark.parametrize("place", [(float("nan"), 0.5), (0.5, -0.01), (1.001, 0.5), (float("inf"), 0.0)])
def test_a_predicted_place_that_is_none_is_refused(place: tuple[float, float]) -> None:
    with pytest.raises(GateError, match=r"a place is two numbers from 0 to 1.\n.*acmix verify"):
        host.corner(np.asarray([place], np.float32), (224, 224), (96, 96))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_patch_is_a_view_of_the_image(layout: host.ImageLayout) -> None:
    shape = (1, 3, 10, 12) if layout == "nchw" else (1, 10, 12, 3)
    image = np.arange(360, dtype=np.float32).reshape(shape)
    patch = host.patch(image, layout, (2, 5), (4, 6))
    assert np.shares_memory(patch, image)
    rows = image[0].transpose(1, 2, 0) if layout == "nchw" else image[0]
    found = patch[0].transpose(1, 2, 0) if layout == "nchw" else patch[0]
    np.testing.assert_array_equal(found, rows[2:6, 5:11])


def test_normalising_does_not_touch_the_photo() -> None:
    photo = np.full((40, 40, 3), 7, np.uint8)
    host.normalised(photo, imagenet_preprocess(32))
    assert (photo == 7).all()
