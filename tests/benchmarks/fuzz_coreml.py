"""Damages Core ML packages at random and holds the reference evaluator to its promise: outputs or a sentence.

python tests/benchmarks/fuzz_coreml.py [--minutes 10] [--seed 0] [--case N] PACKAGE...

Each case damages a copy of a package and loads and runs it in a child process with limits on time and memory. It may
end in outputs or in a UsageError; a crash, a hang and any other exception are findings: they are printed, and the
program exits 1. Case N of a seed is always the same damage to the same packages: --case repeats it alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

LIMIT_S = 60.0
LIMIT_BYTES = 4 << 30
MAX_FEED_ELEMENTS = 10_000_000
FINE = ("outputs", "refused")


@dataclass(frozen=True)
class Finding:
    """A case that ended in neither outputs nor a sentence."""

    case: int
    package: str
    damage: str
    end: str


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def cut_out(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 2, 8, 64, 1000)) :]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """A run of bytes with another run of the same file: fields that are valid, in the wrong place."""
    length = rng.choice((1, 2, 8, 64, 300))
    source, target = rng.randrange(len(data)), rng.randrange(len(data))
    run = data[source : source + length]
    return data[:target] + run + data[target + len(run) :]


def set_byte(data: bytes, rng: random.Random) -> bytes:
    """The bytes that are extreme as numbers and as lengths."""
    place = rng.randrange(len(data))
    return data[:place] + bytes((rng.choice((0, 1, 2, 0x7F, 0x80, 0xFF)),)) + data[place + 1 :]


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip_bits, flip_bits, flip_bits, truncate, cut_out, overwrite, set_byte, set_byte,
)  # fmt: skip


def damage(package: Path, others: Sequence[Path], rng: random.Random) -> str:
    """Change the package in one way and say which: mostly a file's bytes, sometimes whole files."""
    files = sorted(file for file in package.rglob("*") if file.is_file())
    kind = rng.random()
    file = rng.choice(files)
    name = file.relative_to(package)
    if kind < 0.02:
        file.unlink()
        return f"{name} deleted"
    if kind < 0.04:
        other = rng.choice(files)
        first, second = file.read_bytes(), other.read_bytes()
        file.write_bytes(second)
        other.write_bytes(first)
        return f"{name} and {other.relative_to(package)} swapped"
    if kind < 0.06:
        donor = rng.choice(others)
        if (donor / name).is_file():
            shutil.copyfile(donor / name, file)
        return f"{name} taken from {donor.name}"
    # The program is where damage has consequences: five cases of six.
    models = [one for one in files if one.suffix == ".mlmodel"]
    file = rng.choice(models) if models and rng.random() < 5 / 6 else file
    change, data = rng.choice(CHANGES), file.read_bytes()
    file.write_bytes(change(data, rng) if data else b"?")
    return f"{file.relative_to(package)}: {change.__name__}"


def feeds_of(model: Any) -> dict[str, Any]:
    """Random inputs as the package describes them."""
    import numpy as np

    from acmix.targets.mil.interface import ArrayFeature, ImageFeature
    from acmix.toolkit.errors import UsageError

    rng, feeds = np.random.default_rng(0), {}
    for feature in model.interface().inputs:
        if isinstance(feature, ImageFeature):
            shape: tuple[int, ...] = (1, feature.height, feature.width, feature.channels)
        else:
            shape = feature.shape if isinstance(feature, ArrayFeature) else ()
        if min(shape, default=1) < 0 or prod(shape) > MAX_FEED_ELEMENTS:
            raise UsageError(f"no input of {list(shape)} can be made.")
        if isinstance(feature, ImageFeature):
            feeds[feature.name] = rng.integers(0, 256, shape, np.uint8)
        elif isinstance(feature, ArrayFeature) and feature.dtype.startswith("int"):
            feeds[feature.name] = rng.integers(1, 3, shape)
        elif isinstance(feature, ArrayFeature):
            feeds[feature.name] = rng.standard_normal(shape)
    return feeds


def run_once(path: str) -> dict[str, str]:
    """How loading and running a package ends."""
    from acmix.targets.mil import load_package
    from acmix.toolkit.errors import UsageError

    try:
        model = load_package(path)
        model(feeds_of(model), state=model.make_state())
    except UsageError as error:
        sentence = str(error).strip()
        return {"end": "refused" if sentence else "a UsageError without a sentence", "detail": sentence}
    except Exception:
        return {"end": "another exception", "detail": traceback.format_exc()}
    return {"end": "outputs", "detail": ""}


def serve() -> None:
    """The child: a package's path a line in, how it ended a line out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import acmix.targets.mil  # noqa: F401  (before the limit, which counts address space)

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, used + LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        print(json.dumps(run_once(line.rstrip("\n"))), file=answers, flush=True)


class Child:
    """A process that evaluates packages one after another, replaced when it dies or hangs."""

    def __init__(self, log: IO[bytes]) -> None:
        self.log = log
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "ignore", __file__, "--serve", "-"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)

    def run(self, package: Path) -> tuple[str, str]:
        """How it ended, and the sentence or the trace."""
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{package}\n".encode())
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            answered = bool(selector.select(LIMIT_S))
        line = process.stdout.readline() if answered else b""
        if line.endswith(b"\n"):
            answer: Mapping[str, str] = json.loads(line)
            return answer["end"], answer["detail"]
        self.close()
        self.process = self._start()
        return ("a crash", f"signal or exit code {process.returncode}") if answered else ("a hang", f"{LIMIT_S:g} s")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def fuzz(packages: Sequence[Path], seed: int, deadline: float, only: int | None) -> tuple[Counter[str], list[Finding]]:
    """Cases until the deadline, or one alone."""
    seen: Counter[str] = Counter()
    findings = []
    with tempfile.TemporaryDirectory() as scratch, (Path(scratch) / "log").open("wb") as log:
        child, place = Child(log), Path(scratch) / "damaged.mlpackage"
        try:
            for package in packages:
                end, detail = child.run(package)
                if end != "outputs":
                    raise SystemExit(f"{package} is no package that works: {end}. {detail}")
            case = only or 0
            while time.monotonic() < deadline:
                rng = random.Random(f"{seed}/{case}")
                package = packages[case % len(packages)]
                shutil.rmtree(place, ignore_errors=True)
                shutil.copytree(package, place)
                done = damage(place, packages, rng)
                end, detail = child.run(place)
                seen[end] += 1
                if end not in FINE:
                    findings.append(Finding(case, package.name, done, f"{end}: {detail}"))
                    print(f"case {case} ({package.name}, {done}): {end}\n{detail}", flush=True)
                elif only is not None:
                    print(f"case {case} ({package.name}, {done}): {end}. {detail}")
                if only is not None:
                    break
                case += 1
        finally:
            child.close()
    return seen, findings


def main() -> None:
    """Fuzz, and print what was seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this case alone")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("packages", nargs="+", type=Path, metavar="PACKAGE")
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    begin = time.monotonic()
    packages = [path.resolve() for path in arguments.packages]
    seen, findings = fuzz(packages, arguments.seed, begin + 60 * arguments.minutes, arguments.case)
    print(f"{seen.total()} cases of seed {arguments.seed} in {(time.monotonic() - begin) / 60:.1f} minutes:")
    for end, count in seen.most_common():
        print(f"  {count:7} {end}")
    if findings:
        numbers = ", ".join(str(one.case) for one in findings)
        raise SystemExit(f"{len(findings)} cases ended in neither outputs nor a sentence: {numbers}")


if __name__ == "__main__":
    main()
