"""What a runner on a device may answer: nothing it says is believed before it was looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from acmix.toolkit import _remote_place, remote
from acmix.toolkit._remote_runner import RemoteRunner, RunnerBundle, pinned, start_runner
from acmix.toolkit.conditions import Identity
from acmix.toolkit.device import Device, Transport
from acmix.toolkit.devices import connect
from acmix.toolkit.errors import GateError
from acmix.toolkit.kernels import Noted
from acmix.toolkit.profile import ProfileRequest
from acmix.toolkit.spec import TensorSpec

OUTPUTS = (TensorSpec("scores", (1, 2), "float32"),)
RIGHT = "AACAPwAAAEA="
"""1.0 and 2.0, little-endian, in base64."""


@pytest.fixture
def host() -> Iterator[Transport]:
    """This machine, by the transport of a device."""
    with connect(Device("box", "local")) as transport:
        yield transport


def answer(transport: Transport, folder: Path, line: str) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """The outputs of a runner that answers every command with this line."""
    with answering(transport, folder, line) as runner:
        return runner.run(["x"])[1]


@contextmanager
def answering(transport: Transport, folder: Path, line: str) -> Iterator[RemoteRunner]:
    """A runner that answers every command with this line."""
    folder = folder / "bundle"
    folder.mkdir()
    (folder / "line").write_text(line + "\n", encoding="utf-8")
    bundle = RunnerBundle(folder, "fake", ("sh", "-c", "while read x; do cat '{folder}/line'; done"), "a shell")
    place = transport.push(folder, "fake")
    with start_runner(transport, bundle, place, OUTPUTS) as runner:
        yield runner


def reply(**changed: object) -> str:
    """A right answer to `run`, with changes."""
    return json.dumps({"latency_ns": [1000], "outputs": [RIGHT], "peak_memory_kb": 4096, **changed})


def test_a_right_answer_becomes_arrays(host: Transport, tmp_path: Path) -> None:
    (found,) = answer(host, tmp_path, reply())
    assert found.shape == (1, 2) and found.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    "line",
    [
        "garbage",
        "[]",
        "{}",
        reply(outputs=[]),
        reply(outputs=[RIGHT, RIGHT]),
        reply(outputs=["AACAPw=="]),
        reply(outputs=["not base64!"]),
        reply(outputs=[7]),
        reply(latency_ns=[]),
        reply(latency_ns=[0]),
        reply(latency_ns=[-5]),
        reply(latency_ns=["1000"]),
        reply(latency_ns=[10**18]),
        reply(latency_ns=[1, 2]),
        reply(peak_memory_kb=-1),
        "[" * 10_000,
    ],
)
def test_nonsense_is_refused(host: Transport, tmp_path: Path, line: str) -> None:
    with pytest.raises(GateError, match="box: the runner answers nonsense"):
        answer(host, tmp_path, line)


def test_an_error_is_shown_without_its_control_characters(host: Transport, tmp_path: Path) -> None:
    with pytest.raises(GateError) as caught:
        answer(host, tmp_path, json.dumps({"error": "no \x1b[31mmemory"}))
    assert str(caught.value) == "box: the runner could not run: no ?[31mmemory"


def test_an_answer_longer_than_its_outputs_can_be_is_refused(host: Transport, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="a line of more than"):
        answer(host, tmp_path, reply(outputs=["A" * 200_000]))


def test_a_runner_that_is_pinned_stays_on_its_processors(host: Transport) -> None:
    assert pinned(["x"], ()) == ["x"]
    assert pinned(["x"], (0, 5)) == ["taskset", "21", "x"]
    done = host.run(pinned(["python3", "-c", "import os; print(os.sched_getaffinity(0))"], (0,)), timeout_s=30)
    assert done.stdout == b"{0}\n"


def test_the_limit_of_an_answer_follows_its_outputs() -> None:
    large = TensorSpec("map", (1, 1000, 1000), "float32")

    class Deaf:
        def write(self, data: bytes) -> None: ...
        def readline(self, timeout_s: float, limit_bytes: int) -> bytes:
            return b""

    assert RemoteRunner("box", Deaf(), [large]).limit_bytes > 4_000_000 * 4 / 3


def told(**changed: object) -> str:
    """A right answer to `kernels`, with changes."""
    kernels = [{"name": "Conv", "delegated": True, "place": [0, 1]}, {"name": "Add", "makes": "y"}]
    return json.dumps({"kernels": kernels, "runs": [[[0, 10], [1, 20]], [[0, 11], [1, 0]]], **changed})


def test_right_notes_are_taken_as_they_are(host: Transport, tmp_path: Path) -> None:
    with answering(host, tmp_path, told()) as runner:
        notes = runner.kernels()
    assert notes.kernels == (Noted("Conv", delegated=True, place=(0, 1)), Noted("Add", makes="y"))
    assert notes.runs == (((0, 10), (1, 20)), ((0, 11), (1, 0)))


@pytest.mark.parametrize(
    "line",
    [
        "garbage",
        "[]",
        told(kernels=7),
        told(kernels=[{}]),
        told(kernels=[{"name": 7}]),
        told(kernels=[{"name": "x", "place": [0, -1]}, {"name": "y"}]),
        told(kernels=[{"name": "x", "place": [2**40, 0]}, {"name": "y"}]),
        told(kernels=[{"name": "x", "place": [1]}, {"name": "y"}]),
        told(runs=[[[2, 10]]]),
        told(runs=[[[-1, 10]]]),
        told(runs=[[[0, -10]]]),
        told(runs=[[[0, 10**18]]]),
        told(runs=[[[0, 1.5]]]),
        told(runs=[[0, 10]]),
        told(kernels=[{"name": "x"}] * 10_001),
        told(runs=[[[0, 1]] * 10_001]),
        '{"runs":' + "[" * 10_000,
    ],
)
def test_notes_that_are_nonsense_are_refused(host: Transport, tmp_path: Path, line: str) -> None:
    with (
        answering(host, tmp_path, line) as runner,
        pytest.raises(GateError, match="box: the runner answers nonsense") as caught,
    ):
        runner.kernels()
    assert len(str(caught.value)) < 300


def test_megabytes_of_notes_are_cut(host: Transport, tmp_path: Path) -> None:
    with (
        answering(host, tmp_path, told(runs=[[[0, 1]] * 3_000_000])) as runner,
        pytest.raises(
            GateError, match=r"a line of more than 16777216 bytes\nThe profile is too long: profile fewer runs"
        ),
    ):
        runner.kernels()


def test_another_failure_gives_no_advice_about_long_profiles(host: Transport, tmp_path: Path) -> None:
    with answering(host, tmp_path, '{"error":"out of memory"}') as runner, pytest.raises(GateError) as caught:
        runner.kernels()
    assert str(caught.value) == "box: the runner could not kernels: out of memory"


def test_the_words_of_notes_can_be_shown(host: Transport, tmp_path: Path) -> None:
    words = {"name": "\x1b[2JConv\u009b", "kind": "\x07" * 5000, "runs_on": "\u202eupC", "makes": "y"}
    with answering(host, tmp_path, told(kernels=[words, words])) as runner:
        noted = runner.kernels().kernels[0]
    assert noted.name == "?[2JConv?" and noted.runs_on == "?upC" and noted.makes == "y"
    assert set(noted.kind) == set("? .") and len(noted.kind) < 320


def counts(**changed: object) -> str:
    """A right answer to `count`, with changes."""
    return json.dumps({"loops": [2_000_012, 2_000_012], "instructions": [700, 700, 706], **changed})


def test_instructions_are_believed_where_a_known_loop_is_counted_right(host: Transport, tmp_path: Path) -> None:
    with answering(host, tmp_path, counts()) as runner:
        assert runner.count(3) == (700, 700, 706)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (counts(loops=[1_000_000, 2_000_012]), "for a loop, which has 2000000 it gives 1000000 and 2000012"),
        (counts(loops=[2_000_012, 2_100_000]), "for a loop, which has 2000000 it gives 2000012 and 2100000"),
        (counts(instructions=[700, 700, 708]), "for a run it gives 700 and 708"),
        (counts(instructions=[700, 700]), "answers nonsense: 2 counts of 3 runs"),
        (counts(instructions=[700, 700, -1]), "answers nonsense"),
        (counts(loops=[]), "answers nonsense"),
        ('{"error":"no counter of instructions: Not implemented"}', "could not count: no counter of instructions"),
    ],
)
def test_other_counts_are_refused(host: Transport, tmp_path: Path, line: str, sentence: str) -> None:
    with answering(host, tmp_path, line) as runner, pytest.raises(GateError, match=sentence):
        runner.count(3)


@pytest.mark.parametrize(
    ("emulation", "threads", "sentence"),
    [
        ((), 1, r"box is no emulated device: it has a latency\.\nTake counts_instructions out of"),
        (None, 1, r"box does not say whether it is real\.\nTake counts_instructions out of"),
        (("QEMU",), 2, "box counts the instructions of one thread, not of --threads 2"),
    ],
)
def test_what_cannot_be_counted_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
    emulation: tuple[str, ...] | None,
    threads: int,
    sentence: str,
) -> None:
    monkeypatch.setattr(_remote_place, "reader", lambda transport: (Identity(emulation=emulation), None))
    said: list[str] = []
    with connect(Device("box", "local", counts_instructions=True)) as transport:
        with pytest.raises(GateError, match=sentence):
            remote.profile_on_device(transport, [], ProfileRequest(threads=threads), said.append)
        assert said == []
        # What counts nothing, as a profile of layers, goes on.
        assert _remote_place.send_and_prove(transport, [], threads, said.append) == []
    assert said == ["box: sending"]
