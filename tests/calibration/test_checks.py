"""Checks of calibration samples: what is wrong is found, and natural pictures pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acmix.calibration.arrays import ArraySamples
from acmix.calibration.checks import Finding, RangesOf, check_samples, compare_ranges, require_fit, sufficiency
from acmix.calibration.sources import read_calibration
from acmix.toolkit.errors import UsageError
from acmix.toolkit.spec import Preprocess, TensorSpec, imagenet_preprocess

SIZE = 64
IMAGE = (TensorSpec("image", (1, 3, SIZE, SIZE), layout="nchw"),)
VECTOR = (TensorSpec("vector", (1, 5)),)
IMAGENET = imagenet_preprocess(SIZE)
RNG = np.random.default_rng(0)


def samples(arrays: np.ndarray | list[np.ndarray]) -> ArraySamples:
    made = tuple((np.asarray(array, np.float32)[None],) for array in arrays)
    return ArraySamples("made", tuple(str(i) for i in range(len(made))), made)


def builtin(count: int = 24) -> list[np.ndarray]:
    return [inputs[0][0] for inputs in read_calibration("builtin", IMAGE, IMAGENET, limit=count)]


def found(arrays: np.ndarray | list[np.ndarray], preprocess: Preprocess | None = IMAGENET) -> dict[str, Finding]:
    return {finding.kind: finding for finding in check_samples(samples(arrays), IMAGE, preprocess)}


def enlarged_noise() -> np.ndarray:
    pixels = RNG.integers(0, 256, (SIZE * 5 // 8, SIZE * 5 // 8, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.NEAREST), np.float64)
    return image.transpose(2, 0, 1) / 64 - 2


def test_the_builtin_photos_pass() -> None:
    everything = read_calibration("builtin", (TensorSpec("image", (1, 3, 160, 160)),), imagenet_preprocess(160))
    assert check_samples(everything, (TensorSpec("image", (1, 3, 160, 160)),), imagenet_preprocess(160)) == ()


def test_500_photos_pass_light_or_dark(photos: Path) -> None:
    normal = read_calibration(str(photos), IMAGE, IMAGENET, limit=500)
    assert check_samples(normal, IMAGE, IMAGENET) == ()
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (IMAGENET.mean, IMAGENET.std))
    dark = [((np.round(x[0] * std + mean) // 20) - mean) / std for (x,) in normal.pick(range(0, 500, 5))]
    assert "noise" not in found(dark)
    assert "rough" not in found(dark)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_noise_is_refused_before_anything_runs(kind: str) -> None:
    draw = RNG.uniform(-2, 2, (16, 3, SIZE, SIZE)) if kind == "uniform" else RNG.standard_normal((16, 3, SIZE, SIZE))
    finding = found(list(draw))["noise"]
    assert finding.severity == "refuse"
    assert finding.sentence.startswith("16 of its 16 images are noise: neighbouring pixels correlate by")
    assert abs(finding.figures["neighbour_correlation"]) < 0.05


def test_noise_as_png_files_is_refused_like_arrays(tmp_path: Path) -> None:
    for i in range(4):
        Image.fromarray(RNG.integers(0, 256, (100, 120, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    findings = check_samples(read_calibration(str(tmp_path), IMAGE, IMAGENET), IMAGE, IMAGENET)
    assert [(f.kind, f.severity) for f in findings] == [("noise", "refuse")]


def test_some_noise_among_photos_is_warned_of_by_name() -> None:
    mixed = [*builtin(12), RNG.uniform(-2, 2, (3, SIZE, SIZE))]
    finding = found(mixed)["noise"]
    assert (finding.severity, finding.sentence) == ("warn", "1 of its 13 images are noise: 12.")


def test_enlarged_noise_is_warned_of_because_fine_print_looks_the_same() -> None:
    finding = found([enlarged_noise() for _ in range(6)])["rough"]
    assert finding.severity == "warn"
    assert "noise or very fine print" in finding.sentence


def test_smooth_gradients_and_coarse_pictures_are_not_noise() -> None:
    down, across = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    gradients = [np.stack([a * across + b * down for a, b in RNG.normal(size=(3, 2))]) for _ in range(8)]
    blocks = [np.kron(RNG.uniform(-2, 2, (3, 4, 4)), np.ones((SIZE // 4, SIZE // 4))) for _ in range(8)]
    assert found(gradients + blocks, None) == {}


def test_a_single_sample_is_refused_whatever_its_shape() -> None:
    assert found(builtin(1))["single"].sentence == "it holds a single sample, whose ranges fit that one alone."
    vectors = check_samples(samples([np.arange(5.0)]), VECTOR, None)
    assert [(f.kind, f.severity) for f in vectors] == [("single", "refuse")]


def test_copies_of_one_picture_are_a_single_one() -> None:
    photo = builtin(1)[0]
    copies = [photo, photo, photo + RNG.normal(0, 0.02, photo.shape), photo * 0.8 + 0.1]
    finding = found(copies)["single"]
    assert finding.severity == "refuse"
    assert finding.figures == {"samples": 4, "distinct": 1}


def test_many_copies_among_several_pictures_are_warned_of() -> None:
    photos = builtin(12)[:4]
    finding = found(photos * 2)["duplicates"]
    assert (finding.severity, finding.sentence) == ("warn", "only 4 of its 8 samples are distinct pictures.")
    assert "duplicates" not in found([*photos, photos[0]])


def test_constant_images_are_refused_when_there_is_nothing_else() -> None:
    greys = [np.full((3, SIZE, SIZE), value) for value in (-1.0, 0.0, 1.0)]
    assert found(greys)["constant"].severity == "refuse"
    finding = found([*builtin(6), *greys])["constant"]
    assert (finding.severity, finding.sentence) == ("warn", "3 of its 9 images hold one value only.")


BYTES = Preprocess(SIZE, (SIZE, SIZE), (0, 0, 0), (1, 1, 1))
LITE = Preprocess(SIZE, (SIZE, SIZE), (127, 127, 127), (128, 128, 128))


@pytest.mark.parametrize("wanted", [IMAGENET, LITE, BYTES], ids=["imagenet", "lite", "bytes"])
@pytest.mark.parametrize("given", ["imagenet", "bytes", "unit"])
def test_values_of_another_preprocessing_are_recognised(wanted: Preprocess, given: str) -> None:
    mean, std = (np.asarray(v)[:, None, None] for v in (IMAGENET.mean, IMAGENET.std))
    pixels = [np.clip(np.round(photo * std + mean), 0, 255) for photo in builtin(12)]
    arrays = {"imagenet": [(p - mean) / std for p in pixels], "bytes": pixels, "unit": [p / 255 for p in pixels]}
    findings = found(arrays[given], wanted)
    if (given, wanted) in [("imagenet", IMAGENET), ("bytes", BYTES)]:
        assert findings == {}
        return
    looks = {"bytes": "pixels of 0 to 255", "unit": "pixels divided by 255", "imagenet": "normalised values"}
    sentence = findings["value_range"].sentence
    assert findings["value_range"].severity == "warn"
    if (given, wanted) != ("imagenet", LITE):
        assert sentence.endswith(f"they look like {looks[given]}.")


def test_unfit_samples_stop_the_export_unless_they_are_accepted() -> None:
    findings = check_samples(samples(RNG.uniform(-2, 2, (8, 3, SIZE, SIZE))), IMAGE, IMAGENET)
    with pytest.raises(
        UsageError, match=r"(?s)--calibration noise/ is not fit.*8 of its 8.*--accept-calibration"
    ) as error:
        require_fit(findings, "noise/", accepted=False)
    assert error.value.exit_code == 2
    require_fit(findings, "noise/", accepted=True)
    require_fit((Finding("duplicates", "warn", "some."),), "photos/", accepted=False)


def test_ranges_are_compared_by_what_both_share() -> None:
    first = {"same": (-1.0, 1.0), "shifted": (0.0, 2.0), "half": (0.0, 1.0), "empty": (0.0, 0.0)}
    second = {"same": (-1.0, 1.0), "shifted": (-1.0, 1.0), "half": (0.0, 2.0), "empty": (0.0, 0.0)}
    agreement = compare_ranges(first, second)
    assert agreement.median_disagreement == pytest.approx((0 + 0.5) / 2)
    assert agreement.clipped_share == 0.5
    assert (agreement.tensors, agreement.worst) == (4, "shifted")


def extremes_of(values: np.ndarray) -> RangesOf:
    """The ranges of a toy network: each element of its input is a tensor."""

    def extremes(rows: range) -> dict[str, tuple[float, float]]:
        return {str(i): (min(0.0, float(c.min())), max(0.0, float(c.max()))) for i, c in enumerate(values[rows].T)}

    return extremes


def test_halves_that_agree_suffice() -> None:
    uniform = np.random.default_rng(1).uniform(-1, 1, (400, 5))
    assert sufficiency(len(uniform), extremes_of(uniform)) == ()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.random.default_rng(1).standard_cauchy((20, 5)), "20 samples are too few"),
        (np.concatenate([np.full((20, 5), 1.0), np.full((20, 5), 3.0)]), "disagree by 67% in the median tensor"),
        (np.ones((8, 5)), "it holds 8 samples; below 16"),
        (np.ones((1, 5)), "1 sample cannot be halved"),
    ],
)
def test_halves_that_disagree_are_warned_of(values: np.ndarray, sentence: str) -> None:
    (finding,) = sufficiency(len(values), extremes_of(values))
    assert (finding.kind, finding.severity) == ("insufficient", "warn")
    assert sentence in finding.sentence
