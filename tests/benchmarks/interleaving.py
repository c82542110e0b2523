"""One file against itself: does the interval of the ratio contain 1, interleaved and one after the other?

python tests/benchmarks/interleaving.py [ARTIFACT] [--repetitions 20] [--json FILE] [--minutes 45]
                                        [--preset normal | --runs 200 --seconds 2 --processes 5] [--stock 5]

--stock: so many repetitions of the stock way, not as many as of ours; `normal` takes 2 to 3 minutes for each.
With --json every repetition is saved as soon as it is there; the same command again goes on where it was stopped, and
--minutes begins no repetition after so long. Leaves with 0 when at least 95 % of the interleaved intervals contain 1
and each is narrower than +-2 %, with 1 otherwise, and with 3 when repetitions are still missing.

Without an artifact, a network of about 1 ms is exported to TFLite first. Interleaved: `acmix profile A A`, the ratio
and its interval as it prints them, over several restarts. Beside it the stock way: ten warm-up runs, all runs of one
process, then all runs of the other; the ratio of medians, its interval from runs resampled as if they were
independent. Both get as many runs, on the same pinned processor.
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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from acmix.toolkit import machine
from acmix.toolkit.artifact import Artifact, open_artifact
from acmix.toolkit.execute import file_inputs
from acmix.toolkit.measure import Plan
from acmix.toolkit.measurement import ratios
from acmix.toolkit.profile import PRESETS, ProfileRequest, interface_of, profile
from acmix.toolkit.ratio import Ratio
from acmix.toolkit.samples import Probes
from acmix.toolkit.session import open_session

NET = """
from torch import nn


def make_net():
    blocks = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU()]
    for _ in range(6):
        blocks += [nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU()]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
"""
STOCK_WARM_UP = 10
RESAMPLES = 1000
NARROW = 0.02


@dataclass(frozen=True)
class Repetition:
    """One ratio of a file to itself: right is 1."""

    way: str
    ratio: Ratio
    median_ms: float
    verdict: str = ""

    @property
    def contains_one(self) -> bool:
        low, high = self.ratio.low, self.ratio.high
        return low is not None and high is not None and low <= 1 <= high

    @property
    def half_width(self) -> float:
        return self.ratio.half_width if self.ratio.half_width is not None else float("inf")


def export(folder: Path) -> Artifact:
    """The network of about 1 ms, as TFLite."""
    source = folder / "net.py"
    source.write_text(NET, encoding="utf-8")
    program = str(Path(sys.executable).with_name("acmix-export"))
    command = [program, "--model", f"{source}:make_net", "--input", "1x3x128x128", "--target", "tflite"]
    done = subprocess.run([*command, "--out", str(folder / "out")], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"the export failed:\n{done.stderr[-2000:]}")
    return open_artifact(folder / "out" / "make_net-tflite-float32")


Way = Callable[[Artifact, ProfileRequest, Path], Repetition]


def interleaved(artifact: Artifact, request: ProfileRequest, log: Path) -> Repetition:
    """As acmix profile does it."""
    measurement = profile([artifact, artifact], request, log, lambda word: None)
    if any(reason.leads_to == "incomplete" for reason in measurement.judgement.reasons):
        raise KeyboardInterrupt
    ratio = ratios(measurement.timings)[1]
    if ratio is None:
        raise SystemExit("the measurement has no ratio")
    return Repetition("interleaved", ratio, measurement.timings[0].percentile_ms(50), measurement.judgement.verdict)


def one_after_another(artifact: Artifact, request: ProfileRequest, log: Path) -> Repetition:
    """As benchmark programs do it: a process, all its runs, then the next."""
    probes = Probes(artifact.manifest.inputs)
    noise = dict(zip(probes.identifiers, probes, strict=True))["noise"]
    cpu = machine.usable_cpus()[-1:]
    samples: list[list[int]] = []
    for _ in range(2):
        with open_session(artifact.session(cpus=cpu), log) as session:
            session.load()
            session.run(file_inputs(noise, interface_of(artifact)))
            session.time(STOCK_WARM_UP)
            taken: list[int] = []
            while len(taken) < request.runs or sum(taken) < request.seconds * 1e9:
                taken += session.time(10).latency_ns
            samples.append(taken)
    return Repetition("one after another", independent(*samples), statistics.median(samples[0]) / 1e6)


def independent(base: list[int], other: list[int]) -> Ratio:
    """The ratio of medians, its interval from runs resampled as if each were independent of its neighbours."""
    rng = np.random.default_rng(0)
    medians = []
    for values in (base, other):
        array = np.asarray(values, np.float64)
        medians.append([np.median(rng.choice(array, array.size)) for _ in range(RESAMPLES)])
    low, high = np.quantile(np.divide(medians[1], medians[0]), [0.025, 0.975])
    return Ratio(float(np.median(other) / np.median(base)), float(low), float(high))


def written(ratio: Ratio) -> str:
    """The ratio with its interval."""
    return f"{ratio.estimate:.4f} ({ratio.low:.4f} to {ratio.high:.4f})"


def table(repetitions: list[Repetition]) -> Table:
    """A line for each way."""
    made = Table(
        "way", "repetitions", "contain 1", "half width %, median", "widest", "error %, median", "worst", box=None
    )
    for way in dict.fromkeys(r.way for r in repetitions):
        own = [r for r in repetitions if r.way == way]
        widths, errors = [100 * r.half_width for r in own], [100 * abs(r.ratio.estimate - 1) for r in own]
        numbers = (statistics.median(widths), max(widths), statistics.median(errors), max(errors))
        made.add_row(way, str(len(own)), str(sum(r.contains_one for r in own)), *(f"{n:.2f}" for n in numbers))
    return made


def saved(file: Path | None, setting: dict[str, object]) -> list[Repetition]:
    """What an earlier call left; it must have measured in the same way."""
    if file is None or not file.exists():
        return []
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("setting") != setting:
        raise SystemExit(f"{file} was measured in another way: {content.get('setting') if content else None}.")
    return [Repetition(r["way"], Ratio(**r["ratio"]), r["median_ms"], r["verdict"]) for r in content["repetitions"]]


def save(file: Path | None, setting: dict[str, object], repetitions: list[Repetition]) -> None:
    """All that is known; the file is whole at any time."""
    if file is not None:
        partial = file.with_name(f".{file.name}.part")
        content = {"setting": setting, "repetitions": [asdict(r) for r in repetitions]}
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        partial.replace(file)


def flags() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path, nargs="?")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--preset", choices=[*PRESETS])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--stock", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.stock = arguments.repetitions if arguments.stock is None else min(arguments.stock, arguments.repetitions)
    return arguments


def next_way(repetitions: list[Repetition], arguments: argparse.Namespace) -> Way | None:
    """Ours and the stock way in turn, until there are enough of both."""
    ours = sum(r.way == "interleaved" for r in repetitions)
    stock = len(repetitions) - ours
    if stock < min(ours, arguments.stock):
        return one_after_another
    return interleaved if ours < arguments.repetitions else None


def repeat(arguments: argparse.Namespace, request: ProfileRequest, setting: dict[str, object]) -> list[Repetition]:
    """Alternate the two ways until there are enough, the time is over or somebody stops it."""
    repetitions = saved(arguments.json, setting)
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        artifact = open_artifact(arguments.artifact) if arguments.artifact else export(folder)
        try:
            while (way := next_way(repetitions, arguments)) and time.monotonic() - begin < 60 * arguments.minutes:
                last = way(artifact, request, folder / "log")
                repetitions.append(last)
                save(arguments.json, setting, repetitions)
                number = sum(r.way == last.way for r in repetitions)
                print(f"{number:3d} {last.way:18s} {last.median_ms:.3f} ms  {written(last.ratio)}  {last.verdict}",
                      flush=True)  # fmt: skip
        except KeyboardInterrupt:
            print("stopped; the same command with the same --json goes on", flush=True)
    return repetitions


def main() -> None:
    """Repeat, print the table, and leave with what it means."""
    arguments = flags()
    plan = Plan(arguments.runs, arguments.seconds, arguments.processes)
    plan = PRESETS[arguments.preset] if arguments.preset else plan
    request = ProfileRequest(1, plan.runs, plan.seconds, processes=plan.processes)
    setting: dict[str, object] = {"artifact": str(arguments.artifact), **asdict(request)}
    begin = time.perf_counter()
    repetitions = repeat(arguments, request, setting)
    ours = [r for r in repetitions if r.way == "interleaved"]
    if not ours:
        raise SystemExit("nothing was measured")
    Console(width=120).print(table(repetitions))
    length = f"{request.runs} runs and {request.seconds} s at least, {request.processes} processes"
    print(f"{length}; {time.perf_counter() - begin:.0f} s in this call")
    right, narrow = sum(r.contains_one for r in ours), all(r.half_width < NARROW for r in ours)
    print(f"{right} of {len(ours)} intervals contain 1; the widest is +-{100 * max(r.half_width for r in ours):.2f} %")
    if next_way(repetitions, arguments):
        sys.exit(3)
    sys.exit(0 if right >= 0.95 * len(ours) and narrow else 1)


if __name__ == "__main__":
    main()
