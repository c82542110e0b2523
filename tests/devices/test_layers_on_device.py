"""`acmix profile --layers --device` on a virtual phone and a virtual board: modules, and no milliseconds."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acmix.apps.cli import app
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.devices import connect

Exported = Callable[[str], dict[str, Artifact]]
RUN_ON = {"phone": "executorch", "board": "tflite"}
"""Each native runner once; the selftest asks both devices for the kernels of TFLite files, and the board for ONNX's."""
MODULES = {"stem.0", "depthwise.0", "gate.1", "point.0", "head"}


@pytest.fixture(autouse=True)
def runtimes(arm64_runtimes: Path) -> None:
    """The runtimes that install.sh brought, or a skip."""


@pytest.mark.parametrize("name", ["board", "phone"])
def test_each_runner_tells_where_the_time_goes(
    name: str,
    request: pytest.FixtureRequest,
    exported: Exported,
    tiny: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    device = request.getfixturevalue(name).device
    Path("devices").mkdir()
    text = f'transport = "{device.transport}"\naddress = "{device.address}"\ncores = [0]\n'
    Path("devices/there.toml").write_text(text, encoding="utf-8")
    artifact = exported("float32")[RUN_ON[name]]
    folder = str(shutil.copytree(artifact.folder, tmp_path / artifact.name))
    words = [folder, "--layers", "--device", "there", "--runs", "2", "--model", tiny, "--plot", "layers.png"]
    done = CliRunner().invoke(app, ["profile", *words, "--json"])
    assert done.exit_code == 0, done.stderr
    (told,) = json.loads(done.stdout)["devices"]
    check_modules(told)
    check_no_milliseconds(told, done.stderr)
    assert Path("layers.png").stat().st_size > 10_000
    with connect(device) as transport:
        left = ".cache/acmix-work" if name == "board" else "/data/local/tmp/acmix-work"
        assert transport.run(["ls", left], timeout_s=30).code != 0


def check_modules(told: dict[str, Any]) -> None:
    """Each runtime has the time of each module, by every run."""
    rows = {row["module"]: row for row in told["rows"]}
    assert set(rows) >= MODULES
    for module in MODULES:
        assert all(share is not None for share in rows[module]["shares"]), module
        assert "tiny_net.py" in rows[module]["source"]
    for one in told["layers"]["layers"]:
        assert len(one["operators"]) >= 10 and len(one["profiled_ns"]) >= 2
        assert all(len(operator["times_ns"]) == len(one["profiled_ns"]) for operator in one["operators"])
        assert one["floor"] is None
        # A share of all the operators is known to be in the delegate.
        delegated = {operator["delegated"] for operator in one["operators"]}
        assert delegated == {True}


def check_no_milliseconds(told: dict[str, Any], shown: str) -> None:
    """An emulator's times are raw samples in the file and nowhere else."""
    assert told["layers"]["emulation"]
    assert all(set(one) == {"artifact", "emulated", "outside_share"} for one in told["summary"])
    assert all(ms is None for row in told["rows"] for ms in row["ms"])
    assert shown.count("emulated") > 5 and "no compute floor was measured: the device is emulated" in shown
    assert not re.search(r"\d\.\d{3}\b(?!.*runner)", shown)
