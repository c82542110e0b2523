"""Converters kept warm: one import, a process a job, the files of fresh processes, and nothing left behind."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from acmix.toolkit import catalog, warm
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.lower import LoweringRequest, start_lowering
from acmix.toolkit.program import save_program
from acmix.toolkit.spec import TensorSpec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="converters are forked on Linux only")


@dataclass
class Jobs:
    """One convolution, lowered to ONNX as often as asked."""

    folder: Path
    program: str

    def request(self, name: str) -> LoweringRequest:
        return LoweringRequest(
            self.program,
            str(self.folder / f"{name}.onnx"),
            "convolution",
            catalog.load_recipe("float32"),
            (TensorSpec("image", (1, 3, 8, 8)),),
            (TensorSpec("output", (1, 4, 8, 8)),),
            {},
        )

    def lower(self, name: str) -> int:
        """Write NAME.onnx; the process number of the child that was asked."""
        with start_lowering("onnx", self.folder / f"{Path(name).name}.log", 1) as lowering:
            lowering.lower(self.request(name))
        return lowering.process.pid

    def start(self, name: str, threads: int = 1) -> int:
        """The process number of the child that would be asked."""
        with start_lowering("onnx", self.folder / f"{name}.log", threads) as lowering:
            return lowering.process.pid

    def nobody_reads(self, name: str) -> str:
        """NAME, whose file is a pipe without a reader: writing it never ends."""
        os.mkfifo(self.folder / f"{name}.onnx")
        return name

    def content(self, name: str) -> bytes:
        return (self.folder / f"{name}.onnx").read_bytes()


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> str:
    convolution = nn.Conv2d(3, 4, 3, padding=1).eval()
    file = tmp_path_factory.mktemp("captured") / "captured.pt2"
    save_program(torch.export.export(convolution, (torch.zeros(1, 3, 8, 8),)), file)
    return str(file)


@pytest.fixture(scope="module", autouse=True)
def _stock() -> Iterator[None]:
    """Converters of this file's own, of which none is left behind."""
    before = set(psutil.Process().children())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm, "_STOCK", warm._Stock())
        with warm.kept_warm():
            yield
    assert [child for child in set(psutil.Process().children()) - before if is_converter(child)] == []


@pytest.fixture
def jobs(tmp_path: Path, captured: str) -> Jobs:
    return Jobs(tmp_path, captured)


def is_converter(process: psutil.Process) -> bool:
    try:
        return "acmix.toolkit.lower" in process.cmdline()
    except psutil.Error:
        return False


def test_jobs_of_one_converter_write_what_a_fresh_process_writes(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = jobs.lower("first")
    assert jobs.lower("second") == pid
    assert psutil.pid_exists(pid)
    monkeypatch.setattr(warm, "_STOCK", warm._Stock())
    fresh = jobs.lower("fresh")
    assert fresh != pid
    assert not psutil.pid_exists(fresh)
    assert jobs.content("first") == jobs.content("second") == jobs.content("fresh")


@pytest.mark.usefixtures("cold_converters")
def test_converters_end_with_the_outermost_block(jobs: Jobs) -> None:
    with warm.kept_warm():
        with warm.kept_warm():
            pid = jobs.start("first")
        assert psutil.pid_exists(pid)
        # Nobody asked it for anything: it waits on.
        assert jobs.start("second") == pid
    assert not psutil.pid_exists(pid)
    assert jobs.start("third") != pid


@pytest.mark.usefixtures("cold_converters")
def test_two_jobs_at_once_and_other_numbers_of_threads_take_converters_of_their_own(jobs: Jobs) -> None:
    with warm.kept_warm(), start_lowering("onnx", jobs.folder / "a.log", 1) as lowering:
        others = {jobs.start("b"), jobs.start("c", threads=2)}
        assert len(others | {lowering.process.pid}) == 3


def test_a_job_that_fails_leaves_the_converter_to_the_next_and_its_traceback_in_its_own_log(jobs: Jobs) -> None:
    pid = jobs.lower("good")
    with pytest.raises(GateError, match=r"(?s)the onnx converter failed: .*Full log: .*bad\.log"):
        jobs.lower("no folder/bad")
    assert jobs.lower("again") == pid
    assert "Traceback" in (jobs.folder / "bad.log").read_text()
    assert "Traceback" not in (jobs.folder / "good.log").read_text() + (jobs.folder / "again.log").read_text()


def test_a_jobs_temporary_files_go_with_it(jobs: Jobs) -> None:
    with start_lowering("onnx", jobs.folder / "log", 1) as lowering:
        lowering.lower(jobs.request("first"))
        assert Path(lowering.scratch).is_dir()
    assert not Path(lowering.scratch).exists()


def test_what_was_given_up_before_its_job_waits_for_another(jobs: Jobs) -> None:
    with pytest.raises(UsageError), start_lowering("onnx", jobs.folder / "log", 1) as lowering:
        raise UsageError("interrupted")
    assert jobs.start("next") == lowering.process.pid


def kill(find: Callable[[], psutil.Process | None]) -> threading.Thread:
    """Kill a process as soon as it is there, while the caller waits for its answer."""

    def wait_and_kill() -> None:
        end = time.monotonic() + 60
        while (found := find()) is None:
            assert time.monotonic() < end, "waited in vain"
        found.kill()

    killer = threading.Thread(target=wait_and_kill)
    killer.start()
    return killer


def test_a_job_that_is_killed_is_told_by_its_signal_and_the_next_one_is_done(jobs: Jobs) -> None:
    pid = jobs.lower("first")
    killer = kill(lambda: next(iter(psutil.Process(pid).children()), None))
    with pytest.raises(GateError, match=r"the onnx converter was killed by signal 9 \(SIGKILL\)\."):
        jobs.lower(jobs.nobody_reads("killed"))
    killer.join()
    assert jobs.lower("next") == pid


def test_a_converter_that_is_killed_takes_its_job_with_it_and_another_is_started(jobs: Jobs) -> None:
    pid = jobs.lower("first")
    killer = kill(lambda: psutil.Process(pid) if psutil.Process(pid).children() else None)
    with pytest.raises(GateError, match=r"killed by signal 9 \(SIGKILL\)"):
        jobs.lower(jobs.nobody_reads("killed"))
    killer.join()
    assert jobs.start("next") != pid


def test_an_interrupt_in_the_middle_of_a_job_ends_its_converter(jobs: Jobs) -> None:
    with pytest.raises(KeyboardInterrupt), start_lowering("onnx", jobs.folder / "log", 1) as lowering:
        raise KeyboardInterrupt
    assert not psutil.pid_exists(lowering.process.pid)
