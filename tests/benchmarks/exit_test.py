"""What the runner itself costs: the exit test and the host steps, each alone, warm and with emptied caches.

python tests/benchmarks/exit_test.py [--classes 1000] [--runs 300] [--photo 292x390]

Caches are emptied by a sum over 64 MB between two runs: worse than what a network leaves behind. All steps take
turns. Medians in microseconds; `full softmax` is scipy's in float64, for comparison.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import softmax

from acmix.toolkit.adaptive import host
from acmix.toolkit.policy import RULES, confidence
from acmix.toolkit.spec import TensorSpec, imagenet_preprocess
from acmix.toolkit.target import to_layout

SWEPT_BYTES = 64 << 20
PATCH = (96, 96)


def steps(classes: int, height: int, width: int) -> dict[str, Callable[[], object]]:
    """Every step by name, bound to seeded values."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, classes).astype(np.float32)
    photo = rng.integers(0, 256, (height, width, 3), np.uint8)
    small, large = imagenet_preprocess(192), imagenet_preprocess(260)
    image = host.normalised(host.fitted(photo, small), small)
    feeds = TensorSpec("image", image.shape, layout="nhwc")
    made: dict[str, Callable[[], object]] = {"full softmax": lambda: softmax(logits.astype(np.float64)).max()}
    for rule in RULES:
        made[f"exit test, {rule}"] = lambda rule=rule: confidence(logits, rule, "stage")  # type: ignore[misc]
    made["crop: a view"] = lambda: host.patch(image, "nhwc", (5, 7), PATCH)
    made["crop: its one copy"] = lambda: to_layout(host.patch(image, "nhwc", (5, 7), PATCH), feeds, feeds)
    made["an input as it stands"] = lambda: to_layout(image, feeds, feeds)
    made["image at 96x96"] = lambda: host.resized(image, "nhwc", PATCH)
    for size in (small, large):
        pixels = host.fitted(photo, size)
        side = size.crop[0]
        made[f"photo resized and cropped to {side}"] = lambda size=size: host.fitted(photo, size)  # type: ignore[misc]
        made[f"photo of {side} normalised"] = lambda p=pixels, s=size: host.normalised(p, s)  # type: ignore[misc]
    return made


def measured(made: dict[str, Callable[[], object]], runs: int, empty: bool) -> dict[str, float]:
    """The median time of each step in microseconds."""
    swept = np.zeros(SWEPT_BYTES, np.uint8)
    taken: dict[str, list[int]] = {name: [] for name in made}
    for _ in range(runs):
        for name, step in made.items():
            # The step before was another one: without this, no step would ever be warm.
            swept.sum() if empty else step()
            begin = time.perf_counter_ns()
            step()
            taken[name].append(time.perf_counter_ns() - begin)
    return {name: float(np.median(times)) / 1e3 for name, times in taken.items()}


def main() -> None:
    """The program: one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--photo", default="292x390", help="Height and width.")
    arguments = parser.parse_args()
    height, width = (int(side) for side in arguments.photo.split("x"))
    made = steps(arguments.classes, height, width)
    warm = measured(made, arguments.runs, empty=False)
    cold = measured(made, max(1, arguments.runs // 10), empty=True)
    table = Table("step", "warm us", "caches emptied us", box=None)
    for name in made:
        table.add_row(name, f"{warm[name]:.1f}", f"{cold[name]:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
