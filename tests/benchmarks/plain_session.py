"""int8 ONNX files in a program that sets nothing: what ONNX Runtime's defaults make of them on this processor.

    acmix-export --model efficientnet_lite0 --target onnx --precision w8a8 --calibration PHOTOS --out int8
    acmix-export --model efficientnet_lite0 --target onnx --precision w8a8 --calibration PHOTOS --weight-type uint8 --out uint8
    python tests/benchmarks/plain_session.py int8/* uint8/* --data PHOTOS [--count 200] [--runs 100]

Top-1 of `--count` labelled photos. Latency: one thread, all sessions in turn, medians; the ratio is to the first line.
"""  # noqa: E501

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import onnxruntime
from rich.console import Console
from rich.table import Table

from acmix.calibration.photos import read_photo_folder
from acmix.targets.formats import onnx_session
from acmix.toolkit.artifact import open_artifact


def plain(file: Path) -> onnxruntime.InferenceSession:
    """As in a program that sets nothing but the number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=[onnx_session.PROVIDER])


def main() -> None:
    """Run every file in both sessions on the same photos; print a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--runs", type=int, default=100)
    given = parser.parse_args()
    # Beside the folders are their logs.
    artifacts = [open_artifact(folder) for folder in given.artifacts if folder.is_dir()]
    first = artifacts[0].manifest
    photos = read_photo_folder(given.data, first.preprocess).first(given.count)
    if photos.labels is None or {(a.manifest.preprocess, a.manifest.file_inputs) for a in artifacts} != {
        (first.preprocess, first.file_inputs)
    }:
        parser.error("give artifacts of one network, and photos with labels")
    sessions = {}
    for number, one in enumerate(artifacts):
        name = f"{number}: {one.name}, {one.manifest.target.options.get('weight_type', 'int8')}"
        sessions[f"{name}, as acmix runs it"] = onnx_session.load(one.model_file, 1)
        sessions[f"{name}, nothing set"] = plain(one.model_file)
    feeds = [{first.file_inputs[0].name: image} for (image,) in photos]
    right = {
        key: sum(
            int(session.run(None, feed)[0].argmax()) == label for feed, label in zip(feeds, photos.labels, strict=True)
        )
        for key, session in sessions.items()
    }
    taken_ms: dict[str, list[float]] = {key: [] for key in sessions}
    for _ in range(given.runs):
        for key, session in sessions.items():
            begin = time.perf_counter()
            session.run(None, feeds[0])
            taken_ms[key].append(1e3 * (time.perf_counter() - begin))
    medians = {key: statistics.median(times) for key, times in taken_ms.items()}
    made = Table("session", "top-1", "median ms", "ratio", box=None)
    for key, median in medians.items():
        ratio = median / next(iter(medians.values()))
        made.add_row(key, f"{right[key] / len(photos):.1%}", f"{median:.2f}", f"{ratio:.2f}")
    Console(width=120).print(made)


if __name__ == "__main__":
    main()
