"""Weights as integers: by hand, against torch's own operators, and the clip against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchao.quantization.pt2e import PerChannelMinMaxObserver

from acmix.calibration.rounding import LEAST_SCALE, quantize_weight
from acmix.toolkit.errors import UsageError

WEIGHT = (
    torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 2, 6)[:, None, None, None]
)


def test_each_channel_reaches_127_on_its_largest_value() -> None:
    found = quantize_weight(torch.tensor([[1.0, -2.0, 0.5], [254.0, 127.0, -1.0]]))
    assert found.integers.tolist() == [[64, -127, 32], [127, 64, 0]]
    assert found.scale.flatten().tolist() == pytest.approx([2 / 127, 2.0])
    assert found.zero_point.flatten().tolist() == [0.0, 0.0]


def test_scales_and_values_are_those_of_torch() -> None:
    theirs = PerChannelMinMaxObserver(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-127, quant_max=127, eps=LEAST_SCALE
    )
    theirs(WEIGHT)
    scale, zero_point = theirs.calculate_qparams()
    found = quantize_weight(WEIGHT)
    torch.testing.assert_close(found.scale.flatten().float(), scale)
    wanted = torch.fake_quantize_per_channel_affine(WEIGHT, scale, zero_point.int(), 0, -127, 127)
    torch.testing.assert_close(found.values, wanted)


def test_a_channel_of_nearly_nothing_gets_the_least_scale() -> None:
    found = quantize_weight(torch.tensor([[1e-9, 0.0], [1.0, 1.0]]))
    assert float(found.scale[0]) == LEAST_SCALE
    assert found.values[0].tolist() == [0.0, 0.0]
    finer = quantize_weight(torch.tensor([[1e-3, 0.0]]), least_scale=1e-12)
    assert float(finer.values[0, 0]) == pytest.approx(1e-3)


@settings(max_examples=50, deadline=None)
@given(
    bits=st.integers(2, 8),
    axis=st.sampled_from([None, 0, 1]),
    symmetric=st.booleans(),
    seed=st.integers(0, 1000),
    shift=st.floats(-3.0, 3.0),
)
def test_no_value_moves_by_more_than_half_a_step_and_zero_stays(
    bits: int, axis: int | None, symmetric: bool, seed: int, shift: float
) -> None:
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) + shift
    weight[0, 0] = 0.0
    found = quantize_weight(weight, bits, axis, symmetric)
    # An asymmetric zero point is rounded, which can cost an end another half.
    limit = found.scale * (0.5 if symmetric else 1.0) * (1 + 1e-4)
    assert bool(((found.values - weight).abs() <= limit).all())
    assert float(found.values[0, 0]) == 0.0
    assert int(found.integers.max()) < 2 ** (bits - 1)
    assert int(found.integers.min()) >= -(2 ** (bits - 1)) + symmetric


def test_the_mse_clip_of_int4_is_the_best_of_a_search_by_channel() -> None:
    weight = torch.distributions.StudentT(3.0).sample((5, 200)).double()
    found = quantize_weight(weight, bits=4, clip="mse")
    for channel, row in enumerate(weight):
        peak = float(row.abs().max())
        errors = []
        for shrink in torch.linspace(1.0, 0.2, 400, dtype=torch.float64).tolist():
            scale = peak * shrink / 7
            rounded = torch.round(row / scale).clamp(-7, 7) * scale
            errors.append(float((rounded - row).square().sum()))
        ours = float((found.values[channel].double() - row).square().sum())
        assert ours <= 1.01 * min(errors)
        assert ours < errors[0]


def test_bits_and_axes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UsageError, match="9 bits"):
        quantize_weight(WEIGHT, bits=9)
    with pytest.raises(UsageError, match="no axis 4"):
        quantize_weight(WEIGHT, axis=4)
