"""Statistics of images against naive definitions, and on images whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from acmix.calibration.statistics import describe, describe_image, neighbour_correlation, spectrum_slope, thumbnail


def powerlaw(slope: float, size: int = 128, seed: int = 0) -> np.ndarray:
    """An image whose power falls with frequency to the given power: made in the frequency domain."""
    rng = np.random.default_rng(seed)
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    radius[0, 0] = 1.0
    spectra = np.fft.fft2(rng.standard_normal((3, size, size))) * radius ** (slope / 2)
    return np.fft.ifft2(spectra).real


def test_neighbour_correlation_is_pearsons() -> None:
    planes = powerlaw(-2.0, 48)
    by_hand = []
    for plane in planes:
        across = np.corrcoef(plane[:, :-1].ravel(), plane[:, 1:].ravel())[0, 1]
        down = np.corrcoef(plane[:-1].ravel(), plane[1:].ravel())[0, 1]
        by_hand.append((across + down) / 2)
    assert neighbour_correlation(planes) == pytest.approx(np.median(by_hand), abs=1e-12)


@pytest.mark.parametrize("slope", [0.0, -1.0, -2.0, -3.0])
def test_the_slope_of_a_spectrum_is_found_again(slope: float) -> None:
    found = [spectrum_slope(powerlaw(slope, seed=seed)) for seed in range(5)]
    assert np.mean(found) == pytest.approx(slope, abs=0.2)


def test_statistics_do_not_depend_on_scale_or_offset() -> None:
    image = powerlaw(-2.0)
    plain, scaled = describe_image(image), describe_image(image * 55.0 + 120.0)
    assert scaled.neighbour_correlation == pytest.approx(plain.neighbour_correlation)
    assert scaled.spectrum_slope == pytest.approx(plain.spectrum_slope)
    np.testing.assert_allclose(scaled.thumbnail, plain.thumbnail, atol=1e-9)


def test_a_thumbnail_is_block_means() -> None:
    image = powerlaw(-2.0, 64)
    blocks = image.reshape(3, 8, 8, 8, 8).mean(axis=(2, 4))
    blocks -= blocks.mean()
    np.testing.assert_allclose(thumbnail(image), (blocks / np.linalg.norm(blocks)).ravel(), atol=1e-12)


def test_a_constant_or_tiny_image_has_no_spectrum() -> None:
    grey = describe_image(np.full((3, 64, 64), 0.3))
    assert grey.constant
    assert grey.spectrum_slope is None
    tiny = describe_image(powerlaw(-2.0, 16))
    assert not tiny.constant
    assert tiny.neighbour_correlation is None


def test_samples_of_other_shapes_have_limits_and_a_digest_only() -> None:
    sample = (np.arange(6, dtype=np.float32)[None], np.full((1, 2), -1, np.int64))
    described = describe(sample, is_image=False)
    assert (described.low, described.high, described.image) == ((0.0, -1.0), (5.0, -1.0), None)
    assert described.digest != describe((sample[0].astype(np.float64), sample[1]), is_image=False).digest
