"""The state of a device far away: in few round trips, and unknown where it gives nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from acmix.toolkit.conditions import Identity, Kind, State
from acmix.toolkit.device import Completed
from acmix.toolkit.state import jetson
from acmix.toolkit.state.reading import read_state


def nothing(command: Sequence[str], *, timeout_s: float) -> Completed:
    """A device without the program."""
    return Completed(127, b"", b"")


def test_over_current_events_of_all_monitors_are_added() -> None:
    files = {f"/sys/class/hwmon/hwmon{monitor}/oc2_event_cnt": f"{monitor}\n" for monitor in (1, 4)}
    state = jetson.add(State(), files.get, nothing)
    assert state.throttle_events == {"over-current events 2": 5}


def test_a_remote_jetson_is_read_by_a_few_commands() -> None:
    asked: list[str] = []

    def run(command: Sequence[str], *, timeout_s: float) -> Completed:
        asked.append(command[-1])
        return Completed(0, b"/sys/class/hwmon/hwmon3/oc1_event_cnt:7\n" if "grep" in command[-1] else b"", b"")

    def read_text(path: str) -> str | None:
        asked.append(path)
        return None

    state = read_state(Identity("jetson"), read_text, run, remote=True)
    assert state.throttle_events == {"over-current events 1": 7}
    assert len(asked) == 3, asked


@pytest.mark.parametrize("kind", ["linux", "raspberry_pi", "jetson", "android"])
def test_a_remote_device_that_gives_no_snapshot_is_asked_no_further(kind: Kind) -> None:
    asked: list[str] = []

    def run(command: Sequence[str], *, timeout_s: float) -> Completed:
        asked.append(command[-1])
        return Completed(127, b"", b"")

    state = read_state(Identity(kind), lambda path: asked.append(path), run, remote=True)
    assert replace(state, at_s=0.0) == State()
    assert len(asked) == 1
