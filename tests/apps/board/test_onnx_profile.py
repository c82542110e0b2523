"""ONNX Runtime's profile as a board reads it; test_runners.py holds it to real ones."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from acmix.apps.board.onnx_profile import events_of, notes_of


def test_a_long_profile_of_onnx_is_never_in_memory_whole(tmp_path: Path) -> None:
    file, runs = tmp_path / "profile.json", 4000
    words = {"op_name": "Conv", "provider": "CPU", "input_type_shape": [{"float": [1, 3, 224, 224]}] * 12}
    with file.open("w") as stream:
        stream.write("[")
        for start in range(0, 20 * runs, 20):
            for at, name in ((2, "a"), (9, "b")):
                made = {"name": f"{name}_kernel_time", "ts": start + at, "dur": 5, "args": words}
                stream.write(json.dumps(made) + ",\n")
            stream.write(json.dumps({"name": "model_run", "ts": start, "dur": 16, "args": {}}) + ",\n")
        stream.write('{"name":"end","ts":0,"args":{}}\n]\n')
    tracemalloc.start()
    with file.open() as stream:
        notes = notes_of(events_of(stream), {"a": "x"})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [kernel["name"] for kernel in notes["kernels"]] == ["a", "b"]
    assert notes["runs"] == [[(0, 5000), (1, 5000)]] * runs
    # json.load takes 37 MB for this file of 4 MB.
    assert peak < 10e6
    file.write_text(file.read_text()[:-100])
    with file.open() as stream, pytest.raises(ValueError, match="ends in the middle"):
        list(events_of(stream))
