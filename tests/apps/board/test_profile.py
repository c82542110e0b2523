"""`acmix profile --device` where a device fails or its user stops it: what was taken stays, nothing else begins."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acmix.apps.board.choose import _installed_there, choose_runners
from acmix.apps.cli import app
from acmix.toolkit import _remote_place, remote
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.device import Device
from acmix.toolkit.devices import connect
from acmix.toolkit.errors import UsageError
from acmix.toolkit.measurement import read_measurement

Exported = Callable[[str], dict[str, Artifact]]
PROGRAM = Path(sys.executable).with_name("acmix")
BOX = Device("box", "local")
GLANCE = ["--runs", "2", "--seconds", "0", "--wait", "0", "--warm-up", "0.1", "--json"]
PATIENCE_S = 60.0


@pytest.fixture
def folder(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An ExecuTorch artifact in a project that knows this machine as `box` too, which gets no native runner."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "box.toml").write_text('transport = "local"\n')
    program(tmp_path, "uname", "echo Linux riscv64", monkeypatch)
    source = exported("float32")["executorch"].folder
    return str(shutil.copytree(source, tmp_path / source.name))


def program(place: Path, name: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program at the head of PATH."""
    (place / "path").mkdir(exist_ok=True)
    file = place / "path" / name
    file.write_text(f"#!/bin/sh\n{line}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'path'}:{os.environ['PATH']}")


@pytest.mark.parametrize("order", ["box,host", "host,box"])
def test_a_device_without_a_runner_costs_the_others_nothing(order: str, folder: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["profile", folder, "--device", order, *GLANCE])
    assert done.exit_code == 1, done.stderr
    rows: dict[str, dict[str, Any]] = {row["device"]: row for row in json.loads(done.stdout)["devices"]}
    assert list(rows) == order.split(",")
    assert "native runners are built for arm64 Linux, it is Linux riscv64" in rows["box"]["error"]
    assert len(read_measurement(Path(rows["host"]["saved"])).timings[0].latency_ns) >= 2
    assert len(list(tmp_path.glob("profile-*"))) == 1


def test_an_interruption_saves_its_device_and_begins_no_other(folder: str, tmp_path: Path) -> None:
    command = [str(PROGRAM), "profile", folder, "--device", "host,box", "--seconds", "3600", "--wait", "0", "--json"]
    command += ["--warm-up", "0.2"]
    end = time.monotonic() + PATIENCE_S
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not any(b'"latency"' in file.read_bytes() for file in tmp_path.glob("profile-*.jsonl")):
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, words = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == 1, words
    (row,) = json.loads(out)["devices"]
    assert row["device"] == "host" and "it was interrupted" in words
    saved = read_measurement(Path(row["saved"]))
    assert saved.judgement.verdict == "incomplete" and saved.timings[0].latency_ns
    assert list(tmp_path.glob("*.jsonl")) == []


@pytest.mark.parametrize("said", ["Darwin arm64", "arm64", "", "Linux x86_64"])
def test_what_is_no_arm64_linux_gets_no_native_runner(
    said: str, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "uname", f"echo {said}", monkeypatch)
    with connect(BOX) as transport, pytest.raises(UsageError, match="built for arm64 Linux, it is"):
        choose_runners(transport, [exported("float32")["executorch"]])


def test_a_module_of_a_package_with_another_name_has_an_unknown_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As onnxruntime-gpu installs it, beside one whose version is known.
    modules = tmp_path / "modules"
    for name in ("onnxruntime", "tflite_runtime", "numpy"):
        (modules / name).mkdir(parents=True)
        (modules / name / "__init__.py").touch()
    (modules / "tflite_runtime-2.14.0.dist-info").mkdir()
    (modules / "tflite_runtime-2.14.0.dist-info" / "METADATA").write_text("Name: tflite-runtime\nVersion: 2.14.0\n")
    # -S: without the packages that are installed here.
    program(tmp_path, "python3", f'PYTHONPATH={modules} exec {sys.executable} -S "$@"', monkeypatch)
    with connect(BOX) as transport:
        found = _installed_there(transport, ["onnxruntime", "tflite_runtime", "ai_edge_litert"])
    assert found == {"onnxruntime": "unknown", "tflite_runtime": "2.14.0"}


def test_two_artifacts_of_the_same_model_file_keep_their_own_probes(exported: Exported, tmp_path: Path) -> None:
    artifact = exported("float32")["tflite"]
    other = Artifact(artifact.folder, replace(artifact.manifest, seed=artifact.manifest.seed + 1))
    bundle = remote.RunnerBundle(tmp_path, "none", ("true",), "none")
    with connect(BOX) as transport:
        placed = [
            _remote_place.place(transport, each, bundle, "", number) for number, each in enumerate((artifact, other))
        ]
        (first,), (second,) = (each.inputs[_remote_place.TIMED_PROBE] for each in placed)
        assert Path(first).read_bytes() != Path(second).read_bytes()
