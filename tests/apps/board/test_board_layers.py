"""`acmix profile --layers --device`: the same table from a runner as from this host, or a sentence."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from acmix.apps.board.choose import PYTHON_RUNNER
from acmix.apps.cli import app
from acmix.toolkit._layer_report import LayersRequest
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.device import Device
from acmix.toolkit.devices import connect
from acmix.toolkit.errors import GateError
from acmix.toolkit.measurement import read_measurement
from acmix.toolkit.remote import RunnerBundle
from acmix.toolkit.remote_layers import profile_layers_on_device

Exported = Callable[[str], dict[str, Artifact]]
BOX = Device("box", "local")
MODULES = {"stem.0", "depthwise.0", "gate.1", "point.0", "head"}

LIAR = """
import json, sys
notes, folder = json.loads(sys.argv[1]), sys.argv[2]
sys.path.insert(0, folder)
import python_runner
class Liar(python_runner.Server):
    def kernels(self):
        return notes
    def load(self, file, threads, profiled):
        return super().load(file, threads, False)
python_runner.serve(Liar("onnx"), sys.stdin.buffer, sys.stdout.buffer)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that knows this machine as `box` too, whose python3 has our runtimes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "box.toml").write_text('transport = "local"\n')
    program(tmp_path / "path", "python3", f'exec {sys.executable} "$@"')
    program(tmp_path / "path", "uname", "echo Linux x86_64")
    monkeypatch.setenv("PATH", str(tmp_path / "path"), prepend=":")
    return tmp_path


def program(folder: Path, name: str, line: str) -> None:
    """A program of the user's own."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{line}\n")
    (folder / name).chmod(0o755)


def copied(artifact: Artifact, folder: Path) -> str:
    """A copy beside which a report may be written."""
    return str(shutil.copytree(artifact.folder, folder / artifact.name))


def profile(*words: str) -> Any:
    """The command's end."""
    return CliRunner().invoke(app, ["profile", *words, "--layers", "--runs", "4", "--json"])


def test_a_runner_and_this_host_tell_of_the_same_modules(project: Path, exported: Exported, tiny: str) -> None:
    folder = copied(exported("float32")["onnx"], project)
    done = profile(folder, "--device", "box,host", "--model", tiny, "--plot", "layers.png")
    assert done.exit_code == 0, done.stderr
    box, host = json.loads(done.stdout)["devices"]
    assert [box["device"], host["device"]] == ["box", "host"]
    told = [{row["module"]: row["source"] for row in one["rows"]} for one in (box, host)]
    assert told[0] == told[1] and set(told[0]) >= MODULES
    kernels = [[(o["kind"], o["module"]) for o in one["layers"]["layers"][0]["operators"]] for one in (box, host)]
    assert kernels[0] == kernels[1]
    (layers,), (summary,) = box["layers"]["layers"], box["summary"]
    assert all(len(one["times_ns"]) == len(layers["profiled_ns"]) >= 4 for one in layers["operators"])
    assert "Python runner" in layers["measured_by"]
    # The convolution ran there too, on the same runtime.
    assert len(layers["floor"]["latency_ns"]) >= 4 and summary["gmacs_per_s"] > 0
    assert 0 < summary["operators_ms"] <= 1.05 * summary["profiled_ms"]
    assert Path(box["saved"]).name.endswith("-box.json") and Path(host["saved"]).is_file()
    assert Image.open("layers-box.png").size[0] > 400 and Path("layers-host.png").is_file()


def test_what_has_no_profiler_there_says_what_to_do_and_the_next_one_has_its_turn(
    project: Path, exported: Exported
) -> None:
    folder = copied(exported("float32")["tflite"], project)
    done = profile(folder, "--device", "box,host")
    assert done.exit_code == 1
    box, host = json.loads(done.stdout)["devices"]
    assert "native runners are built for arm64 Linux, it is Linux x86_64" in box["error"]
    assert "Export the model for onnx" in box["error"]
    assert host["summary"][0]["profiled_ms"] > 0


@pytest.mark.parametrize(
    ("notes", "sentence"),
    [
        ({"kernels": [], "runs": []}, r"holds 0 of \d+ runs: it was cut"),
        ({"kernels": [{"name": "Conv"}], "runs": [[[0, 1]]] * 3}, r"holds 3 of \d+ runs: it was cut"),
    ],
)
def test_notes_of_other_runs_than_ran_are_refused(
    exported: Exported, tmp_path: Path, notes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(GateError, match=sentence):
        lied_to(exported, tmp_path, json.dumps(notes))


def lied_to(exported: Exported, folder: Path, notes: str) -> None:
    """Profile on a device whose runner runs the file and tells these notes of it."""
    (folder / "liar").mkdir()
    (folder / "liar" / "liar.py").write_text(LIAR)
    command = (sys.executable, "{folder}/liar.py", notes, str(PYTHON_RUNNER.parent))
    bundle = RunnerBundle(folder / "liar", "liar", command, "a liar")
    request = LayersRequest(2, 1, (), folder, folder / "log")
    with connect(BOX) as transport:
        profile_layers_on_device(transport, [(exported("float32")["onnx"], bundle)], request, lambda said: None)


DYING = """
import os, sys
sys.path.insert(0, sys.argv[1])
import python_runner
class Dying(python_runner.Server):
    runs = 0
    def once(self):
        self.runs += 1
        return os._exit(9) if self.runs > 60 else super().once()
python_runner.serve(Dying("onnx"), sys.stdin.buffer, sys.stdout.buffer)
"""


def test_a_device_that_vanishes_leaves_the_runs_until_then(
    project: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(exported("float32")["onnx"], project)
    (project / "dying").mkdir()
    (project / "dying" / "dying.py").write_text(DYING)
    command = (sys.executable, "{folder}/dying.py", str(PYTHON_RUNNER.parent))
    bundle = RunnerBundle(project / "dying", "dying", command, "one that dies")
    monkeypatch.setattr("acmix.apps.board.layers.choose_runners", lambda *_, **__: [bundle])
    done = CliRunner().invoke(app, ["profile", folder, "--device", "box", "--layers", "--runs", "100000", "--json"])
    assert done.exit_code == 1
    (box,) = json.loads(done.stdout)["devices"]
    assert "the runner ended with exit code 9" in box["error"]
    assert f"The runs until then are kept: acmix profile --show {Path(box['kept']).name}" in done.stderr
    kept = read_measurement(Path(box["kept"]))
    assert kept.judgement.verdict == "incomplete"
    names = [timing.artifact for timing in kept.timings]
    assert names[1] == f"{names[0]}, kernels timed" and names[2] == "the convolution on onnx"
    taken = [1 + len(timing.warm_up_ns) + len(timing.latency_ns) for timing in kept.timings]
    assert 60 in taken and min(taken) >= 59


def test_a_profile_that_came_to_its_end_leaves_no_journal(project: Path, exported: Exported) -> None:
    folder = copied(exported("float32")["onnx"], project)
    assert profile(folder, "--device", "box").exit_code == 0
    assert list(project.glob("*.jsonl")) == [] and len(list(project.glob("layers-*.json"))) == 1
