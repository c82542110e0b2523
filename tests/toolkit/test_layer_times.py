"""What is computed from the times of operators."""

import pytest

from acmix.toolkit.layer_times import (
    UNACCOUNTED,
    UNMAPPED,
    Floor,
    LayerReport,
    LayerTimes,
    OperatorTime,
    Row,
    rows,
    sum_of,
)

MS = 1_000_000


def operator(module: str | None, ms: tuple[int, ...], delegated: bool = True) -> OperatorTime:
    return OperatorTime("value", "Conv", module, "net.py:1", "XNNPACK", delegated, tuple(n * MS for n in ms))


LAYERS = LayerTimes(
    "a", "tflite", "float32", "", (operator("stem", (6, 60)), operator("head", (2, 2), False), operator(None, (1, 1))),
    (10 * MS, 90 * MS), (8 * MS, 80 * MS), 3, 16_000_000, "a clock", Floor(4_000_000, (MS, 9 * MS)),
)  # fmt: skip


def test_the_rows_add_up_to_the_run_and_unknown_modules_stay_unmapped() -> None:
    found = rows(LayerReport("net", (LAYERS,), 1, (0,), {}))
    assert [row.module for row in found] == ["stem", "head", UNMAPPED, UNACCOUNTED]
    assert [row.ms[0] for row in found] == pytest.approx([6, 2, 1, 1])
    assert sum(row.ms[0] or 0 for row in found) == pytest.approx(LAYERS.profiled_ms)


def test_slowdown_share_outside_and_distance_from_the_floor() -> None:
    assert LAYERS.slowdown == pytest.approx(10 / 8)
    assert LAYERS.outside_share == pytest.approx(2 / 9)
    assert LAYERS.times_floor == pytest.approx(8 / 4)


def test_an_emulated_device_has_shares_and_no_milliseconds() -> None:
    found = rows(LayerReport("net", (LAYERS,), 1, (0,), {}, device="pi", emulation=("QEMU",)))
    assert [row.ms for row in found] == [(None,)] * 4
    assert [row.shares[0] for row in found] == pytest.approx([0.6, 0.2, 0.1, 0.1])


def test_rows_that_are_left_out_are_summed() -> None:
    made = sum_of([Row("a", "", (1.0, None), (0.1, None)), Row("b", "", (2.0, None), (0.2, None))], "(2 more)")
    assert made.ms == (3.0, None) and made.shares == (pytest.approx(0.3), None)
