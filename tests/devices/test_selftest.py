"""`acmix selftest` on this machine, on a virtual board and on a virtual phone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acmix.apps.cli import app
from acmix.apps.selftest import record
from acmix.toolkit.artifact import Artifact

Exported = Callable[[str], dict[str, Artifact]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of one's own, without the developer's devices."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def ask(name: str, artifacts: list[Artifact], *words: str) -> tuple[int, record.Report, str]:
    """The exit code, what was written down, and what people read."""
    given = [word for a in artifacts for word in ("--artifact", str(a.folder))]
    done = CliRunner().invoke(app, ["selftest", "--device", name, "--out", "facts.json", *given, *words])
    assert done.exit_code in (0, 1), done.exception
    return done.exit_code, record.read(Path("facts.json")), done.stderr


def add(name: str, transport: str, address: str) -> None:
    """A device file of the project."""
    Path("devices").mkdir()
    Path(f"devices/{name}.toml").write_text(f'transport = "{transport}"\naddress = "{address}"\ncores = [0]\n')


@pytest.mark.parametrize("name", ["board", "phone"])
def test_every_claim_holds_on_the_virtual_devices(
    name: str, request: pytest.FixtureRequest, arm64_runtimes: Path, exported: Exported
) -> None:
    device = request.getfixturevalue(name).device
    add("mine", device.transport, device.address)
    files = [exported("float32")["tflite"], exported("w8a8")["tflite"], exported("float32")["onnx"]]
    code, report, screen = ask("mine", files)
    assert [r for r in report.records if r.outcome == "failed"] == [] and code == 0
    found = {r.name: r for r in report.records}
    skipped = [r.name for r in report.records if r.outcome == "skipped"]
    onnx = [f"{what} {files[2].name}" for what in ("runner for", "outputs of", "kernels of")]
    assert skipped == (onnx if name == "phone" else [])
    if name == "phone":
        assert "no ONNX runner for phones" in found[onnx[0]].reason
    integers = found[f"outputs of {files[1].name}"].evidence
    assert integers["differing"] == 0 and integers["values"] > 1000
    assert 0 <= found[f"outputs of {files[0].name}"].evidence["largest_difference"] < 1e-3
    noted = found[f"kernels of {files[0].name}"].evidence
    assert noted["kernels"] >= 10 and noted["named"] >= 5
    measured = found["measurement"].evidence
    assert measured["verdict"] == "emulated"
    assert all(set(row) == {"artifact", "runs", "emulated"} for row in measured["summary"])
    assert found["pinning"].evidence["allowed_there"] == "0"
    assert report.device.identity is not None and report.device.identity.emulation
    assert {"acmix", "ai-edge-litert", device.transport} <= set(report.versions)
    # A serial or a host's name is nobody's business.
    assert device.address not in Path("facts.json").read_text() or device.address == name
    assert "0 failed" in screen


def test_this_machine_is_a_device_too(exported: Exported) -> None:
    code, report, screen = ask("host", [exported("w8a8")["tflite"]])
    assert code == 0 and report.device.transport == "local"
    assert [r.name for r in report.records if r.outcome != "passed"] == ["resumed push"]
    (row,) = next(r for r in report.records if r.name == "measurement").evidence["summary"]
    assert row["p50_ms"] > 0
    assert "Written down: facts.json" in screen


def test_a_device_that_is_away_fails_once_and_the_rest_is_skipped(ssh_home: Any) -> None:
    add("gone", "ssh", "ssh://nobody@127.0.0.1:9")
    code, report, _ = ask("gone", [], "--json")
    first, *others = report.records
    assert code == 1 and first.outcome == "failed" and "offline" in first.reason
    assert "ssh://nobody@127.0.0.1:9" not in Path("facts.json").read_text()
    assert {r.outcome for r in others} == {"skipped"}
    assert {r.reason for r in others} == {"the device is not ready"}


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    for out, words in (("old.json", "exists already"), ("no/x.json", "there is no folder"), (".", "is a folder")):
        done = CliRunner().invoke(app, ["selftest", "--device", "host", "--out", out])
        assert words in str(done.exception)
    assert json.loads((tmp_path / "old.json").read_text()) == {}
