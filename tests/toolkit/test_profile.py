"""`acmix profile` for real: photos, verdict, and what is left when somebody kills it in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from rich.console import Console

from acmix.apps import profiles
from acmix.calibration.photos import read_photo_folder
from acmix.toolkit.artifact import Artifact, open_artifact
from acmix.toolkit.conditions import Identity, difference
from acmix.toolkit.journal import SUFFIX
from acmix.toolkit.measurement import Measurement, read_measurement
from acmix.toolkit.profile import ProfileRequest, profile
from acmix.toolkit.verdict import judge

Exported = Callable[[str], dict[str, Artifact]]
PROGRAM = Path(sys.executable).with_name("acmix")
PATIENCE_S = 60.0


@pytest.fixture
def artifacts(exported: Exported, tmp_path: Path) -> list[Artifact]:
    """Two artifacts in a folder of their own, which takes journals and results."""
    made = exported("float32")
    return [
        open_artifact(Path(shutil.copytree(made[name].folder, tmp_path / made[name].folder.name)))
        for name in ("onnx", "tflite")
    ]


def until(found: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


@pytest.fixture
def running(artifacts: list[Artifact]) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A measurement that would take an hour, with its journal, well inside the runs that count."""
    command = [str(PROGRAM), "profile", *(str(a.folder) for a in artifacts), "--seconds", "3600", "--wait", "0"]
    command += ["--warm-up", "0.5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = artifacts[0].folder.parent
    try:
        until(
            lambda: any(b'"latency"' in f.read_bytes() for f in folder.glob(f"*{SUFFIX}")) or process.poll() is not None
        )
        yield process, next(iter(folder.glob(f"*{SUFFIX}")))
    finally:
        process.kill()
        process.communicate()


def latencies(measurement: Measurement) -> int:
    return sum(len(t.latency_ns) for t in measurement.timings)


def test_killing_the_host_process_loses_no_sample_and_leaves_no_child(
    running: tuple[subprocess.Popen[str], Path],
) -> None:
    process, journal = running
    children = psutil.Process(process.pid).children()
    seen = journal.read_bytes().count(b'"latency"')
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    assert len(children) == 2
    assert psutil.wait_procs(children, timeout=10)[1] == []
    recovered = read_measurement(journal)
    assert latencies(recovered) >= seen > 0
    assert recovered.judgement.verdict == "incomplete"
    shown = subprocess.run([PROGRAM, "profile", "--show", journal, "--json"], capture_output=True, text=True)
    assert shown.returncode == 1
    assert "ended before it was done" in shown.stderr
    assert json.loads(shown.stdout)["measurement"]["judgement"]["verdict"] == "incomplete"


@pytest.mark.parametrize("victim", ["program", "runtime"])
def test_an_interruption_and_a_dead_runtime_end_it_with_what_was_taken(
    victim: str, running: tuple[subprocess.Popen[str], Path]
) -> None:
    process, journal = running
    seen = journal.read_bytes().count(b'"latency"')
    if victim == "program":
        process.send_signal(signal.SIGINT)
    else:
        psutil.Process(process.pid).children()[0].kill()
    _, words = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, words
    assert ("it was interrupted" if victim == "program" else "killed by signal 9") in words
    assert "Verdict: incomplete" in words
    saved = read_measurement(journal.with_suffix(".json"))
    assert latencies(saved) >= seen > 0
    assert not journal.exists()


def test_each_run_takes_the_next_photo(artifacts: list[Artifact], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for shade in (10, 90, 200):
        Image.fromarray(np.full((40, 50, 3), shade, np.uint8)).save(folder / f"{shade}.png")
    samples = [read_photo_folder(folder, artifact.manifest.preprocess) for artifact in artifacts]
    journal = tmp_path / "run.jsonl"
    request = ProfileRequest(runs=12, seconds=0.0, warm_up_limit_s=0.5)
    measurement = profile(artifacts, request, tmp_path / "log", lambda word: None, journal, samples)
    assert measurement.inputs == "3 photos of photos, in turn"
    assert [len(t.latency_ns) for t in measurement.timings] == [12, 12]
    assert read_measurement(journal).timings == measurement.timings


def test_our_own_work_is_told_apart_from_that_of_others(artifacts: list[Artifact], tmp_path: Path) -> None:
    if not psutil.LINUX:
        pytest.skip("/proc/stat is Linux's")
    request = ProfileRequest(runs=40, seconds=0.1, processes=2, warm_up_limit_s=0.5)
    result = profile(artifacts, request, tmp_path / "log", lambda word: None)
    before, after = result.conditions.before, result.conditions.after
    assert before is not None and after is not None
    ours, busy = difference(before.ours_s, after.ours_s), difference(before.busy_s, after.busy_s)
    # Two artifacts ran for a tenth of a second each, in children that are gone by now.
    assert ours is not None and busy is not None
    assert 0.2 <= ours <= busy + 0.1
    assert [len(t.processes) for t in result.timings] == [2, 2]


def test_an_emulated_devices_milliseconds_are_nowhere_in_the_table(artifacts: list[Artifact], tmp_path: Path) -> None:
    real = profile(
        artifacts[:1], ProfileRequest(runs=20, seconds=0.0, warm_up_limit_s=0.5), tmp_path / "log", lambda word: None
    )
    shown = printed(real)
    assert f"{real.timings[0].percentile_ms(50):.2f}" in shown
    conditions = replace(real.conditions, identity=Identity(emulation=("the device tree says QEMU",)))
    emulated = replace(real, conditions=conditions, judgement=judge(conditions, [], ""))
    shown = printed(emulated)
    assert shown.count("emulated") >= 8
    assert not any(f"{real.timings[0].percentile_ms(p):.2f}" in shown for p in (50, 90, 99))
    assert "Verdict: emulated" in shown


def printed(measurement: Measurement) -> str:
    screen = Console(width=200, markup=False, highlight=False)
    with screen.capture() as capture:
        screen.print(profiles.latencies(measurement))
        screen.print(profiles.judgement(measurement))
    return capture.get()


def test_escape_sequences_of_a_foreign_file_are_not_printed(artifacts: list[Artifact], tmp_path: Path) -> None:
    real = profile(
        artifacts[:1], ProfileRequest(runs=4, seconds=0.0, warm_up_limit_s=0.5), tmp_path / "log", lambda word: None
    )
    named = replace(real.timings[0], artifact="a\x1b[2Jb\u202e")
    conditions = replace(real.conditions, machine={"cpu": "\x1b]0;x\x07"}, governor="\x1b[31m")
    shown = printed(replace(real, timings=(named,), conditions=conditions))
    assert not set(shown) & {"\x1b", "\x07", "\u202e"}


def test_an_unknown_preset_is_refused_with_the_known_ones(artifacts: list[Artifact]) -> None:
    command = [str(PROGRAM), "profile", str(artifacts[0].folder), "--preset", "quik"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Did you mean quick?" in done.stderr
    assert "normal (1024 runs, 60 s)" in done.stderr


def test_nothing_to_measure_is_refused() -> None:
    done = subprocess.run([PROGRAM, "profile"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--show" in done.stderr
