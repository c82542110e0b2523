"""A machine that boots: its own kernel, its own sysfs, sshd; measured like a board, and never believed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from acmix.apps.cli import app
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.devices import connect
from acmix.toolkit.measurement import read_measurement
from acmix.toolkit.state.reading import identify, read_state

Exported = Callable[[str], dict[str, Artifact]]


def test_a_booted_machine_tells_its_state_and_what_it_has_not_is_unknown(machine: Any) -> None:
    with connect(machine.device) as transport:
        assert transport.state().ready
        # The real register of a Cortex-A72: what a kernel shows, and qemu-user does not.
        assert transport.read_text("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1") == "0x00000000410fd083"
        identity = identify(transport.read_text, transport.run)
        state = read_state(identity, transport.read_text, transport.run, remote=True)
    assert identity.emulation is not None and any("dummy-virt" in sign for sign in identity.emulation)
    assert state.busy_s is not None and state.busy_s > 0 and state.load_1min is not None
    # -M virt has neither cpufreq nor thermal zones.
    assert state.clocks is None and state.sensors is None and state.throttled_by is None


def test_a_file_is_proven_there_and_has_instructions_in_place_of_a_latency(
    machine: Any, arm64_runtimes: Path, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("devices").mkdir()
    text = f'transport = "ssh"\naddress = "{machine.device.address}"\ncores = [0]\ncounts_instructions = true\n'
    Path("devices/booted.toml").write_text(text)
    listed = json.loads(CliRunner().invoke(app, ["devices", "list", "--json"]).stdout)
    (state,) = [row["state"]["availability"] for row in listed["devices"] if row["name"] == "booted"]
    assert state == "ready"
    artifact = exported("w8a8")["tflite"]
    folder = str(shutil.copytree(artifact.folder, tmp_path / artifact.name))
    glance = ["--runs", "2", "--seconds", "0", "--wait", "0", "--warm-up", "0.2", "--json"]
    seen = []
    for _ in range(2):
        done = CliRunner().invoke(app, ["profile", folder, "--device", "booted", *glance])
        assert done.exit_code == 0, done.stderr
        (row,) = json.loads(done.stdout)["devices"]
        assert row["measurement"]["judgement"]["verdict"] == "emulated"
        assert [set(one) for one in row["summary"]] == [{"artifact", "runs", "emulated", "instructions"}]
        assert "M instructions" in done.stderr and done.stderr.count("emulated") > 5
        seen.append([one["instructions"] for one in row["summary"]])
        for one, count in zip(read_measurement(Path(row["saved"])).timings, seen[-1], strict=True):
            # The guest's own clock, which advances by 2 ns an instruction: those of the kernel are in it, too.
            assert 0.5 < count / (min(one.latency_ns) / 2) <= 1.001, (count, one.latency_ns)
    assert seen[0] == pytest.approx(seen[1], rel=0.01)
