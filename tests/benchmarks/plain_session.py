"""int8 ONNX files in a program that sets nothing: what ONNX Runtime's defaults make of them on this processor.

    acmix-export --model efficientnet_lite0 --target onnx --precision w8a8 --calibration PHOTOS --out int8
    acmix-export --model efficientnet_lite0 --target onnx --precision w8a8 --calibration PHOTOS --weight-type uint8 --out uint8
    python tests/benchmarks/plain_session.py int8/* uint8/* --data PHOTOS [--count 200] [--runs 100]

Top-1 against the labels of `--data`. Latency: one thread, every session of every file in turn, medians; the ratio is to
the first line.
"""  # noqa: E501

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from acmix.calibration.photos import read_photo_folder
from acmix.targets.formats import onnx_session
from acmix.toolkit.artifact import open_artifact


def plain(file: Path) -> onnxruntime.InferenceSession:
    """As in a program that knows of no option but the number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Run every file in both sessions on the same photos; print a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--runs", type=int, default=100)
    given = parser.parse_args()
    artifacts = [open_artifact(folder) for folder in given.artifacts if folder.is_dir()]
    preprocess = artifacts[0].manifest.preprocess
    assert preprocess is not None
    folder = read_photo_folder(given.data, preprocess)
    photos = folder.pick(range(0, len(folder), max(1, len(folder) // given.count)))
    sessions = {}
    for one in artifacts:
        weights = one.manifest.target.options["weight_type"]
        sessions[f"{weights}, as acmix runs it"] = onnx_session.load(one.model_file, 1)
        sessions[f"{weights}, nothing set"] = plain(one.model_file)
    name = artifacts[0].manifest.file_inputs[0].name
    right = dict.fromkeys(sessions, 0)
    for (image,), label in zip(photos, photos.labels or (), strict=True):
        for key, session in sessions.items():
            right[key] += int(np.argmax(session.run(None, {name: image})[0])) == label
    taken_ms: dict[str, list[float]] = {key: [] for key in sessions}
    for _ in range(given.runs):
        for key, session in sessions.items():
            begin = time.perf_counter()
            session.run(None, {name: image})
            taken_ms[key].append(1e3 * (time.perf_counter() - begin))
    first = statistics.median(next(iter(taken_ms.values())))
    made = Table("weights, session", "top-1", "median ms", "ratio", box=None)
    for key, times in taken_ms.items():
        median = statistics.median(times)
        made.add_row(key, f"{right[key] / len(photos):.1%}", f"{median:.2f}", f"{median / first:.2f}")
    Console(width=120).print(made)


if __name__ == "__main__":
    main()
