"""A profile that does not hold every run is refused: times of kernels that cannot be told apart are no times."""

import pytest

from acmix.toolkit.errors import UsageError
from acmix.toolkit.kernels import Noted, Notes, same_in_every_run

KERNELS = (Noted("Conv"), Noted("Add"))
WHOLE = Notes(KERNELS, (((0, 10), (1, 2)), ((0, 11), (1, 3)), ((0, 12), (1, 4))))


def test_each_kernel_gets_one_time_a_run_in_order() -> None:
    assert same_in_every_run(WHOLE, 3, "x") == [(KERNELS[0], (10, 11, 12)), (KERNELS[1], (2, 3, 4))]


def test_a_kernel_that_runs_twice_in_a_run_stays_two() -> None:
    found = same_in_every_run(Notes(KERNELS, (((0, 1), (1, 2), (0, 3)),)), 1, "x")
    assert [(noted.name, times) for noted, times in found] == [("Conv", (1,)), ("Add", (2,)), ("Conv", (3,))]


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_profile_of_too_few_runs_is_refused(kept: int) -> None:
    with pytest.raises(UsageError, match=rf"the profile of onnxruntime 1 holds {kept} of 3 runs: it was cut"):
        same_in_every_run(Notes(KERNELS, WHOLE.runs[:kept]), 3, "onnxruntime 1")


def test_runs_of_other_kernels_are_refused() -> None:
    cut = Notes(KERNELS, (*WHOLE.runs[:2], WHOLE.runs[2][:1]))
    with pytest.raises(UsageError, match="did not run the same kernels in each of 3 runs"):
        same_in_every_run(cut, 3, "x")


def test_no_run_and_no_kernel_is_no_failure() -> None:
    assert same_in_every_run(Notes(), 0, "x") == []
