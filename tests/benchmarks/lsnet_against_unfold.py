"""LSNet as acmix exports it, against the port with nn.Unfold through the stock converters: latency on this host.

python tests/benchmarks/lsnet_against_unfold.py [--model lsnet_t] [--runs 60]

float32, one thread pinned to one processor, both files of a runtime interleaved run by run (A B B A).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from acmix.toolkit import machine
from acmix.toolkit.session import Session, SessionRequest, open_session

SUFFIXES = {"tflite": ".tflite", "onnx": ".onnx", "executorch": ".pte"}
WARM_UP_RUNS = 5


def run(*command: str) -> None:
    """A command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def convert(model: str, folder: Path) -> dict[str, tuple[Path, Path]]:
    """For each runtime: the naive file and ours."""
    script = str(Path(__file__).with_name("stock_convert.py"))
    program = str(Path(sys.executable).with_name("acmix-export"))
    for target, suffix in SUFFIXES.items():
        run(sys.executable, script, target, f"naive_{model}", str(folder / f"naive{suffix}"))
    run(program, "--model", model, "--target", ",".join(SUFFIXES), "--out", str(folder))
    return {
        target: (folder / f"naive{suffix}", folder / f"{model}-{target}-float32" / f"model{suffix}")
        for target, suffix in SUFFIXES.items()
    }


def measure(target: str, files: tuple[Path, Path], runs: int, log: Path) -> tuple[list[int], list[int]]:
    """Nanoseconds of every run, of the naive file and of ours."""
    cpu = machine.usable_cpus()[-1:]
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    image = image.transpose(0, 2, 3, 1).copy() if target == "tflite" else image
    samples: tuple[list[int], list[int]] = ([], [])
    with contextlib.ExitStack() as stack:
        sessions: list[Session] = [
            stack.enter_context(open_session(SessionRequest(target, str(file), 1, cpu), log)) for file in files
        ]
        for session in sessions:
            session.load()
            session.run([image])
            session.time(WARM_UP_RUNS)
        for round_number in range(runs):
            for side in (0, 1) if round_number % 2 == 0 else (1, 0):
                samples[side].extend(sessions[side].time(1).latency_ns)
    return samples


def main() -> None:
    """Convert, measure, print a table and a JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="lsnet_t")
    parser.add_argument("--runs", type=int, default=60)
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        files = convert(arguments.model, Path(folder))
        for target, pair in files.items():
            naive, ours = measure(target, pair, arguments.runs, Path(folder) / "log")
            before, after = statistics.median(naive) / 1e6, statistics.median(ours) / 1e6
            print(f"{target:11} naive {before:7.2f} ms   acmix {after:6.2f} ms   {before / after:5.2f} x faster")
            results[target] = {"naive_ns": naive, "acmix_ns": ours}
    print(json.dumps({"model": arguments.model, "samples": results}))


if __name__ == "__main__":
    main()
