"""`--photos` on a device: each run takes the next photo, which lies there before the first one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acmix.apps.board.choose import PYTHON_RUNNER
from acmix.calibration.photos import read_photo_folder
from acmix.toolkit._remote_runner import RemoteRunner
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.device import Device
from acmix.toolkit.devices import connect
from acmix.toolkit.execute import file_inputs
from acmix.toolkit.profile import ProfileRequest, interface_of
from acmix.toolkit.remote import RunnerBundle, profile_on_device

Exported = Callable[[str], dict[str, Artifact]]


def test_each_run_takes_the_next_photo(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, folder = exported("float32")["tflite"], tmp_path / "photos"
    folder.mkdir()
    for shade in (40, 120, 200):
        Image.new("RGB", (48, 40), (shade, 20, 30)).save(folder / f"{shade}.png")
    photos = read_photo_folder(folder, artifact.manifest.preprocess)
    timed: list[bytes] = []
    ask = RemoteRunner._ask

    def recorded(runner: RemoteRunner, command: dict[str, Any], timeout_s: float) -> Any:
        if command["do"] == "time":
            timed.append(Path(command["inputs"][0]).read_bytes())
        return ask(runner, command, timeout_s)

    monkeypatch.setattr(RemoteRunner, "_ask", recorded)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "runner.py").write_bytes(PYTHON_RUNNER.read_bytes())
    runner = RunnerBundle(bundle, "python", (sys.executable, "{folder}/runner.py", "tflite"), "LiteRT")
    request = ProfileRequest(runs=6, seconds=0.0, warm_up_limit_s=0.01)
    with connect(Device("box", "local")) as transport:
        measurement = profile_on_device(transport, [(artifact, runner)], request, print, photos=[photos])
    assert measurement.inputs == "3 photos of photos, in turn"
    wanted = [np.asarray(file_inputs(sample, interface_of(artifact))[0]).tobytes() for sample in photos]
    # The first photo is the first run of all; from then on they come in turn, warm-up and runs that count alike.
    assert len(set(wanted)) == 3 and len(timed) >= 6
    assert timed == [wanted[(1 + number) % 3] for number in range(len(timed))]
