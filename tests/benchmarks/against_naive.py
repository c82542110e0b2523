"""Networks as acmix exports them, against their naive ports through the stock converters: latency on this host.

python tests/benchmarks/against_naive.py [--model lsnet_t,acmix_resnet26] [--target tflite,onnx,executorch]
                                         [--seconds 20] [--json FILE]

float32, one thread pinned to one processor; the naive file, ours and one large 1 x 1 convolution are interleaved
run by run, in turning order. The floor is the time that the network's published multiply-accumulates would take
at the rate which that convolution reaches on the same runtime.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from stock_convert import FLOOR_CHANNELS, FLOOR_MACS, FLOOR_SIZE

from acmix.toolkit import catalog, machine
from acmix.toolkit.session import Session, SessionRequest, open_session

MODELS = ("acmix_resnet26", "condensenetv2_a", "lsnet_t", "acmix_swin_tiny")
SUFFIXES = {"tflite": ".tflite", "onnx": ".onnx", "executorch": ".pte"}
LEAST_RUNS = 7
FLOOR_FORM_MACS = {"condensenetv2_a": 62_900_000}
"""Where the published count belongs to a form that no runtime can execute (a scatter-add): that of the least one."""


@dataclass(frozen=True)
class Result:
    """One network on one runtime: nanoseconds of every run, of the naive file, ours and the large convolution."""

    model: str
    target: str
    macs: int
    naive_ns: list[int]
    acmix_ns: list[int]
    floor_ns: list[int]

    @property
    def ratio(self) -> float:
        return statistics.median(self.naive_ns) / statistics.median(self.acmix_ns)

    @property
    def floor_ms(self) -> float:
        return statistics.median(self.floor_ns) / 1e6 * self.macs / FLOOR_MACS


def run(*command: str) -> None:
    """A command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def convert(model: str, targets: list[str], folder: Path) -> dict[str, tuple[Path, Path, Path]]:
    """For each runtime: the naive file, ours, and the large convolution."""
    script = str(Path(__file__).with_name("stock_convert.py"))
    program = str(Path(sys.executable).with_name("acmix-export"))
    files = {}
    for target in targets:
        suffix = SUFFIXES[target]
        ours = folder / f"{model}-{target}-float32" / f"model{suffix}"
        files[target] = (folder / f"naive_{model}{suffix}", ours, folder / f"floor{suffix}")
        for name in (f"naive_{model}", "floor"):
            if not (folder / f"{name}{suffix}").exists():
                run(sys.executable, script, target, name, str(folder / f"{name}{suffix}"))
    run(program, "--model", model, "--weights", "random", "--target", ",".join(targets), "--out", str(folder))
    return files


def image_of(shape: tuple[int, ...], target: str) -> np.ndarray:
    """Noise in the layout that the target's files take."""
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return image.transpose(0, 2, 3, 1).copy() if target == "tflite" else image


def measure(target: str, files: tuple[Path, ...], images: list[np.ndarray], seconds: float) -> list[list[int]]:
    """Nanoseconds of every run of every file, interleaved, for so many seconds."""
    cpu = machine.usable_cpus()[-1:]
    samples: list[list[int]] = [[] for _ in files]
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as logs:
        sessions: list[Session] = [
            stack.enter_context(open_session(SessionRequest(target, str(file), 1, cpu), Path(logs) / "log"))
            for file in files
        ]
        for session, image in zip(sessions, images, strict=True):
            session.load()
            session.run([image])
            session.time(1)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(samples[0]) < LEAST_RUNS:
            order = range(len(files)) if len(samples[0]) % 2 == 0 else reversed(range(len(files)))
            for i in order:
                samples[i].extend(sessions[i].time(1).latency_ns)
    return samples


def table(results: list[Result]) -> Table:
    """A line for each network and runtime."""
    made = Table("network", "runtime", "naive ms", "acmix ms", "times faster", "floor ms", "times the floor", box=None)
    for result in results:
        naive, ours = (statistics.median(s) / 1e6 for s in (result.naive_ns, result.acmix_ns))
        numbers = (naive, ours, result.ratio, result.floor_ms, ours / result.floor_ms)
        made.add_row(result.model, result.target, *(f"{number:.2f}" for number in numbers))
    return made


def main() -> None:
    """Convert, measure, print the table; raw samples as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=",".join(MODELS))
    parser.add_argument("--target", default=",".join(SUFFIXES))
    parser.add_argument("--seconds", type=float, default=20.0, help="a network and runtime")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.model.split(","):
            spec = catalog.load_model(model)
            macs = FLOOR_FORM_MACS.get(model) or spec.claims.macs
            if macs is None:
                raise SystemExit(
                    f"{model} has no published count of multiply-accumulates: there is no floor to compare with"
                )
            for target, files in convert(model, arguments.target.split(","), Path(folder)).items():
                image = image_of(spec.inputs[0].shape, target)
                large = image_of((1, FLOOR_CHANNELS, FLOOR_SIZE, FLOOR_SIZE), target)
                samples = measure(target, files, [image, image, large], arguments.seconds)
                results.append(Result(model, target, macs, *samples))
                Console(stderr=True, width=120).print(table(results[-1:]))
    Console(width=120).print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results]), encoding="utf-8")


if __name__ == "__main__":
    main()
