"""Which of several outputs is evaluated."""

from __future__ import annotations

import pytest

from acmix.toolkit.evaluate import output_of_scores, outputs_of_scores
from acmix.toolkit.spec import TensorSpec


@pytest.mark.parametrize(
    ("shapes", "wanted"),
    [
        ([(1, 1000)], 0),
        ([(1, 1000)] * 5, 4),
        ([(1, 1000), (1, 1280), (1, 960, 3, 3)], 0),
        ([(1, 1000), (1, 64), (1, 1000), (1, 7, 7)], 2),
    ],
    ids=["one", "exits", "logits before features", "features among exits"],
)
def test_the_last_output_as_wide_as_the_first_is_evaluated(shapes: list[tuple[int, ...]], wanted: int) -> None:
    assert output_of_scores([TensorSpec(f"output_{i}", shape) for i, shape in enumerate(shapes)]) == wanted


def test_outputs_that_are_named_as_exits_are_evaluated_whatever_is_as_wide() -> None:
    exits_and_place = [TensorSpec(name, (1, 2)) for name in ("logits_1", "logits_2", "place")]
    assert outputs_of_scores(exits_and_place) == (0, 1, 2)
    assert outputs_of_scores(exits_and_place, ("logits_1", "logits_2")) == (0, 1)
    assert output_of_scores(exits_and_place, ("logits_1", "logits_2")) == 1
