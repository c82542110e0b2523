"""Leaks: a calibration photo among the evaluation's is found under any name, in any size and encoding."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acmix.calibration.arrays import ArraySamples
from acmix.calibration.builtin import PHOTOS, find
from acmix.calibration.leaks import leaks
from acmix.calibration.photos import PhotoFolder, read_photo_folder
from acmix.toolkit.errors import UsageError
from acmix.toolkit.spec import imagenet_preprocess

PREPROCESS = imagenet_preprocess(64)
FILES = [find(photo) for photo in PHOTOS]


def folder(place: Path, files: list[Path]) -> PhotoFolder:
    place.mkdir()
    for file in files:
        shutil.copy(file, place / file.name)
    return read_photo_folder(place, PREPROCESS)


def test_folders_of_different_photos_do_not_leak(tmp_path: Path) -> None:
    assert leaks(folder(tmp_path / "a", FILES[:6]), folder(tmp_path / "b", FILES[6:])) == ()


def test_a_renamed_file_is_found_by_its_bytes(tmp_path: Path) -> None:
    calibration = folder(tmp_path / "a", FILES[:6])
    folder(tmp_path / "b", FILES[6:])
    shutil.copy(FILES[0], tmp_path / "b" / "zebra.png")
    (finding,) = leaks(calibration, read_photo_folder(tmp_path / "b", PREPROCESS))
    assert (finding.kind, finding.severity) == ("leak", "warn")
    assert finding.sentence.startswith("1 of the 7 samples of b were calibrated on: zebra.png.")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_smaller_copy_in_another_encoding_is_found(tmp_path: Path, suffix: str) -> None:
    calibration = folder(tmp_path / "a", FILES)
    (tmp_path / "b").mkdir()
    for file in FILES[::3]:
        image = Image.open(file).convert("RGB")
        image.resize((image.width * 2 // 3, image.height * 2 // 3)).save(tmp_path / "b" / f"{file.stem}{suffix}")
    (finding,) = leaks(calibration, read_photo_folder(tmp_path / "b", PREPROCESS))
    assert finding.figures == {"evaluated": 4, "shared": 4, "copies": 4}
    assert "4 of them as copies of another size or encoding" in finding.sentence


def test_arrays_are_compared_by_what_the_network_gets(tmp_path: Path) -> None:
    photos = folder(tmp_path / "a", FILES[:4])
    copied = ArraySamples("copy.npz", ("0", "1"), (next(iter(photos)), (np.zeros((1, 3, 64, 64), np.float32),)))
    (finding,) = leaks(copied, photos)
    assert finding.figures == {"evaluated": 4, "shared": 1, "copies": 0}
    assert leaks(copied.pick([1]), photos) == ()


def test_a_broken_photo_is_named(tmp_path: Path) -> None:
    good, bad = folder(tmp_path / "a", FILES[:2]), folder(tmp_path / "b", FILES[2:3])
    (tmp_path / "b" / FILES[2].name).write_bytes(b"not a photo")
    with pytest.raises(UsageError, match="is not a readable photo"):
        leaks(good, bad)


def test_the_halves_of_500_photos_do_not_leak_and_their_overlap_does(photos: Path) -> None:
    whole = read_photo_folder(photos, PREPROCESS)
    tenth = whole.pick(range(0, 500, 10))
    rest = whole.pick([i for i in range(500) if i % 10])
    assert leaks(tenth, rest) == ()
    (finding,) = leaks(tenth, whole)
    assert finding.figures == {"evaluated": 500, "shared": 50, "copies": 0}
