"""How long one model takes to all four targets: four stock conversions one after another, against acmix-export.

python tests/benchmarks/export_time.py [--model efficientnet_lite0] [--rounds 2]

Both sides run in fresh processes, interleaved. acmix's time includes the proof of every file; the stock
conversions prove nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUFFIXES = {"coreml": ".mlpackage", "executorch": ".pte", "onnx": ".onnx", "tflite": ".tflite"}


def seconds_of(command: list[str]) -> float:
    """Wall time of a command that must succeed."""
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - begin


def stock(model: str, folder: Path) -> dict[str, float]:
    """Seconds of each stock conversion."""
    script = str(Path(__file__).with_name("stock_convert.py"))
    return {
        target: seconds_of([sys.executable, script, target, model, str(folder / f"{target}{suffix}")])
        for target, suffix in SUFFIXES.items()
    }


def ours(model: str, folder: Path) -> float:
    """Seconds of one acmix-export to every target, proof included."""
    program = str(Path(sys.executable).with_name("acmix-export"))
    return seconds_of([program, "--model", model, "--target", "all", "--out", str(folder)])


def main() -> None:
    """Measure, print a table and a JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    rounds = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append((stock(arguments.model, Path(folder)), ours(arguments.model, Path(folder))))
    for target in SUFFIXES:
        print(f"stock {target:11} {statistics.median(r[0][target] for r in rounds):6.1f} s")
    before = statistics.median(sum(r[0].values()) for r in rounds)
    after = statistics.median(r[1] for r in rounds)
    print(
        f"stock, one after another {before:6.1f} s\nacmix-export, with proof {after:6.1f} s\nratio {after / before:.2f}"
    )
    print(json.dumps({"model": arguments.model, "rounds": rounds, "ratio": after / before}))


if __name__ == "__main__":
    main()
