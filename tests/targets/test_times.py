"""The time of every kernel: read from what the runtime notes, and refused where that is not all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acmix.targets.formats import onnx_times
from acmix.toolkit import catalog
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.errors import UsageError

Exported = Callable[[str], dict[str, Artifact]]


def image_for(artifact: Artifact) -> np.ndarray[Any, Any]:
    """Zeros as the file wants them."""
    (spec,) = artifact.manifest.file_inputs
    return np.zeros(spec.shape, spec.dtype)


@pytest.mark.parametrize("target", ["tflite", "onnx", "executorch"])
def test_a_profile_that_lost_a_run_is_refused(exported: Exported, target: str) -> None:
    artifact = exported("float32")[target]
    with catalog.load_target(target).profiler(artifact.model_file, 1) as profiled:
        for _ in range(3):
            profiled([image_for(artifact)])
        # As if the runtime had had no room for the last one.
        profiled.runs += 1  # type: ignore[attr-defined]
        with pytest.raises(UsageError, match=r"holds 3 of 4 runs: it was cut\. Profile fewer runs"):
            profiled.kernels()


def test_an_onnx_profile_that_ends_in_the_middle_of_a_run_is_refused(exported: Exported, tmp_path: Path) -> None:
    artifact = exported("float32")["onnx"]
    events = onnx_events(artifact, tmp_path, runs=3)
    last = max(place for place, event in enumerate(events) if event["name"] == "model_run")
    for cut in (last, last - 1, last - 3):
        notes = onnx_times.notes_of(events[:cut], {})
        with pytest.raises(UsageError, match="the profile of onnxruntime holds 2 of 3 runs"):
            onnx_times.kernel_times(artifact.model_file, notes, 3, "onnxruntime")
    whole = onnx_times.kernel_times(artifact.model_file, onnx_times.notes_of(events, {}), 3, "onnxruntime")
    assert all(len(kernel.times_ns) == 3 for kernel in whole.kernels)


def onnx_events(artifact: Artifact, folder: Path, runs: int) -> list[dict[str, Any]]:
    """What ONNX Runtime writes of some runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(str(artifact.model_file), options, providers=["CPUExecutionProvider"])
    for _ in range(runs):
        session.run(None, {session.get_inputs()[0].name: image_for(artifact)})
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return events
