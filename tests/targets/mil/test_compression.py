"""Compressed weights and quantized activations, as they lie in weight files of every width."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ONE = {"x": np.zeros(1, np.float32)}
DATA = np.arange(-12, 12, dtype=np.int8).reshape(4, 6)
SCALE = np.array([[0.5, 2.0], [1.0, 0.25]], np.float32)
ALL = np.arange(256, dtype=np.uint8).reshape(16, 16)


def kind(name: str) -> Any:
    """numpy's stand-in for an integer below a byte, as coremltools marks it."""
    from coremltools.converters.mil.mil.types import type_mapping

    return type_mapping.string_to_nptype(name)


def constant(packages: Any, operator: str, opset: str, **fixed: Any) -> np.ndarray[Any, Any]:
    """The last result of an operator on constants, as the program returns it."""

    def build(mb: Any, x: Any) -> Any:
        made = getattr(mb, operator)(**fixed)
        return [mb.identity(x=x), mb.identity(x=made[-1] if isinstance(made, (list, tuple)) else made)]

    array: np.ndarray[Any, Any] = packages.run(build, ONE, opset)[1]
    return array


def test_affine_weights_are_scaled_after_their_zero_point_is_taken_off(packages: Any) -> None:
    zero, scale = np.array([1, -2, 3, 0], np.int8), np.array([0.5, 1, 2, 4], np.float32)
    weights = constant(
        packages, "constexpr_affine_dequantize", "iOS16", quantized_data=DATA, zero_point=zero, scale=scale, axis=0
    )
    np.testing.assert_array_equal(weights, (DATA.astype(np.float32) - zero[:, None]) * scale[:, None])


@pytest.mark.parametrize("width", ["int4", "uint4", "int8", "uint8"])
def test_blocks_of_weights_have_their_own_scale_and_offset(packages: Any, width: str) -> None:
    low = -8 if width.startswith("int") else 0
    data = (np.arange(24).reshape(4, 6) % 16 + low).astype(kind(width))
    offset = np.array([[1, 0], [3, 2]]).astype(kind(width))
    weights = constant(packages, "constexpr_blockwise_shift_scale", "iOS18", data=data, scale=SCALE, offset=offset)
    wide = np.kron(SCALE, np.ones((2, 3))), np.kron(offset.astype(np.float32), np.ones((2, 3)))
    np.testing.assert_array_equal(weights, wide[0] * (data.astype(np.float32) - wide[1]))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_indices_of_every_width_look_up_their_value(packages: Any, bits: int) -> None:
    indices = (np.arange(15 * 7).reshape(15, 7) * 5 % (1 << bits)).astype(kind(f"uint{bits}"))
    lut = np.random.default_rng(bits).standard_normal((1, 1, 1 << bits, 1)).astype(np.float32)
    weights = constant(packages, "constexpr_lut_to_dense", "iOS18", indices=indices, lut=lut)
    np.testing.assert_array_equal(weights, lut.reshape(-1)[indices.astype(int)])


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_ios16_packs_indices_and_masks_into_bytes(packages: Any, bits: int) -> None:
    count = 5 * 3
    indices = np.arange(count) * 3 % (1 << bits)
    packed = np.packbits(
        np.array([[index >> bit & 1 for bit in range(bits)] for index in indices]).reshape(-1), bitorder="little"
    )
    lut = np.linspace(-1, 1, 1 << bits, dtype=np.float32)
    fixed = {"indices": packed, "lut": lut, "shape": np.array([5, 3], np.uint32)}
    weights = constant(packages, "constexpr_lut_to_dense", "iOS16", **fixed)
    np.testing.assert_array_equal(weights, lut[indices].reshape(5, 3))


def test_tables_for_groups_hold_values_and_vectors(packages: Any) -> None:
    """The first example of Apple's reference, and its second with vectors along axis 1."""
    indices = np.array([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3]).reshape(6, 2).astype(kind("uint2"))
    lut = np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float32).reshape(2, 1, 4, 1)
    weights = constant(packages, "constexpr_lut_to_dense", "iOS18", indices=indices, lut=lut)
    np.testing.assert_array_equal(weights, [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]])
    indices = np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]]).astype(kind("uint1"))
    a, b = [1, 2, 3], [4, 5, 6]
    lut = np.array([a, b], np.float32).reshape(1, 1, 1, 2, 3)
    weights = constant(packages, "constexpr_lut_to_dense", "iOS18", indices=indices, lut=lut, vector_axis=1)
    columns = [[np.r_[a, b], np.r_[a, a]], [np.r_[b, a], np.r_[b, a]]]
    np.testing.assert_array_equal(weights, np.array(columns).transpose(0, 2, 1))


def test_sparse_weights_are_zero_where_the_mask_is(packages: Any) -> None:
    mask = np.array([[1, 0, 0, 1, 1], [0, 1, 0, 0, 1]])
    values = np.arange(1, 6, dtype=np.float32)
    expected = np.zeros(mask.shape)
    expected[mask == 1] = values
    new = constant(packages, "constexpr_sparse_to_dense", "iOS18", nonzero_data=values, mask=mask.astype(kind("uint1")))
    np.testing.assert_array_equal(new, expected)
    packed = {"mask": np.packbits(mask.reshape(-1), bitorder="little"), "shape": np.array(mask.shape, np.uint32)}
    old = constant(packages, "constexpr_sparse_to_dense", "iOS16", nonzero_data=values, **packed)
    np.testing.assert_array_equal(old, expected)


def test_sparse_weights_unfold_through_two_operators(packages: Any) -> None:
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]]).astype(kind("uint1"))
    data = np.array([10, 11, 3, 4, 5, 6, 7, 8, 9], np.int8)
    scale, offset = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32), np.array([[1, 2, 3, 4]], np.int8)
    lut = np.array([2, 3], np.float32).reshape(1, 1, 2, 1)
    indices = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1]).astype(kind("uint1"))

    def build(mb: Any, x: Any) -> list[Any]:
        shifted = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask, nonzero_data=data, scale=scale, offset=offset
        )
        looked_up = mb.constexpr_lut_to_sparse(indices_mask=mask, indices_nonzero_data=indices, lut=lut)
        dense = [mb.constexpr_sparse_to_dense(nonzero_data=one[1], mask=one[0]) for one in (shifted, looked_up)]
        return [mb.identity(x=x), *(mb.identity(x=one) for one in dense)]

    _, scaled, found = packages.run(build, ONE, "iOS18")
    expected = np.zeros((4, 4), np.float32)
    expected[mask.astype(bool)] = [0.9, 1.8, 0.2, 0.4, 0.6, 0.9, 1.2, 0.7, 1.4]
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)
    expected[mask.astype(bool)] = [2, 3, 3, 2, 3, 3, 2, 2, 3]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("dtype", "zero"), [("int8", -3), ("uint8", 128)])
def test_activations_are_rounded_to_even_and_saturate(packages: Any, dtype: str, zero: int) -> None:
    x = np.array([0.0, 0.25, 0.75, 1.25, -100, 100], np.float32)
    point = np.array(zero, dtype)

    def build(mb: Any, x: Any) -> list[Any]:
        q = mb.quantize(input=x, scale=np.float32(0.5), zero_point=point, output_dtype=dtype)
        return [mb.cast(x=q, dtype="int32"), mb.dequantize(input=q, scale=np.float32(0.5), zero_point=point)]

    q, back = packages.run(build, {"x": x})
    info = np.iinfo(dtype)
    assert q.tolist() == np.clip(np.array([0, 0, 2, 2, -200, 200]) + zero, info.min, info.max).tolist()
    np.testing.assert_array_equal(back, (q - zero) * 0.5)
