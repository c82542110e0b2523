"""Operators that move, take, place, count and sort elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from acmix.toolkit.errors import UsageError

R = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
IMAGE = np.arange(64, dtype=np.float32).reshape(1, 4, 4, 4)
NOISE = np.random.default_rng(0).permutation(24).astype(np.float32).reshape(2, 3, 4)
N = np.array([1, 0, 2], np.int32)
PLACES = np.array([[[2, 0, 1, 1], [0, 0, 0, 0], [1, 2, 0, 2]]] * 2, np.int32)
DATA = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
UPDATES = np.array([[5, 6, 7], [8, 9, 10]], np.float32)
TWICE = np.array([1, 1], np.int32)
BOXES = np.array([[[0, 0, 2, 2], [0.1, 0, 2, 2], [5, 5, 1, 1], [9, 9, 1, 1]]], np.float32)
SCORES = np.array([[[0.5, 0.1], [0.2, 0.9], [0.3, 0.2], [0.05, 0.01]]], np.float32)


def _op(name: str, **fixed: Any) -> Callable[..., Any]:
    return lambda mb, **values: getattr(mb, name)(**values, **fixed)


def _scatter(mode: str) -> Callable[..., Any]:
    return _op("scatter", axis=0, mode=mode)


def _range(mb: Any, limits: Any) -> Any:
    start, end, step = (mb.squeeze(x=one, axes=[0]) for one in mb.split(x=limits, axis=0, num_splits=3))
    return mb.range_1d(start=start, end=end, step=step)


CASES: dict[str, tuple[Mapping[str, Any], Callable[..., Any]]] = {
    "reshape_rest": ({"x": R}, _op("reshape", shape=[4, -1])),
    "reshape_kept": ({"x": R}, _op("reshape", shape=[0, -1, 2])),
    "expand_dims": ({"x": R}, _op("expand_dims", axes=[0, -1])),
    "squeeze": ({"x": R[:, None]}, _op("squeeze", axes=[1])),
    "squeeze_leaves_larger_axes": ({"x": R[:, None]}, _op("squeeze", axes=[0, 1])),
    "flatten2d": ({"x": R}, _op("flatten2d", axis=-1)),
    "shape": ({"x": R}, _op("shape")),
    "transpose": ({"x": R}, _op("transpose", perm=[2, 0, -2])),
    "concat": ({"x": R, "y": NOISE}, lambda mb, x, y: mb.concat(values=[x, y], axis=-1)),
    "concat_interleaved": ({"x": R, "y": NOISE}, lambda mb, x, y: mb.concat(values=[x, y], axis=1, interleave=True)),
    "split": ({"x": R}, _op("split", axis=2, num_splits=2)),
    "split_sizes": ({"x": R}, _op("split", axis=1, split_sizes=[1, 2])),
    "stack": ({"x": R, "y": NOISE}, lambda mb, x, y: mb.stack(values=[x, y], axis=-1)),
    "tile": ({"x": R}, _op("tile", reps=[1, 2, 3])),
    "reverse": ({"x": R}, _op("reverse", axes=[0, -1])),
    "reverse_sequence": ({"x": R}, _op("reverse_sequence", lengths=[1, 2], seq_axis=1, batch_axis=0)),
    "band_part": ({"x": R}, _op("band_part", lower=1, upper=0)),
    "identity": ({"x": R}, _op("identity")),
    "pixel_shuffle": ({"x": IMAGE}, _op("pixel_shuffle", upscale_factor=2)),
    "pixel_unshuffle": ({"x": IMAGE}, _op("pixel_unshuffle", downscale_factor=np.uint32(2))),
    "depth_to_space": ({"x": IMAGE[:, :, :1, :1]}, _op("depth_to_space", block_size=2)),
    "space_to_depth": ({"x": IMAGE[:, :1, :2, :2]}, _op("space_to_depth", block_size=2)),
    "space_to_batch": (
        {"x": IMAGE[:, :1, :2]},
        _op("space_to_batch", block_shape=[2, 2], paddings=[[0, 0], [2, 0]]),
    ),
    "reshape_like": (
        {"x": R, "y": NOISE},
        lambda mb, x, y: mb.reshape_like(x=x, ref_tensors=(y, y), begins=(2, 0), ends=(3, 2), end_masks=(False, False)),
    ),
    "slice": ({"x": R}, _op("slice_by_index", begin=[0, -2, 1], end=[2, 3, -1], stride=[1, 1, 2])),
    "slice_backwards": ({"x": R}, _op("slice_by_index", begin=[0, 2, 3], end=[2, 0, 0], stride=[1, -1, -2])),
    "slice_masked": (
        {"x": R},
        _op(
            "slice_by_index",
            begin=[1, 1, 1],
            end=[9, 0, 2],
            begin_mask=[False, True, False],
            end_mask=[False, True, False],
            squeeze_mask=[True, False, False],
        ),
    ),
    "slice_by_size": ({"x": R}, _op("slice_by_size", begin=[0, 1, -3], size=[2, -1, 2])),
    "crop": ({"x": R}, _op("crop", crop_height=[1, 0], crop_width=[1, 2])),
    "sliding_windows": ({"x": R}, _op("sliding_windows", axis=-1, size=2, stride=2)),
    "pad": ({"x": R}, _op("pad", pad=[1, 0, 0, 2], constant_val=np.float32(9))),
    "pad_reflect": ({"x": R}, _op("pad", pad=[2, 1, 3, 0], mode="reflect")),
    "pad_replicate": ({"x": R}, _op("pad", pad=[2, 1, 3, 0], mode="replicate")),
    "gather": ({"x": R, "indices": N}, _op("gather", axis=-1)),
    "gather_batched": ({"x": R, "indices": np.array([[2], [0]], np.int32)}, _op("gather", axis=1, batch_dims=1)),
    "gather_batched_far": (
        {"x": R, "indices": np.array([[3, 1], [0, 0]], np.int32)},
        _op("gather", axis=2, batch_dims=1),
    ),
    "gather_along_axis": ({"x": R, "indices": PLACES}, _op("gather_along_axis", axis=1)),
    "gather_nd": ({"x": R, "indices": np.array([[0, 2], [1, 1]], np.int32)}, _op("gather_nd")),
    "gather_nd_batched": ({"x": R, "indices": np.array([[[2]], [[1]]], np.int32)}, _op("gather_nd", batch_dims=1)),
    "scatter": ({"data": DATA, "indices": np.array([1, 0], np.int32), "updates": UPDATES}, _scatter("add")),
    "scatter_update_twice": ({"data": DATA, "indices": TWICE, "updates": UPDATES}, _scatter("update")),
    "scatter_add_twice": ({"data": DATA, "indices": TWICE, "updates": UPDATES}, _scatter("add")),
    "scatter_sub_twice": ({"data": DATA, "indices": TWICE, "updates": UPDATES}, _scatter("sub")),
    "scatter_mul_twice": ({"data": DATA, "indices": TWICE, "updates": UPDATES}, _scatter("mul")),
    "scatter_div_twice": ({"data": DATA, "indices": TWICE, "updates": UPDATES}, _scatter("div")),
    "scatter_max_twice": ({"data": DATA, "indices": TWICE, "updates": UPDATES}, _scatter("max")),
    "scatter_min_twice": ({"data": DATA, "indices": TWICE, "updates": UPDATES}, _scatter("min")),
    "scatter_along_axis": (
        {"data": DATA, "indices": np.array([[1, 0, 1], [1, 1, 0]], np.int32), "updates": UPDATES},
        _op("scatter_along_axis", axis=0, mode="update"),
    ),
    "scatter_nd": (
        {"data": DATA, "indices": np.array([[1, 0], [0, 2], [1, 0]], np.int32), "updates": UPDATES[0]},
        _op("scatter_nd", mode="add"),
    ),
    "fill": ({"x": R}, lambda mb, x: mb.fill(shape=mb.shape(x=x), value=np.float32(2.5))),
    "fill_like": ({"ref_tensor": R}, _op("fill_like", value=np.int32(7))),
    "range": ({"limits": np.array([9, 0, -4], np.int32)}, lambda mb, limits: _range(mb, limits)),
    "range_floats": ({"limits": np.array([0, 1, 0.3], np.float32)}, lambda mb, limits: _range(mb, limits)),
    "one_hot": ({"indices": np.array([1, 5, -1], np.int32)}, _op("one_hot", one_hot_vector_size=3, axis=0)),
    "argsort": ({"x": NOISE}, _op("argsort", axis=1)),
    "topk": ({"x": NOISE}, _op("topk", k=2, axis=2)),
    "topk_ascending": ({"x": NOISE}, _op("topk", k=2, axis=0, ascending=True)),
    "topk_values": ({"x": NOISE}, _op("topk", k=3, return_indices=False)),
    "non_zero": ({"x": np.array([[0, 3], [2, 0]], np.float32)}, _op("non_zero")),
    "nms": (
        {"boxes": BOXES.transpose(0, 2, 1).copy(), "scores": SCORES.transpose(0, 2, 1).copy()},
        _op("non_maximum_suppression", iou_threshold=np.float32(0.5), max_boxes=4),
    ),
    "nms_per_class": (
        {"boxes": BOXES.transpose(0, 2, 1).copy(), "scores": SCORES.transpose(0, 2, 1).copy()},
        _op("non_maximum_suppression", iou_threshold=np.float32(0.5), max_boxes=4, per_class_suppression=True),
    ),
}
image = torch.from_numpy(IMAGE)
# coremltools folds an interleaved concat as if it were none.
WRONGLY_INFERRED = ("concat_interleaved",)
HAND: dict[str, list[Any]] = {
    "concat_interleaved": [np.stack([R, NOISE], 2).reshape(2, 6, 4)],
    "squeeze_leaves_larger_axes": [R],
    "range": [np.array([9, 5, 1])],
    "range_floats": [np.array([0, 0.3, 0.6, 0.9], np.float32)],
    "reverse_sequence": [np.concatenate([R[:1], R[1:, [1, 0, 2]]])],
    "pixel_shuffle": [F.pixel_shuffle(image, 2).numpy()],
    "pixel_unshuffle": [F.pixel_unshuffle(image, 2).numpy()],
    # Channels 0, 16, 32, 48 are the pixels of the block in row-major order.
    "depth_to_space": [np.array([[[[0, 16], [32, 48]]]])],
    "space_to_depth": [np.array([0, 1, 4, 5]).reshape(1, 4, 1, 1)],
    "space_to_batch": [np.array([[0, 0, 2], [0, 1, 3], [0, 4, 6], [0, 5, 7]]).reshape(4, 1, 1, 3)],
    "reshape_like": [R.reshape(4, 2, 3)],
    "slice_backwards": [R[0:2, 2:0:-1, 3:0:-2]],
    "crop": [R[:, 1:, 1:2]],
    "sliding_windows": [R.reshape(2, 3, 2, 2)],
    "gather_nd": [np.stack([R[0, 2], R[1, 1]])],
    "gather_nd_batched": [np.stack([R[0, [2]], R[1, [1]]])],
    "gather_batched_far": [np.stack([R[0][:, [3, 1]], R[1][:, [0, 0]]])],
    "scatter": [np.array([[9, 11, 13], [9, 11, 13]])],
    "scatter_update_twice": [np.array([[1, 2, 3], [8, 9, 10]])],
    "scatter_add_twice": [np.array([[1, 2, 3], [17, 20, 23]])],
    "scatter_sub_twice": [np.array([[1, 2, 3], [-9, -10, -11]])],
    "scatter_mul_twice": [np.array([[1, 2, 3], [160, 270, 420]])],
    "scatter_div_twice": [np.array([[1, 2, 3], [4 / 40, 5 / 54, 6 / 70]])],
    "scatter_max_twice": [np.array([[1, 2, 3], [8, 9, 10]])],
    "scatter_min_twice": [np.array([[1, 2, 3], [4, 5, 6]])],
    "scatter_along_axis": [np.array([[1, 6, 10], [8, 9, 7]])],
    "scatter_nd": [np.array([[1, 2, 9], [16, 5, 6]])],
    "one_hot": [np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0]])],
    "nms": [
        np.array([[[0.1, 5, 9, 0], [0, 5, 9, 0], [2, 1, 1, 0], [2, 1, 1, 0]]]),
        np.array([[[0.2, 0.3, 0.05, 0], [0.9, 0.2, 0.01, 0]]]),
        np.array([[1, 2, 3, -1]]),
    ],
    "nms_per_class": [
        BOXES[:, [1, 0, 2, 3]].transpose(0, 2, 1),
        SCORES[:, [1, 0, 2, 3]].transpose(0, 2, 1),
        np.array([[1, 0, 2, 3]]),
    ],
}


@pytest.fixture(scope="module")
def results(packages: Any) -> Any:
    return packages.batch(CASES, "iOS17")


@pytest.mark.parametrize("case", HAND)
def test_an_operator_gives_what_its_definition_says(results: Any, case: str) -> None:
    for output, expected in zip(results.outputs[case], HAND[case], strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case not in WRONGLY_INFERRED])
def test_an_operator_gives_what_coremltools_infers(results: Any, case: str) -> None:
    if results.inferred[case] is None:
        assert case in HAND
        return
    for output, inferred in zip(results.outputs[case], results.inferred[case], strict=True):
        np.testing.assert_allclose(output, np.asarray(inferred), rtol=1e-6)
        assert output.shape == np.shape(inferred)


def test_since_ios17_the_zeros_of_reshape_count_from_the_right(packages: Any) -> None:
    (shape,) = packages.run(lambda mb, x: mb.shape(x=mb.reshape(x=x, shape=[1, 0, -1, 0])), {"x": R.reshape(6, 4)})
    assert shape.tolist() == [1, 1, 6, 4]


@pytest.mark.parametrize(("opset", "taken"), [("iOS15", [2, 0]), ("iOS17", [2, 0])])
def test_negative_indices_count_from_the_end(packages: Any, opset: str, taken: list[int]) -> None:
    feeds = {"x": R, "indices": np.array([-1, 0], np.int32)}
    (output,) = packages.run(_op("gather", axis=1), feeds, opset)
    np.testing.assert_array_equal(output, R[:, taken])


@pytest.mark.parametrize("index", [-1, 3])
def test_validated_indices_outside_the_axis_are_refused(packages: Any, index: int) -> None:
    feeds = {"x": R, "indices": np.array([index], np.int32)}
    with pytest.raises(UsageError, match=f"index {index} is outside 0 to 2"):
        packages.run(_op("gather", axis=1, validate_indices=True), feeds)


def test_slice_update_replaces_what_slice_by_index_takes(packages: Any) -> None:
    slices = {"begin": [0, 1, 3], "end": [2, 2, 0], "stride": [1, 1, -2]}
    feeds = {"x": R, "update": np.full((2, 1, 2), -1, np.float32)}
    (output,) = packages.run(_op("slice_update", **slices), feeds, "iOS18")
    expected = R.copy()
    expected[0:2, 1:2, 3:0:-2] = -1
    np.testing.assert_array_equal(output, expected)


def test_before_ios17_suppression_has_a_score_threshold_and_counts_boxes(packages: Any) -> None:
    options = {"iou_threshold": np.float32(0.5), "score_threshold": np.float32(0.25), "max_boxes": 3}
    boxes, scores, indices, count = packages.run(
        _op("non_maximum_suppression", **options), {"boxes": BOXES, "scores": SCORES}, "iOS16"
    )
    assert indices.tolist() == [[1, 2, -1]]
    assert count.tolist() == [2]
    np.testing.assert_array_equal(boxes[0, 2], np.zeros(4))
    np.testing.assert_array_equal(scores[0, 1], SCORES[0, 2])
