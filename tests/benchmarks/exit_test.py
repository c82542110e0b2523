"""What the runner itself costs: the exit test and the host steps, each alone, warm and with cold caches.

python tests/benchmarks/exit_test.py [NETWORK] [--classes 1000] [--runs 200] [--photo 292x390] [--all]

NETWORK is the folder of an exported classifier: cold is right after an inference of it, on the logits that it gave, as
the runner meets them. Without it cold is after a sum over 64 MB, which is worse. All steps take turns. Microseconds;
`in float64` is the exit test as it was before, `full softmax` is scipy's. --all adds the host steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import softmax

from acmix.toolkit.adaptive import host
from acmix.toolkit.adaptive.runner import load_networks
from acmix.toolkit.artifact import open_artifact
from acmix.toolkit.policy import RULES, exit_test
from acmix.toolkit.spec import TensorSpec, imagenet_preprocess
from acmix.toolkit.target import Array, to_layout

SWEPT_BYTES = 64 << 20
PATCH = (96, 96)

Step = Callable[[Array], object]
"""Of logits [classes]; host steps leave them alone."""


def in_float64(logits: Array, ones: Array) -> float:
    """The largest probability of a softmax in float64, without a shift or a reduction."""
    row = logits.reshape(-1)
    first = row.argmax()
    if -600 < float(row[first]) < 600:
        powers = np.exp(row, dtype=np.float64)
        return float(powers[first]) / float(powers.dot(ones))
    raise SystemExit("the logits are too large to be compared")


def exit_tests(classes: int) -> dict[str, Step]:
    """The test by each rule, and other ways to the first."""
    ones = np.ones(classes)
    made: dict[str, Step] = {
        "nothing": lambda logits: None,
        "full softmax": lambda logits: softmax(logits.astype(np.float64)).max(),
        "exit test, max_softmax in float64": lambda logits: in_float64(logits, ones),
    }
    for rule in RULES:
        made[f"exit test, {rule}"] = exit_test(rule, "stage")
    return made


def host_steps(photo: Array) -> dict[str, Step]:
    """What happens to images between networks."""
    small, large = imagenet_preprocess(192), imagenet_preprocess(260)
    image = host.normalised(host.fitted(photo, small), small)
    feeds = TensorSpec("image", image.shape, layout="nhwc")
    made: dict[str, Step] = {
        "crop: a view": lambda _: host.patch(image, "nhwc", (5, 7), PATCH),
        "crop: its one copy": lambda _: to_layout(host.patch(image, "nhwc", (5, 7), PATCH), feeds, feeds),
        "an input as it stands": lambda _: to_layout(image, feeds, feeds),
        "image at 96x96": lambda _: host.resized(image, "nhwc", PATCH),
    }
    for size in (small, large):
        pixels = host.fitted(photo, size)
        side = size.crop[0]
        made[f"photo resized and cropped to {side}"] = lambda _, s=size: host.fitted(photo, s)  # type: ignore[misc]
        made[f"photo of {side} normalised"] = lambda _, p=pixels, s=size: host.normalised(p, s)  # type: ignore[misc]
    return made


def measured(
    made: dict[str, Step], runs: int, fresh: Callable[[], Array], warm: bool
) -> dict[str, tuple[float, float]]:
    """The median and the 90th percentile of each step in microseconds.  fresh: logits, the caches emptied."""
    taken: dict[str, list[int]] = {name: [] for name in made}
    logits = fresh()
    for _ in range(runs):
        for name, step in made.items():
            if warm:
                # The step before was another one: without this, no step would ever be warm.
                step(logits)
            else:
                logits = fresh()
            begin = time.perf_counter_ns()
            step(logits)
            taken[name].append(time.perf_counter_ns() - begin)
    return {name: (float(np.median(t)) / 1e3, float(np.percentile(t, 90)) / 1e3) for name, t in taken.items()}


def logits_of(network: Path | None, classes: int, stack: ExitStack) -> Callable[[], Array]:
    """Empties the caches and gives logits [classes], every time it is called."""
    if network is not None:
        # Not the runner: it would run the exit test itself.
        (loaded,) = stack.enter_context(load_networks({"network": open_artifact(network)}, 1)).values()
        fed = [np.random.default_rng(0).normal(size=spec.shape).astype(np.float32) for spec in loaded.inputs]
        return lambda: loaded.run(fed)[0].reshape(-1)
    logits = np.random.default_rng(0).normal(0, 3, classes).astype(np.float32)
    swept = np.zeros(SWEPT_BYTES, np.uint8)

    def sweep() -> Array:
        swept.sum()
        return logits

    return sweep


def main() -> None:
    """The program: one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, nargs="?")
    parser.add_argument("--classes", type=int, default=1000, help="Without NETWORK.")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--photo", default="292x390", help="Height and width.")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    height, width = (int(side) for side in arguments.photo.split("x"))
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    with ExitStack() as stack:
        fresh = logits_of(arguments.network, arguments.classes, stack)
        made = exit_tests(fresh().size) | (host_steps(photo) if arguments.all else {})
        warm = measured(made, arguments.runs, fresh, warm=True)
        cold = measured(made, arguments.runs, fresh, warm=False)
    table = Table("step", "warm us", "p90", "cold us", "p90", box=None)
    for name in made:
        table.add_row(name, *(f"{value:.1f}" for value in (*warm[name], *cold[name])))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
