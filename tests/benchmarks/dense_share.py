"""How much of a network's time its convolutions and matrix products take: no other form of the rest can save more.

    acmix profile build/lsnet_t-tflite-float32 build/lsnet_t-executorch-float32 --layers --json > layers.json
    python tests/benchmarks/dense_share.py layers.json

Medians of each operator; the ceiling is how much faster the file would be if every other operator took no time.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

DENSE = re.compile(r"gemm|matmul|fully_connected|conv(?!ert)", re.IGNORECASE)


def main() -> None:
    """Read the report of `acmix profile --layers --json`, print a line for each artifact."""
    parser = argparse.ArgumentParser()
    parser.add_argument("report", type=Path)
    report = json.loads(parser.parse_args().report.read_text(encoding="utf-8"))
    made = Table("artifact", "dense ms", "other ms", "dense share", "ceiling", box=None)
    for one in report["layers"]["layers"]:
        dense_ns = other_ns = 0.0
        for operator in one["operators"]:
            median_ns = statistics.median(operator["times_ns"])
            if DENSE.search(operator["kind"]):
                dense_ns += median_ns
            else:
                other_ns += median_ns
        total_ns = dense_ns + other_ns
        numbers = (f"{dense_ns / 1e6:.2f}", f"{other_ns / 1e6:.2f}", f"{dense_ns / total_ns:.0%}")
        made.add_row(one["artifact"], *numbers, f"{total_ns / dense_ns:.2f}x")
    Console(width=120).print(made)


if __name__ == "__main__":
    main()
