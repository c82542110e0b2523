"""How far thresholds from a few photos can be trusted: drawn again and again, judged on all the other photos.

python tests/benchmarks/exit_draws.py ARTIFACT [--data FOLDER] [--photos 50] [--draws 200] [--exits accuracy=0.5]
                                      [--unlabelled]

ARTIFACT is an adaptive folder. Every photo runs through all its stages once; the draws are arithmetic.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from acmix.calibration.aims import parse_aim
from acmix.calibration.decoded import DecodedPhotos
from acmix.calibration.exits import answers, choose, outcome_of
from acmix.calibration.photos import read_photo_folder
from acmix.toolkit.adaptive.artifact import open_adaptive
from acmix.toolkit.adaptive.observe import every_stage, logits_of, stage_costs_ms
from acmix.toolkit.adaptive.runner import load_adaptive

DATA = Path(__file__).parents[3] / "shared" / "data" / "imagenet_sample"


def main() -> None:
    """The program: one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--exits", default="accuracy=0.5")
    parser.add_argument("--unlabelled", action="store_true", help="Judge the drawn photos by the last stage.")
    arguments = parser.parse_args()
    artifact = open_adaptive(arguments.artifact)
    photos = DecodedPhotos(read_photo_folder(arguments.data, artifact.manifest.first_preprocess))
    with load_adaptive(artifact) as loaded:
        traces = every_stage(loaded, photos)
    logits, costs, truth = logits_of(traces), stage_costs_ms(traces), np.asarray(photos.labels)
    rng = np.random.default_rng(0)
    lost, ratios = [], []
    for _ in range(arguments.draws):
        drawn = np.zeros(len(truth), bool)
        drawn[rng.choice(len(truth), arguments.photos, replace=False)] = True
        labels = None if arguments.unlabelled else truth[drawn].tolist()
        few = answers(logits[:, drawn], labels, artifact.manifest.rule, costs, "ms")
        others = answers(logits[:, ~drawn], truth[~drawn].tolist(), artifact.manifest.rule, costs, "ms")
        point = outcome_of(others, choose(few, parse_aim(arguments.exits)).thresholds)
        lost.append(100 * float(others.right[-1].mean() - point.accuracy))
        ratios.append(point.cost / costs[-1])
    print(
        f"{arguments.exits}, {arguments.photos} photos{' without labels' * arguments.unlabelled}, {arguments.draws} "
        f"draws: {np.mean(lost):.2f} points lost on average on the others, {np.percentile(lost, 90):.2f} in one of "
        f"ten; cost {np.mean(ratios):.2f} of the last stage alone"
    )


if __name__ == "__main__":
    main()
