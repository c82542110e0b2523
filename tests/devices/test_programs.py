"""`acmix devices`, as people and scripts call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acmix.apps.cli import app


def call(*words: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON of stdout, and stderr."""
    done = CliRunner().invoke(app, ["devices", *words, "--json"])
    return done.exit_code, json.loads(done.stdout), done.stderr


@pytest.fixture(autouse=True)
def empty_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No device of the developer's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("USBMUXD_SOCKET_ADDRESS", raising=False)


def test_a_device_is_added_listed_and_examined(laptop: Any, private_adb_server: None) -> None:
    code, answer, _ = call("add", "board_1", "--transport", "ssh", "--address", "laptop", "--cores", "0", "--project")
    assert (code, answer["file"], answer["schema_version"]) == (0, "devices/board_1.toml", 1)
    code, answer, screen = call("list")
    states = {device["name"]: device["state"]["availability"] for device in answer["devices"]}
    assert code == 0
    assert states["host"] == "ready" and states["board_1"] == "ready"
    assert "board_1" in screen
    code, answer, screen = call("doctor", "board_1")
    (report,) = answer["devices"]
    assert code == 0
    assert [check["what"] for check in report["checks"]] == [
        *("ssh", "device", "shell", "system", "work folder", "kept files", "python", "sysfs", "clock")
    ]
    assert "every argument arrives as it is" in screen


def test_an_attached_phone_is_listed_with_the_command_that_adds_it(phone: Any) -> None:
    # The virtual phone is on the network: adb lists it once it was connected.
    call("add", "known", "--transport", "adb", "--address", phone.device.address, "--project")
    call("list")
    Path("devices/known.toml").unlink()
    _, answer, screen = call("list")
    (found,) = [device for device in answer["devices"] if device["address"] == phone.device.address]
    assert (found["name"], found["state"]["availability"]) == ("", "ready")
    assert "acmix devices add NAME --transport adb" in screen


def test_a_device_that_is_away_fails_doctor_and_not_list(private_adb_server: None) -> None:
    call("add", "gone", "--transport", "ssh", "--address", "ssh://nobody@127.0.0.1:9", "--project")
    code, answer, _ = call("list")
    gone = next(device for device in answer["devices"] if device["name"] == "gone")
    assert code == 0
    assert gone["state"]["availability"] == "offline" and gone["state"]["cure"]
    code, answer, _ = call("doctor", "gone")
    assert code == 1
    assert [check["fine"] for check in answer["devices"][0]["checks"]] == [True, False]


def test_clean_removes_what_a_power_cut_left(laptop: Any, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "acmix-work" / "0123456789abcdef" / "models").mkdir(parents=True)
    (work / "acmix-cache").mkdir()
    (work / "acmix-cache" / f"{0:064x}").write_bytes(b"x" * 100_000)
    (work / "mine").write_text("stays")
    address = laptop.device.address
    call("add", "board_1", "--transport", "ssh", "--address", address, "--work-folder", str(work), "--project")
    code, answer, screen = call("clean", "board_1")
    assert (code, answer["devices"]) == (0, [{"name": "board_1", "removed": 1, "kept_files": 1, "kept_mb": 0.1}])
    assert "1 work folders removed, and 1 kept files of 0.1 MB" in screen
    assert [file.name for file in work.iterdir()] == ["mine"]
    done = CliRunner().invoke(app, ["devices", "clean", "host"])
    assert "nothing of acmix stays there" in str(done.exception)
