"""Resizing and sampling, against the figures of Apple's reference and torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

PAIR = np.array([0, 1], np.float32).reshape(1, 1, 2)
RAMP = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
X = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
SQUARE = np.array([11, 22, 33, 44], np.float32).reshape(1, 1, 2, 2)
POINTS = np.array([-1, -2, -3.7, -1, 0, 0, 3.5, 1.2], np.float32).reshape(1, 2, 2, 2)
BOXES = np.array([[0.1, 0.3, 1.3, 1.0], [0.5, 1.8, 1.0, 0.3], [0.0, 0.4, 0.6, 0.7]], np.float32)


def _op(name: str, **fixed: Any) -> Callable[..., Any]:
    return lambda mb, **values: getattr(mb, name)(**values, **fixed)


def _resample(sampling: str, padding: str, coordinates: str, aligned: bool, value: float = -1) -> Callable[..., Any]:
    return _op(
        "resample",
        sampling_mode=sampling,
        padding_mode=padding,
        coordinates_mode=coordinates,
        align_corners=aligned,
        padding_value=np.float32(value),
    )


def _crop(**fixed: Any) -> Callable[..., Any]:
    return _op("crop_resize", target_height=2, target_width=2, box_coordinate_mode="CORNERS_HEIGHT_FIRST", **fixed)


FIVE = {
    "STRICT_ALIGN_CORNERS": [0, 0.25, 0.5, 0.75, 1],
    "ALIGN_CORNERS": [0, 0.25, 0.5, 0.75, 1],
    "DEFAULT": [0, 0.4, 0.8, 1, 1],
    "OFFSET_CORNERS": [0.1, 0.3, 0.5, 0.7, 0.9],
    "UNALIGN_CORNERS": [0, 0.1, 0.5, 0.9, 1],
}
ONE = {"STRICT_ALIGN_CORNERS": 0, "ALIGN_CORNERS": 0.5, "DEFAULT": 0, "OFFSET_CORNERS": 0.5, "UNALIGN_CORNERS": 0.5}
CASES: dict[str, tuple[Mapping[str, Any], Callable[..., Any], Any]] = {
    **{
        f"resize_{mode}": (
            {"x": PAIR},
            _op("resize_bilinear", target_size_height=1, target_size_width=5, sampling_mode=mode),
            np.reshape(places, (1, 1, 5)),
        )
        for mode, places in FIVE.items()
    },
    **{
        f"resize_to_one_{mode}": (
            {"x": PAIR},
            _op("resize_bilinear", target_size_height=1, target_size_width=1, sampling_mode=mode),
            np.reshape(place, (1, 1, 1)),
        )
        for mode, place in ONE.items()
    },
    "upsample_aligned": (
        {"x": X.numpy()},
        _op("upsample_bilinear", scale_factor_height=2, scale_factor_width=3, align_corners=True),
        F.interpolate(X, scale_factor=(2, 3), mode="bilinear", align_corners=True),
    ),
    "upsample_fractional": (
        {"x": X.numpy()},
        _op("upsample_bilinear", scale_factor_height=1.5, scale_factor_width=0.6, align_corners=False),
        F.interpolate(X, size=(7, 4), mode="bilinear", align_corners=False),
    ),
    "upsample_from_the_corner": (
        {"x": np.array([[[[1, 2]]]], np.float32)},
        _op(
            "upsample_bilinear", scale_factor_height=1, scale_factor_width=3, align_corners=False,
            half_pixel_centers=False,
        ),
        np.reshape([1, 4 / 3, 5 / 3, 2, 2, 2], (1, 1, 1, 6)),
    ),
    "upsample_nearest": (
        {"x": X.numpy()},
        _op("upsample_nearest_neighbor", scale_factor_height=2, scale_factor_width=3),
        F.interpolate(X, scale_factor=(2, 3), mode="nearest"),
    ),
    "upsample_nearest_fractional": (
        {"x": np.array([1.5, -2.5, 3.5], np.float32).reshape(1, 1, 1, 3)},
        _op("upsample_nearest_neighbor", scale_factor_height=3.17, scale_factor_width=0.67),
        np.reshape([1.5, -2.5] * 3, (1, 1, 3, 2)),
    ),
    "resize_nearest": (
        {"x": X.numpy()},
        _op("resize_nearest_neighbor", target_size_height=3, target_size_width=10),
        F.interpolate(X, size=(3, 10), mode="nearest"),
    ),
    "resize_dims": (
        {"x": np.array([-6.174, 9.371], np.float32).reshape(1, 1, 2, 1)},
        _op("resize", shape=[1, 1, 3, 2], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"),
        np.reshape([-6.174, -6.174, 9.371, 9.371, 9.371, 9.371], (1, 1, 3, 2)),
    ),
    "resize_linear_dims": (
        {"x": PAIR},
        _op("resize", shape=[0, 5], resized_dims=np.uint32(2), interpolation_mode="LINEAR"),
        np.reshape(FIVE["DEFAULT"], (1, 1, 5)),
    ),
    "resample_constant": (
        {"x": SQUARE, "coordinates": POINTS},
        _resample("bilinear", "constant", "normalized_minus_one_to_one", True, 6.17),
        np.reshape([8.585, 6.17, 27.5, 6.17], (1, 1, 2, 2)),
    ),
    "resample_border": (
        {"x": SQUARE, "coordinates": POINTS},
        _resample("nearest", "border", "unnormalized", False),
        np.reshape([11, 11, 11, 44], (1, 1, 2, 2)),
    ),
    "resample_reflection": (
        {"x": SQUARE, "coordinates": POINTS},
        _resample("bilinear", "reflection", "normalized_zero_to_one", True),
        np.reshape([22, 36.3, 11, 34.1], (1, 1, 2, 2)),
    ),
    "resample_symmetric": (
        {"x": SQUARE, "coordinates": POINTS},
        _resample("nearest", "symmetric", "normalized_zero_to_one", False),
        np.reshape([22, 33, 11, 33], (1, 1, 2, 2)),
    ),
    "resample_as_torch": (
        {"x": X[:, :, :2, :2].numpy(), "coordinates": POINTS.repeat(2, 0)},
        _resample("bilinear", "constant", "normalized_minus_one_to_one", False, 0),
        F.grid_sample(X[:, :, :2, :2], torch.from_numpy(POINTS.repeat(2, 0)), align_corners=False),
    ),
    "affine": (
        {"x": SQUARE, "transform_matrix": np.array([[-1, -2, -3.7, -1, 3.5, 1.2]], np.float32)},
        _op(
            "affine", output_height=3, output_width=3, sampling_mode="bilinear", padding_mode="constant",
            padding_value=np.float32(0), coordinates_mode="normalized_minus_one_to_one", align_corners=True,
        ),
        np.reshape([10.7525, 2.5025, 0, 1.98, 0, 0, 0, 0, 0], (1, 1, 3, 3)),
    ),
    "crop_resize": (
        {"x": RAMP},
        _crop(boxes=np.array([[1, 1, 2, 2]], np.float32), sampling_mode="ALIGN_CORNERS"),
        np.reshape([6, 7, 10, 11], (1, 1, 2, 2)),
    ),
    "crop_resize_turned_round": (
        {"x": RAMP},
        _crop(boxes=np.array([[2, 2, 1, 1]], np.float32), sampling_mode="ALIGN_CORNERS"),
        np.reshape([11, 10, 7, 6], (1, 1, 2, 2)),
    ),
    "crop_resize_beyond_the_image": (
        {"x": RAMP},
        _crop(
            boxes=BOXES, box_indices=np.zeros(3, np.int32), normalized_coordinates=True, pad_value=np.float32(10),
            sampling_mode="ALIGN_CORNERS",
        ),
        np.reshape([3.1, 5.2, 10, 10, 10, 7.9, 10, 13.9, 2.2, 3.1, 9.4, 10.3], (3, 1, 2, 2)),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def results(packages: Any) -> Any:
    return packages.batch({case: (feeds, build) for case, (feeds, build, _) in CASES.items()}, "iOS17")


@pytest.mark.parametrize("case", CASES)
def test_samples_lie_where_the_reference_says(results: Any, case: str) -> None:
    (output,) = results.outputs[case]
    np.testing.assert_allclose(output, np.asarray(CASES[case][2]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("coordinates", "shape"), [(4, (2, 2, 3, 2, 2)), (5, (2, 1, 3, 2, 2))])
def test_before_ios17_a_box_is_cut_from_every_image_or_from_one(
    packages: Any, coordinates: int, shape: tuple[int, ...]
) -> None:
    boxes = np.array([[1, 0, 0, 3, 3], [0, 1, 1, 2, 2]], np.float32)[:, -coordinates:].reshape(2, 1, coordinates, 1, 1)
    build = _op("crop_resize", roi=boxes, target_height=2, target_width=2, sampling_mode="STRICT_ALIGN_CORNERS")
    (output,) = packages.run(build, {"x": X.numpy()}, "iOS16")
    assert output.shape == shape
    np.testing.assert_allclose(output[0, -1], X[1][:, ::3, ::3][:, :2, :2], rtol=1e-5)


def _position(mode: str, index: int, size: int, count: int) -> float:
    """Apple's formulas (reference of resize_bilinear), one position at a time."""
    if mode == "OFFSET_CORNERS":
        place = (index + 0.5) * max(1, size - 1) / count
    elif mode == "UNALIGN_CORNERS":
        place = index * size / count + 0.5 * size / count - 0.5
    elif mode == "DEFAULT":
        place = index * ((size - size / count) / (count - 1)) if count > 1 else 0
    elif count == 1:
        place = (size - 1) / 2 if mode == "ALIGN_CORNERS" else 0
    else:
        place = index * (size - 1) / (count - 1)
    return min(size - 1, max(0, place))


MODES = ("DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "OFFSET_CORNERS", "UNALIGN_CORNERS")


@pytest.mark.parametrize("opset", ["iOS15", "iOS17"])
def test_every_sampling_mode_follows_its_formula(packages: Any, opset: str) -> None:
    line, counts = np.array([3, -1, 4, 1, -5], np.float32), (1, 2, 3, 5, 7, 11)

    def build(mb: Any, x: Any) -> list[Any]:
        made = []
        for mode, count in itertools.product(MODES, counts):
            if opset == "iOS15":
                made.append(mb.resize_bilinear(x=x, target_size_height=1, target_size_width=count, sampling_mode=mode))
            else:
                made.append(mb.resize(x=x, shape=[1, count], resized_dims=np.uint32(2), sampling_mode=mode))
        return made

    outputs = packages.run(build, {"x": line.reshape(1, 1, 1, 5)}, opset)
    for (mode, count), output in zip(itertools.product(MODES, counts), outputs, strict=True):
        places = [_position(mode, index, 5, count) for index in range(count)]
        expected = np.interp(places, range(5), line)
        np.testing.assert_allclose(output.reshape(-1), expected, rtol=1e-5, atol=1e-5, err_msg=f"{mode} {count}")


@pytest.mark.parametrize(
    ("mode", "ends", "expected"),
    [
        ("UNALIGN_CORNERS", (2, 0), [2, 1, 0]),
        ("ALIGN_CORNERS", (3, 1), [3, 2, 1]),
        ("DEFAULT", (3, 1), [3, 2, 1]),
        ("OFFSET_CORNERS", (3, 0), [2.5, 1.5, 0.5]),
    ],
)
def test_a_box_turned_round_is_the_box_from_its_far_end(
    packages: Any, mode: str, ends: tuple[int, int], expected: list[float]
) -> None:
    boxes = np.array([[0, ends[0], 0, ends[1]]], np.float32)
    build = _op("crop_resize", boxes=boxes, target_height=1, target_width=3, sampling_mode=mode)
    (output,) = packages.run(build, {"x": np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4)}, "iOS17")
    np.testing.assert_allclose(output.reshape(-1), expected, atol=1e-6)


def test_the_published_crop_that_lies_beyond_the_image(packages: Any) -> None:
    """coremltools' TestCropResize of iOS 15: rows 6 to 3 of four, turned round."""
    roi = np.array([2, 2, 1, 1], np.float32).reshape(1, 1, 4, 1, 1)
    build = _op(
        "crop_resize", roi=roi, target_width=2, target_height=2, normalized_coordinates=True,
        sampling_mode="UNALIGN_CORNERS",
    )  # fmt: skip
    image = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
    (output,) = packages.run(build, {"x": image}, "iOS16")
    np.testing.assert_allclose(output.reshape(-1), [3.5, 5.5, 11.5, 13.5])
    boxes = roi.reshape(1, 4)
    build = _op(
        "crop_resize", boxes=boxes, target_width=2, target_height=2, normalized_coordinates=True,
        pad_value=np.float32(9), sampling_mode="UNALIGN_CORNERS",
    )  # fmt: skip
    np.testing.assert_array_equal(packages.run(build, {"x": image}, "iOS17")[0].reshape(-1), [9] * 4)
