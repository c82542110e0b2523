"""--calibration: each kind of source gives the samples that were put in, and says what is wrong otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acmix.calibration.builtin import CROPS, PHOTOS, builtin_photos
from acmix.calibration.checks import check_samples
from acmix.calibration.photos import normalise, pixels
from acmix.calibration.sources import for_photos, read_calibration
from acmix.toolkit.errors import UsageError
from acmix.toolkit.samples import digest_of
from acmix.toolkit.spec import Preprocess, TensorSpec

PLAIN = Preprocess(40, (32, 32), (127.0, 127.0, 127.0), (128.0, 64.0, 32.0))
IMAGE = (TensorSpec("image", (1, 3, 32, 32), layout="nchw"),)
PAIR = (TensorSpec("left", (1, 4)), TensorSpec("index", (1, 2), "int64"))


def arrays(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32)).astype(np.float32)


def function(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(f"import random\nimport numpy as np\nimport torch\n\n{body}\n", encoding="utf-8")
    return f"{folder / 'mine.py'}:give"


def test_a_photo_folder_is_read_with_the_evaluations_own_preprocessing(tmp_path: Path) -> None:
    for i in range(6):
        Image.new("RGB", (50, 60), (40 * i, 10, 10)).save(tmp_path / f"{i}.png")
    samples = read_calibration(str(tmp_path), IMAGE, PLAIN, limit=3)
    assert samples.identifiers == ("0.png", "2.png", "4.png")
    expected = [normalise(pixels(tmp_path / name, PLAIN), PLAIN) for name in samples.identifiers]
    np.testing.assert_array_equal(np.stack([inputs[0] for inputs in samples]), expected)


def test_a_lone_array_belongs_to_the_lone_input_under_any_name(tmp_path: Path) -> None:
    data = arrays(10)
    np.save(tmp_path / "a.npy", data)
    np.savez(tmp_path / "a.npz", whatever=data.astype(np.float64))
    for file in ("a.npy", "a.npz"):
        samples = read_calibration(str(tmp_path / file), IMAGE, None, limit=4)
        assert samples.identifiers == ("0", "2", "5", "7")
        np.testing.assert_array_equal(np.concatenate([x for (x,) in samples]), data[[0, 2, 5, 7]])
    assert read_calibration(str(tmp_path / "a.npy"), IMAGE, None).name == "a.npy"


def test_a_bool_input_takes_bools_and_nothing_else(tmp_path: Path) -> None:
    spec = (TensorSpec("mask", (1, 4), "bool"),)
    mask = np.array([[True, False, True, True], [False, False, False, True]])
    np.save(tmp_path / "a.npy", mask)
    samples = read_calibration(str(tmp_path / "a.npy"), spec, None)
    np.testing.assert_array_equal(np.concatenate([x for (x,) in samples]), mask)
    assert next(iter(samples))[0].dtype == np.bool_
    check_samples(samples, spec, None)
    np.save(tmp_path / "a.npy", mask.astype(np.int64))
    with pytest.raises(UsageError, match=r"is of int64; 'mask' takes bool.\nGive values as the network takes them\.$"):
        read_calibration(str(tmp_path / "a.npy"), spec, None)


def test_several_inputs_are_found_by_name(tmp_path: Path) -> None:
    left, index = np.ones((3, 4), np.float32), np.arange(6, dtype=np.int32).reshape(3, 2)
    np.savez(tmp_path / "a.npz", index=index, left=left)
    samples = list(read_calibration(str(tmp_path / "a.npz"), PAIR, None))
    assert [(a.shape, b.dtype, b.tolist()) for a, b in samples][1] == ((1, 4), np.int64, [[2, 3]])


def test_photos_as_uint8_arrays_are_normalised(tmp_path: Path) -> None:
    photos = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", photos)
    (first,), _ = read_calibration(str(tmp_path / "a.npy"), IMAGE, PLAIN)
    np.testing.assert_allclose(first[0, 2, 5, 7], (float(photos[0, 5, 7, 2]) - 127) / 32, rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (arrays(1)[0], r"lacks the axis that counts the samples: array\[None\]"),
        (arrays(2).transpose(0, 2, 3, 1), r"channels are last: array.transpose\(0, 3, 1, 2\)"),
        (arrays(2)[:, :, :16], "each is 3x32x32"),
        (np.zeros((2, 3, 32, 32), np.uint8), "is of uint8; 'image' takes float32"),
        (np.full((2, 3, 32, 32), np.nan), "holds NaN or infinity"),
        (arrays(0), "holds no sample"),
        (np.float32(1.0), "holds no sample"),
        (np.array([{}, {}]), "cannot be read: .*numbers only"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(tmp_path: Path, array: np.ndarray, sentence: str) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(UsageError, match=f"(?s){sentence}"):
        read_calibration(str(tmp_path / "a.npy"), IMAGE, PLAIN)


def test_files_with_other_arrays_or_damage_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, left=np.ones((3, 4)))
    with pytest.raises(UsageError, match=r"holds \['left'\]; the model takes \['index', 'left'\]"):
        read_calibration(str(file), PAIR, None)
    np.savez(file, left=np.ones((3, 4)), index=np.ones((2, 2), int))
    with pytest.raises(UsageError, match=r"'left': 3, 'index': 2.* counts the same samples"):
        read_calibration(str(file), PAIR, None)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UsageError, match="cannot be read"):
        read_calibration(str(file), PAIR, None)
    with pytest.raises(UsageError, match=r"(?s)there is no file .*numpy.savez\('gone.npz', image=array\)"):
        read_calibration(str(tmp_path / "gone.npz"), IMAGE, None)


@pytest.mark.parametrize(
    "body",
    [
        "def give():\n    return [torch.full((3, 32, 32), float(i)) for i in range(5)]",
        "def give():\n    for i in range(5):\n        yield np.full((1, 3, 32, 32), float(i))",
        "def give():\n    yield torch.arange(5.0)[:, None, None, None].expand(5, 3, 32, 32)",
        "give = [(np.full((3, 32, 32), i, np.float16),) for i in range(5)]",
        "def give():\n    i = 0\n    while True:\n        yield torch.full((3, 32, 32), float(i), requires_grad=True)\n"
        "        i += 1",
    ],
    ids=["tensors", "generator", "batch", "list", "endless"],
)
def test_a_python_function_gives_its_first_samples(tmp_path: Path, body: str) -> None:
    samples = read_calibration(function(tmp_path, body), IMAGE, None, limit=4)
    assert [inputs[0].shape for inputs in samples] == [(1, 3, 32, 32)] * 4
    assert [float(inputs[0].max()) for inputs in samples] == [0.0, 1.0, 2.0, 3.0]
    assert samples.identifiers == ("0", "1", "2", "3")


def test_random_numbers_of_a_function_are_seeded_and_ours_are_left_alone(tmp_path: Path) -> None:
    reference = function(
        tmp_path,
        "def give():\n    noise = torch.rand(3, 32, 32) + random.random() + torch.from_numpy(np.random.rand(1))\n"
        "    return [noise]",
    )
    before = np.random.get_state()[1]
    first, again, other = (read_calibration(reference, IMAGE, None, seed=seed).digest for seed in (1, 1, 2))
    assert first == again != other
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            "def give():\n    return [(np.zeros((3, 32, 32)), 7)]",
            r"has 2 arrays; the model takes 1.*not \(image, label\)",
        ),
        ("def give():\n    return 3", "gave a int, which cannot be iterated over"),
        ("def give():\n    return []", "gave no sample"),
        ("def give():\n    return ['a']", "is a str.*Yield an array"),
        ("def give():\n    return [torch.zeros(3, 32, 32, dtype=torch.bfloat16)]", "does not become an array"),
        ("def give():\n    yield 1 / 0", "ZeroDivisionError.*mine.py:6: yield 1 / 0"),
        ("def take():\n    return []", "has no 'give'"),
    ],
)
def test_a_function_that_fails_or_does_not_fit_is_refused(tmp_path: Path, body: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){sentence}"):
        read_calibration(function(tmp_path, body), IMAGE, None)


def test_builtin_photos_are_the_same_for_a_seed_and_their_first_crop_is_the_evaluations() -> None:
    samples = read_calibration("builtin", IMAGE, PLAIN)
    assert len(samples) == CROPS * len(PHOTOS)
    assert digest_of(samples) == digest_of(read_calibration("builtin", IMAGE, PLAIN))
    assert samples.digest != read_calibration("builtin", IMAGE, PLAIN, seed=1).digest
    everything = list(samples)
    assert {inputs[0].shape for inputs in everything} == {(1, 3, 32, 32)}
    china = samples.identifiers.index("china/0")
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image("china.jpg"))
    width, height = image.size
    small = np.asarray(image.resize((round(width * 40 / height), 40), Image.Resampling.BICUBIC))
    left = (small.shape[1] - 32) // 2
    np.testing.assert_array_equal(everything[china][0], normalise(small[4:36, left : left + 32], PLAIN))


def test_few_builtin_samples_still_come_from_every_photo() -> None:
    names = read_calibration("builtin", IMAGE, PLAIN, limit=len(PHOTOS)).identifiers
    assert len({name.split("/")[0] for name in names}) == len(PHOTOS)


def test_a_package_without_its_photos_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acmix.calibration.builtin.PHOTOS", ("no_such_package/data/cat.png",))
    with pytest.raises(UsageError, match=r"data/cat.png of no_such_package.*\n.*acmix\[calibration\]"):
        builtin_photos(PLAIN)


@pytest.mark.parametrize("reference", ["builtin", "."])
def test_photos_for_a_model_without_an_image_input_are_refused(reference: str) -> None:
    with pytest.raises(UsageError, match="has no preprocessing"):
        read_calibration(reference, IMAGE, None)
    with pytest.raises(UsageError, match="the model takes 1x4 of float32, 1x2 of int64"):
        read_calibration(reference, PAIR, PLAIN)


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        (TensorSpec("image", (1, 3, 48, 48)), "1x3x32x32 of float32, and the model takes 1x3x48x48 of float32"),
        (TensorSpec("image", (1, 3, 32, 32), "int32"), "and the model takes 1x3x32x32 of int32"),
    ],
)
def test_photos_of_another_size_or_type_are_refused_under_their_flag(taken: TensorSpec, said: str) -> None:
    assert for_photos("--data photos", IMAGE, PLAIN) is PLAIN
    with pytest.raises(UsageError, match=f"--data photos: photos become one input .*{said}") as refused:
        for_photos("--data photos", (taken,), PLAIN)
    assert "take --precision w8a8" in str(refused.value)
    with pytest.raises(UsageError, match=r"Give arrays instead: --calibration samples\.npz"):
        for_photos("--calibration photos", (taken,), PLAIN)


def test_a_reference_to_nothing_names_what_there_could_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)names nothing that is there.*or builtin"):
        read_calibration(str(tmp_path / "gone"), IMAGE, PLAIN)
    with pytest.raises(UsageError, match=r"there is no file gone\.py"):
        read_calibration("gone.py:give", IMAGE, PLAIN)
    with pytest.raises(UsageError, match="--calibration-count 0"):
        read_calibration("builtin", IMAGE, PLAIN, limit=0)
