"""`acmix profile --device`, end to end: a virtual phone and a virtual board, real runtimes for arm64."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from acmix.apps.board.choose import choose_runners
from acmix.apps.cli import app
from acmix.toolkit import _remote_place, remote
from acmix.toolkit.artifact import Artifact, digest_files, write_manifest
from acmix.toolkit.device import Device
from acmix.toolkit.devices import connect
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.execute import file_inputs
from acmix.toolkit.measurement import Measurement, read_measurement
from acmix.toolkit.profile import ProfileRequest, interface_of
from acmix.toolkit.session import open_session
from acmix.toolkit.target import Array

Exported = Callable[[str], dict[str, Artifact]]
GLANCE = ProfileRequest(runs=2, seconds=0.0, warm_up_limit_s=0.2)
ENDLESS = ProfileRequest(runs=10**6, seconds=3600.0, warm_up_limit_s=0.2)
RUN_ON = {
    "phone": [("executorch", "float32"), ("executorch", "w8a8")],
    "board": [("executorch", "float32"), ("executorch", "w8a8"), ("onnx", "w8a8")],
}
"""The selftest asks both for the outputs of TFLite files, and the board for ONNX's float32 one."""


def quiet(said: str) -> None:
    """Nobody watches."""


@pytest.fixture(autouse=True)
def runtimes(arm64_root: Path, lacking: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The runtimes and the compiler that install.sh brought, or a skip; no device of the developer's own."""
    cache = arm64_root.parent / "xdg"
    if not list((cache / "acmix" / "wheels").glob("*aarch64.whl")):
        lacking("the arm64 runtimes are not here")
    if not list(arm64_root.glob("usr/local/lib/python3*/dist-packages/onnxruntime")):
        lacking("the virtual board has no onnxruntime")
    if shutil.which("aarch64-linux-gnu-g++") is None:
        lacking("there is no cross compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(params=["board", "phone"])
def device(request: pytest.FixtureRequest) -> Device:
    """Each virtual device, its runners pinned to its first processor."""
    found: Device = request.getfixturevalue(request.param).device
    return replace(found, cores=(0,))


def on_host(artifact: Artifact, references: Any, log: Path) -> dict[str, list[Array]]:
    """What the runtime of this machine gives on each probe."""
    with open_session(artifact.session(), log) as session:
        session.load()
        return {r.identifier: session.run(file_inputs(r.inputs, interface_of(artifact))) for r in references}


def test_every_runner_gives_what_the_runtime_here_gives(device: Device, exported: Exported, tmp_path: Path) -> None:
    artifacts = [exported(precision)[target] for target, precision in RUN_ON[device.name]]
    with connect(device) as transport:
        for artifact, bundle in zip(artifacts, choose_runners(transport, artifacts), strict=True):
            folder = transport.push(bundle.folder, f"runners/{bundle.name}")
            placed = _remote_place.place(transport, artifact, bundle, folder, 0)
            wanted = on_host(artifact, placed.references, tmp_path / "log")
            with placed.start(transport) as runner:
                assert runner.load(placed.file, 1).ns > 0
                for probe, files in placed.inputs.items():
                    timed, found = runner.run(files)
                    assert timed.ns > 0 and timed.peak_memory_mb > 1
                    check_equal(artifact, found, wanted[probe])
                assert runner.time().ns > 0
        transport.remove_work_folder()


def check_equal(artifact: Artifact, found: list[Array], wanted: list[Array]) -> None:
    """Integers bit for bit; floats but for the last bits, which depend on the processor."""
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        if artifact.manifest.recipe.is_quantized:
            assert np.array_equal(one, other), artifact.name
        else:
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def add_device(name: str, device: Device) -> None:
    """A device file of the project, in the folder where we are."""
    Path("devices").mkdir(exist_ok=True)
    text = f'transport = "{device.transport}"\naddress = "{device.address}"\ncores = [0]\n'
    Path(f"devices/{name}.toml").write_text(text, encoding="utf-8")


def copies(artifacts: list[Artifact], folder: Path) -> list[str]:
    """Copies beside which a measurement may be written."""
    return [str(shutil.copytree(a.folder, folder / a.name)) for a in artifacts]


def test_the_program_measures_on_both_and_shows_no_milliseconds(
    board: Any, phone: Any, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    add_device("pi", board.device)
    add_device("pixel", phone.device)
    chosen = [exported("w8a8")["tflite"]]
    glance = ["--runs", "2", "--seconds", "0", "--wait", "0", "--warm-up", "0.2", "--json"]
    done = CliRunner().invoke(app, ["profile", *copies(chosen, tmp_path), "--device", "pi,pixel", *glance])
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [row["device"] for row in answer["devices"]] == ["pi", "pixel"]
    for row in answer["devices"]:
        assert row["measurement"]["judgement"]["verdict"] == "emulated"
        assert [set(one) for one in row["summary"]] == [{"artifact", "runs", "emulated"}]
        kept = read_measurement(Path(row["saved"]))
        assert [len(t.process_starts) for t in kept.timings] == [3]
        assert all(t.emulated and len(t.latency_ns) >= 2 for t in kept.timings)
        assert kept.conditions.before is not None and kept.conditions.after is not None
        assert "native runner" in kept.conditions.machine["runtime"]
    assert done.stderr.count("emulated") > 10 and list(tmp_path.glob("*.jsonl")) == []
    with connect(board.device) as transport:
        assert transport.run(["ls", ".cache/acmix-work"], timeout_s=30).code != 0


def test_a_fast_wrong_answer_is_not_measured(board: Any, exported: Exported, tmp_path: Path) -> None:
    # The int8 file in the place of the float32 one: it loads, it is faster, and its outputs are other ones.
    right, other = exported("float32")["tflite"], exported("w8a8")["tflite"]
    folder = Path(shutil.copytree(right.folder, tmp_path / right.name))
    shutil.copy(other.model_file, folder / right.model_file.name)
    files = digest_files(folder, right.model_file.name)
    wrong = Artifact(folder, replace(right.manifest, files=files))
    write_manifest(folder, wrong.manifest)
    with connect(board.device) as transport:
        (bundle,) = choose_runners(transport, [wrong])
        with pytest.raises(GateError, match=r"gives wrong outputs on board: .* dB are asked; it was not measured"):
            remote.profile_on_device(transport, [(wrong, bundle)], GLANCE, quiet, tmp_path / "journal.jsonl")
        assert not (tmp_path / "journal.jsonl").exists()
        assert transport.run(["ls", ".cache/acmix-work"], timeout_s=30).code != 0


def kill_runners() -> int:
    """SIGKILL to every native runner; how many there were."""
    killed = 0
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if words and words[-1].endswith("/runner") and any("ld-linux-aarch64" in word for word in words[:3]):
                process.kill()
                killed += 1
        except psutil.Error:
            continue
    return killed


def test_a_runner_that_is_killed_leaves_an_incomplete_measurement_with_its_samples(
    device: Device, exported: Exported, tmp_path: Path
) -> None:
    artifact, journal = exported("w8a8")["tflite"], tmp_path / "journal.jsonl"
    killed: list[int] = []

    def kill_while_it_measures(said: str) -> None:
        if "measuring" in said and not killed:
            killed.append(0)
            threading.Timer(1.0, lambda: killed.append(kill_runners())).start()

    begin = time.monotonic()
    with connect(device) as transport:
        (bundle,) = choose_runners(transport, [artifact])
        found: Measurement = remote.profile_on_device(
            transport, [(artifact, bundle)], ENDLESS, kill_while_it_measures, journal
        )
    assert time.monotonic() - begin < 60
    assert killed[-1] >= 1
    (reason,) = [r for r in found.judgement.reasons if r.leads_to == "incomplete"]
    assert "a runtime failed" in reason.what and "exit code 137" in reason.what
    # An emulator's verdict is worse than that: whatever it says of time means nothing.
    assert found.judgement.verdict == "emulated"
    assert len(found.timings[0].latency_ns) > 0
    assert read_measurement(journal).timings[0].latency_ns == found.timings[0].latency_ns


def test_onnx_on_the_phone_is_refused_with_what_to_do(phone: Any, exported: Exported) -> None:
    with (
        connect(phone.device) as transport,
        pytest.raises(UsageError, match=r"no ONNX runner for phones[\s\S]*tflite"),
    ):
        choose_runners(transport, [exported("float32")["onnx"]])


def test_a_device_that_is_away_is_refused_before_anything_is_measured(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ssh_home: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    add_device("gone", Device("gone", "ssh", "ssh://nobody@127.0.0.1:9"))
    (folder,) = copies([exported("float32")["tflite"]], tmp_path)
    done = CliRunner().invoke(app, ["profile", folder, "--device", "host,gone", "--runs", "1"])
    assert isinstance(done.exception, UsageError) and "gone is offline" in str(done.exception)
    assert list(tmp_path.glob("profile-*")) == []
