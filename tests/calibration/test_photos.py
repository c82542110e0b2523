"""Photos: pixels that can be worked out by hand, labels from both layouts, and broken folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acmix.calibration.photos import normalise, pixels, read_photo_folder
from acmix.calibration.preprocessing import read_preprocess
from acmix.toolkit.errors import UsageError
from acmix.toolkit.execute import on_pixel_grid, to_pixels
from acmix.toolkit.spec import Preprocess, TensorSpec, imagenet_preprocess

PLAIN = Preprocess(8, (4, 6), (127.0, 127.0, 127.0), (128.0, 64.0, 32.0))
INPUT = (TensorSpec("image", (1, 3, 224, 224), layout="nchw"),)


def paint(path: Path, width: int = 16, height: int = 8, colour: tuple[int, int, int] = (255, 127, 0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)
    return path


def test_the_centre_is_cropped_after_the_short_side_is_resized(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 16), (0, 0, 0))
    image.paste((255, 255, 255), (16, 0, 32, 16))
    image.save(tmp_path / "half.png")
    cut = pixels(tmp_path / "half.png", PLAIN)
    assert cut.shape == (4, 6, 3)
    assert cut[:, :2].max() < 30
    assert cut[:, 4:].min() > 225


def test_values_are_pixel_minus_mean_over_std_in_rgb_order(tmp_path: Path) -> None:
    values = normalise(pixels(paint(tmp_path / "a.png"), PLAIN), PLAIN)
    assert values.shape == (1, 3, 4, 6)
    np.testing.assert_allclose(values[0, :, 0, 0], [1.0, 0.0, -127 / 32])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (9, 9), (200, 200, 200)).convert(mode).save(path)
    assert pixels(path, PLAIN).shape == (4, 6, 3)


def test_pixels_survive_the_way_through_the_network_input(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    values = normalise(image, PLAIN)
    np.testing.assert_array_equal(to_pixels(values, PLAIN)[0], image)
    np.testing.assert_allclose(on_pixel_grid(values, PLAIN), values, rtol=1e-6)


def test_labels_come_from_labels_csv(tmp_path: Path) -> None:
    paint(tmp_path / "b.png")
    paint(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,label\nb.png,7\na.png,3\n", encoding="utf-8")
    folder = read_photo_folder(tmp_path, PLAIN)
    assert folder.identifiers == ("b.png", "a.png")
    assert folder.labels == (7, 3)


def test_labels_come_from_class_folders(tmp_path: Path) -> None:
    for name in ("10/a.png", "9/b.png"):
        paint(tmp_path / name)
    assert read_photo_folder(tmp_path, PLAIN).labels == (10, 9)
    paint(tmp_path / "cat/c.png")
    assert read_photo_folder(tmp_path, PLAIN).labels == (0, 1, 2)


def test_photos_without_labels_are_fine(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    folder = read_photo_folder(tmp_path, PLAIN)
    assert folder.labels is None
    assert [inputs[0].shape for inputs in folder] == [(1, 3, 4, 6)]


def test_the_first_few_are_spread_over_the_folder(tmp_path: Path) -> None:
    for i in range(10):
        paint(tmp_path / f"{i}" / f"{i}.png")
    few = read_photo_folder(tmp_path, PLAIN).first(3)
    assert few.labels == (0, 3, 6)
    assert len(read_photo_folder(tmp_path, PLAIN).first(99)) == 10


def test_the_digest_is_of_the_photos_in_their_order(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    before = read_photo_folder(tmp_path, PLAIN).digest
    paint(tmp_path / "a.png", colour=(1, 2, 3))
    assert read_photo_folder(tmp_path, PLAIN).digest != before


@pytest.mark.parametrize(
    ("csv", "sentence"),
    [
        ("name,label\na.png,1\n", "needs the columns file and label"),
        ("file,label\na.png,cat\n", "a whole number as label"),
        ("file,label\ngone.png,1\n", "'gone.png', which is not there"),
    ],
)
def test_a_malformed_labels_file_is_refused(tmp_path: Path, csv: str, sentence: str) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(csv, encoding="utf-8")
    with pytest.raises(UsageError, match=sentence):
        read_photo_folder(tmp_path, PLAIN)


def test_an_empty_folder_and_a_broken_photo_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no photo"):
        read_photo_folder(tmp_path, PLAIN)
    (tmp_path / "a.jpg").write_bytes(b"not a photo")
    with pytest.raises(UsageError, match=r"a\.jpg is not a readable photo"):
        list(read_photo_folder(tmp_path, PLAIN))


def test_imagenet_preprocessing_is_known_by_name() -> None:
    assert read_preprocess("imagenet", INPUT) == imagenet_preprocess(224)


def test_a_preprocessing_of_the_users_own_is_toml(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'resize_short = 232\ncrop = [224, 224]\nmean = [0, 0, 0]\nstd = [255, 255, 255]\ninterpolation = "bilinear"\n',
        encoding="utf-8",
    )
    assert read_preprocess(str(file), INPUT) == Preprocess(232, (224, 224), (0, 0, 0), (255, 255, 255), "bilinear")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("resize_short = 232\n", "missing required field"),
        ("resize_short = 8\ncrop = [8, 8]\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n", "crops to"),
        ("resize_short = 8\ncrop = [224, 224]\nmean = [0, 0, 0]\nstd = [0, 1, 1]\n", "std is above 0"),
        ("=", "is no preprocessing"),
    ],
)
def test_a_malformed_preprocessing_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=sentence):
        read_preprocess(str(tmp_path / "mine.toml"), INPUT)
