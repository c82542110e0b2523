"""A small MSDNet of a user's own: its mean latency at the exits that calibration chose, against running all of it.

python tests/benchmarks/fashion_exits.py [--out FOLDER] [--exits surely=0.5] [--rounds 1] [--picture curve.png]

Needs dataset-fashion-mnist (tests/install_data.sh). Trains once (a minute), exports to TFLite, chooses exits on 2000
photos that training did not see, and measures on the other 8000, one thread: with the exits and with all stages, in
turns on every photo. What stands in --out already is taken.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from acmix.apps import adaptive
from acmix.apps.adaptive_tables import latency_table, summary
from acmix.apps.requests import ExportFlags
from acmix.calibration.decoded import DecodedPhotos
from acmix.calibration.photos import read_photo_folder
from acmix.toolkit import pipeline
from acmix.toolkit.adaptive.artifact import AdaptiveArtifact, open_adaptive
from acmix.toolkit.adaptive.export import export_adaptive
from acmix.toolkit.adaptive.measure import Contender, PhotoMeasurement, measure
from acmix.toolkit.adaptive.runner import load_adaptive, without_exits

TRAINING = Path(__file__).parents[1] / "end_to_end" / "fashion.py"


def no_progress(target: str, stage: pipeline.Stage, seconds: float) -> None:
    """Nobody watches."""


def exported(out: Path, exits: str) -> Path:
    """The folder of the artifact; trains and exports where it is not there yet."""
    if not (out / "others").is_dir():
        subprocess.run([sys.executable, TRAINING, out], check=True)
    flags = ExportFlags(f"{out / 'fashion_net.py'}:NET", target="tflite", out=out, photos=out / "calibration")
    request = adaptive.adaptive_request(flags, {}, exits)
    folder = request.folder(request.base.targets[0])
    if not folder.exists() and (error := export_adaptive(request, no_progress)[0].error):
        raise SystemExit(error)
    return folder


def measured(artifact: AdaptiveArtifact, photos: DecodedPhotos, rounds: int) -> PhotoMeasurement:
    """Always all stages first: the ratio is to it."""
    macs = artifact.manifest.exit_macs
    with load_adaptive(artifact) as loaded:
        return measure([Contender(without_exits(loaded), macs), Contender(loaded, macs)], photos, rounds)


def main() -> None:
    """The program: the curve, a table, one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/fashion"))
    parser.add_argument("--exits", default="surely=0.5")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    folder = exported(arguments.out, arguments.exits)
    # At the speed of now, and with the picture.
    adaptive.exits(folder, arguments.out / "calibration", arguments.exits, arguments.picture, (), False)
    artifact = open_adaptive(folder)
    screen = Console(width=160)
    screen.print(summary(artifact))
    photos = DecodedPhotos(read_photo_folder(arguments.out / "others", artifact.manifest.first_preprocess))
    measurement = measured(artifact, photos, arguments.rounds)
    screen.print(latency_table(measurement, photos.labels))
    alone, chosen = measurement.timings
    truth = photos.labels or ()
    screen.print(
        f"top-1 {100 * (alone.accuracy(truth) - chosen.accuracy(truth)):+.2f} points lost, mean latency "
        f"{chosen.mean_ms / alone.mean_ms:.3f} of all stages, MACs {chosen.mean_macs / alone.mean_macs:.3f}"
    )


if __name__ == "__main__":
    main()
