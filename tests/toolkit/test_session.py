"""Sessions: a runtime in a process of its own, and every way in which it can die."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from acmix.toolkit._session_messages import Command
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.errors import GateError
from acmix.toolkit.session import open_session

Exported = Callable[[str], dict[str, Artifact]]
IMAGE = np.zeros((1, 3, 32, 32), np.float32)


def test_a_session_runs_in_another_process_and_is_gone_afterwards(exported: Exported, tmp_path: Path) -> None:
    with open_session(exported("float32")["onnx"].session(), tmp_path / "log") as session:
        assert session.load().latency_ns[0] > 0
        assert session.process.pid != os.getpid()
        assert session.run([IMAGE])[0].shape == (1, 2000)
    assert session.process.poll() is not None


def test_timed_runs_give_one_sample_each(exported: Exported, tmp_path: Path) -> None:
    with open_session(exported("float32")["onnx"].session(), tmp_path / "log") as session:
        session.load()
        session.run([IMAGE])
        answer = session.time(7)
    assert len(answer.latency_ns) == 7
    assert answer.peak_memory_mb > 10


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no processes")
def test_a_session_stays_on_its_processors(exported: Exported, tmp_path: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    with open_session(exported("float32")["onnx"].session(cpus=(cpu,)), tmp_path / "log") as session:
        session.load()
        assert os.sched_getaffinity(session.process.pid) == {cpu}


def test_inputs_of_the_wrong_shape_are_the_runtimes_error(exported: Exported, tmp_path: Path) -> None:
    with open_session(exported("float32")["onnx"].session(), tmp_path / "log") as session:
        session.load()
        with pytest.raises(GateError, match=r"(?s)the onnx runtime failed to run model.onnx.*Full log"):
            session.run([np.zeros((1, 3, 5, 5), np.float32)])


def test_a_command_before_loading_is_refused(exported: Exported, tmp_path: Path) -> None:
    early = pytest.raises(GateError, match="came before 'load'")
    with open_session(exported("float32")["onnx"].session(), tmp_path / "log") as session, early:
        session.ask(Command("time", count=1))


def test_a_runtime_that_is_killed_is_reported_with_its_signal(exported: Exported, tmp_path: Path) -> None:
    with open_session(exported("float32")["onnx"].session(), tmp_path / "log") as session:
        session.load()
        os.kill(session.process.pid, signal.SIGSEGV)
        with pytest.raises(GateError, match="killed by signal 11"):
            session.run([IMAGE])


def test_a_runtime_that_hangs_is_ended(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_session(exported("float32")["onnx"].session(), tmp_path / "log") as session:
        session.load()
        os.kill(session.process.pid, signal.SIGSTOP)
        monkeypatch.setattr("acmix.toolkit.session.TIMEOUT_S", 0.5)
        with pytest.raises(GateError, match="killed by signal 9"):
            session.run([IMAGE])
