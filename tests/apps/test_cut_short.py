"""Exports that are cut short: nothing half-written is left, and a sentence says what happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

T = TypeVar("T")
EXPORT = Path(sys.executable).parent / "acmix-export"


def command(tiny: str, out: Path) -> list[str]:
    return [str(EXPORT), "--model", tiny, "--input", "1x3x32x32", "--target", "onnx", "--out", str(out)]


@dataclass
class Patience:
    """A wait that ends."""

    limit_s: float

    def until(self, look: Callable[[], list[T]]) -> list[T]:
        """What is found at last."""
        end = time.monotonic() + self.limit_s
        while not (found := look()):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)
        return found


def is_converter(child: psutil.Process) -> bool:
    try:
        return "acmix.toolkit.lower" in child.cmdline()
    except psutil.Error:
        return False


def test_a_full_disk_is_a_sentence(tiny: str, tmp_path: Path) -> None:
    """A real one: a file system of 64 kilobytes, where mounting is allowed."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        answer = subprocess.run(command(tiny, small), capture_output=True, text=True, timeout=120)
        left = [p.name for p in small.iterdir() if p.suffix != ".log"]
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert answer.returncode == 2, answer.stderr
    assert "disk is full" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert left == []


def test_an_interrupt_leaves_nothing_half_written(tiny: str, tmp_path: Path) -> None:
    process = psutil.Popen(command(tiny, tmp_path / "out"), stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        (converter,) = Patience(120).until(lambda: [c for c in process.children() if is_converter(c)])
        # It stands still: the interrupt meets an export in its middle, however slow this machine is.
        converter.suspend()
        Patience(120).until(lambda: list(tmp_path.glob("out/.*")))
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 2
    assert "interrupted" in err
    assert "Traceback" not in err
    assert [p for p in tmp_path.glob("out/*") if p.suffix != ".log"] == []
    assert list(tmp_path.glob("out/.*")) == []
    assert not converter.is_running()
