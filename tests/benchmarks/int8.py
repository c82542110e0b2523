"""int8 as acmix exports it: accuracy on photos, and latency against its float32 and against the stock int8 routes.

python tests/benchmarks/int8.py --data PHOTOS [--model efficientnet_lite0] [--calibration builtin] [--seconds 15]
                                [--only-speed] [--json FILE]

PHOTOS: a folder with labels.csv; files whose class index mod 20 is 0 calibrate, unless --calibration says otherwise,
and the others evaluate. Latency: one thread on one processor, all files of one runtime interleaved run by run.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from acmix.calibration.photos import PhotoFolder, read_photo_folder
from acmix.toolkit import machine
from acmix.toolkit.artifact import Artifact, executed_by, open_artifact
from acmix.toolkit.evaluate import output_of_scores, rebuild
from acmix.toolkit.execute import file_inputs, run_sample
from acmix.toolkit.profile import interface_of
from acmix.toolkit.samples import Probes
from acmix.toolkit.session import SessionRequest, open_session
from acmix.toolkit.target import Array, to_layout

RUNTIMES = ("tflite", "executorch", "onnx")
SUFFIXES = {"tflite": ".tflite", "onnx": ".onnx", "executorch": ".pte"}
STOCK = Path(__file__).with_name("stock_int8.py")


def split(photos: Path, folder: Path) -> tuple[Path, Path]:
    """Two folders of links: to calibrate with, and to evaluate on."""
    with (photos / "labels.csv").open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    made = []
    for name, calibrates in (("calibrate", True), ("evaluate", False)):
        (folder / name).mkdir()
        chosen = [row for row in rows if (int(row["label"]) % 20 == 0) is calibrates]
        for row in chosen:
            (folder / name / Path(row["file"]).name).symlink_to((photos / row["file"]).resolve())
        lines = "".join(f"{Path(row['file']).name},{row['label']}\n" for row in chosen)
        (folder / name / "labels.csv").write_text(f"file,label\n{lines}", encoding="utf-8")
        made.append(folder / name)
    return made[0], made[1]


def scores(artifact: Artifact, photos: PhotoFolder, log: Path) -> Array:
    """The best class of every photo."""
    by, _ = executed_by(artifact)
    interface = interface_of(artifact)
    which = output_of_scores(artifact.manifest.outputs)
    request = SessionRequest(artifact.manifest.target.name, str(artifact.model_file), reference=by == "reference")
    with open_session(request, log) as session:
        session.load()
        return np.array([run_sample(session, sample, interface)[which].argmax() for sample in photos])


def latencies(artifacts: list[Artifact], stock: Path, log: Path, seconds: float) -> list[float]:
    """Medians in ms of each artifact and of the stock file, interleaved."""
    first = artifacts[0]
    target, cpu = first.manifest.target.name, machine.usable_cpus()[-1:]
    noise = dict(zip(Probes(()).identifiers, Probes(first.manifest.inputs), strict=True))["noise"]
    with contextlib.ExitStack() as stack:
        files = [str(one.model_file) for one in artifacts] + [str(stock)]
        sessions = [stack.enter_context(open_session(SessionRequest(target, f, 1, cpu), log)) for f in files]
        feeds = [file_inputs(noise, interface_of(one)) for one in artifacts]
        layout = first.manifest.file_inputs if target == "tflite" else first.manifest.inputs
        stock_feed = [to_layout(a, s, w) for a, s, w in zip(noise, first.manifest.inputs, layout, strict=True)]
        if target == "tflite":  # the stock file takes integers, at no cost of its own
            stock_feed = [np.clip(np.rint(array * 32), -128, 127).astype(np.int8) for array in stock_feed]
        feeds.append(stock_feed)
        for session, feed in zip(sessions, feeds, strict=True):
            session.load()
            session.run(feed)
            session.time(20)
        runs: list[list[int]] = [[] for _ in sessions]
        order = list(range(len(sessions)))
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for i in order:
                runs[i] += sessions[i].time(1).latency_ns
            order.reverse()
    return [statistics.median(one) / 1e6 for one in runs]


def main() -> None:
    """Export, evaluate, time, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--calibration")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only-speed", action="store_true")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        calibrate, evaluate = split(flags.data, folder)
        calibration = flags.calibration or str(calibrate)
        for precision, extra in (("float32", []), ("w8a8", ["--calibration", calibration])):
            program = str(Path(sys.executable).with_name("acmix-export"))
            command = [program, "--model", flags.model, "--precision", precision, *extra, "--out", str(folder / "out")]
            subprocess.run(command, check=True)
        report(flags, folder, calibration, evaluate)


def accuracy(
    flags: argparse.Namespace, folder: Path, evaluate: Path, console: Console
) -> tuple[dict[str, Array], dict[str, float], Array]:
    """The best class of every photo by eager and by each int8 file, how often two agree, and the labels."""
    targets = (*RUNTIMES, "coreml")
    found = {t: open_artifact(folder / "out" / f"{flags.model}-{t}-w8a8") for t in targets}
    photos = read_photo_folder(evaluate, found["tflite"].manifest.preprocess)
    eager, reason = rebuild(found["tflite"])
    assert eager is not None, reason
    which = output_of_scores(found["tflite"].manifest.outputs)
    best = {"eager": np.array([eager(sample)[which].argmax() for sample in photos])}
    best |= {t: scores(artifact, photos, folder / "log") for t, artifact in found.items()}
    labels = np.array(photos.labels)
    made = Table("", "top-1 %", "same as eager %", title=f"{flags.model} w8a8, {len(labels)} photos")
    for name, classes in best.items():
        made.add_row(name, f"{100 * (classes == labels).mean():.1f}", f"{100 * (classes == best['eager']).mean():.1f}")
    console.print(made)
    pairs = {f"{a}, {b}": float((best[a] == best[b]).mean()) for a, b in itertools.combinations(targets, 2)}
    console.print("same class:", ", ".join(f"{names} {100 * share:.1f} %" for names, share in pairs.items()))
    return best, pairs, labels


def report(flags: argparse.Namespace, folder: Path, calibration: str, evaluate: Path) -> None:
    """Accuracy of the int8 files, their agreement with eager and with one another, and latency."""
    console = Console()
    best: dict[str, Array] = {}
    pairs: dict[str, float] = {}
    labels = np.array(())
    if not flags.only_speed:
        best, pairs, labels = accuracy(flags, folder, evaluate, console)
    timed = {}
    speed = Table("", "float32 ms", "w8a8 ms", "stock int8 ms", "against float32", "against stock")
    for target in RUNTIMES:
        stock = folder / f"stock{SUFFIXES[target]}"
        subprocess.run([sys.executable, str(STOCK), target, flags.model, calibration, str(stock)], check=True)
        ours = [open_artifact(folder / "out" / f"{flags.model}-{target}-{p}") for p in ("float32", "w8a8")]
        timed[target] = latencies(ours, stock, folder / "log", flags.seconds)
        floating, integer, other = timed[target]
        cells = [f"{value:.2f}" for value in timed[target]]
        speed.add_row(target, *cells, f"{floating / integer:.2f}x", f"{other / integer:.2f}x")
    console.print(speed)
    if flags.json:
        top1 = {name: float((classes == labels).mean()) for name, classes in best.items()}
        flags.json.write_text(json.dumps({"top1": top1, "same": pairs, "ms": timed}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
