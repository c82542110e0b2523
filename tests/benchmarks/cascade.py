"""A cascade of EfficientNet-Lite models against the largest of them alone: accuracy and mean latency over photos.

python tests/benchmarks/cascade.py [--cascade cascade:efficientnet_lite0@192,efficientnet_lite2@260]
                                   [--exits accuracy=0.5] [--target tflite] [--precision float32] [--rounds 1]
                                   [--data FOLDER] [--out FOLDER] [--json FILE]

Thresholds are chosen on the photos whose class is divisible by 20; the others are measured. One thread; the cascade
and the single model in float32 take turns on every photo, and so does the single model in --precision where that is
another one. Time runs from the decoded photo to the
answer: resizing counts, twice where a photo goes on to a second stage.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from acmix.apps.adaptive import adaptive_request
from acmix.apps.adaptive_tables import evaluation_table, latency_table, summary, way
from acmix.apps.requests import ExportFlags, export_request
from acmix.calibration.decoded import DecodedPhotos
from acmix.calibration.photos import PhotoFolder, read_photo_folder
from acmix.toolkit import pipeline
from acmix.toolkit.adaptive.artifact import AdaptiveArtifact, open_adaptive
from acmix.toolkit.adaptive.evaluate import evaluate_adaptive
from acmix.toolkit.adaptive.export import export_adaptive
from acmix.toolkit.adaptive.measure import Contender, PhotoMeasurement, measure, photo_summaries
from acmix.toolkit.adaptive.runner import load_adaptive, load_single
from acmix.toolkit.artifact import Artifact, open_artifact

EVERY = 20
DATA = Path(__file__).parents[3] / "shared" / "data" / "imagenet_sample"


def no_progress(target: str, stage: pipeline.Stage, seconds: float) -> None:
    """Nobody watches."""


def split(folder: PhotoFolder) -> tuple[PhotoFolder, PhotoFolder]:
    """The photos to calibrate on, and the others."""
    labels = folder.labels or ()
    calibration = [i for i, label in enumerate(labels) if label % EVERY == 0]
    others = [i for i, label in enumerate(labels) if label % EVERY != 0]
    return folder.pick(calibration), folder.pick(others)


def exported(arguments: argparse.Namespace, calibration: PhotoFolder) -> tuple[AdaptiveArtifact, Artifact]:
    """The cascade with its thresholds, and its last model alone; what stands in --out already is taken."""
    target, precision, out = arguments.target, arguments.precision, arguments.out
    flags = ExportFlags(model=arguments.cascade, target=target, precision=precision, out=out, photos=arguments.data)
    request = adaptive_request(flags, {}, arguments.exits)
    folder = request.folder(request.base.targets[0])
    if not folder.exists():
        request = replace(request, photos=DecodedPhotos(calibration))
        outcome = export_adaptive(request, no_progress)[0]
        if outcome.error:
            raise SystemExit(outcome.error)
    last = arguments.cascade.rpartition(",")[2]
    model, _, size = last.partition("@")
    # In float32 whatever the stages have: that is what a user has before.
    single = ExportFlags(
        model=model, target=target, precision="float32", out=out, inputs=(f"1x3x{size}x{size}",), photos=arguments.data
    )
    place = out / f"{model}-{target}-float32"
    if not place.exists() and (outcomes := pipeline.export(export_request(single, {}), no_progress))[0].error:
        raise SystemExit(outcomes[0].error)
    return open_adaptive(folder), open_artifact(place)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Export, evaluate on the photos that calibration has not seen, measure; the figures as JSON."""
    screen = Console(width=160)
    spec_photos = read_photo_folder(arguments.data, _any_preprocess())
    calibration, others = split(spec_photos)
    cascade, single = exported(arguments, calibration)
    screen.print(summary(cascade), way(cascade.manifest.proof))
    photos = DecodedPhotos(others)
    evaluation = evaluate_adaptive(cascade, photos, None)
    screen.print(evaluation_table(evaluation, [stage.name for stage in cascade.manifest.stages]))
    measurement = measured(cascade, single, photos, arguments.rounds)
    screen.print(latency_table(measurement, photos.labels))
    alone, together, *quantized = measurement.timings
    truth = photos.labels or ()
    loss = 100 * (alone.accuracy(truth) - together.accuracy(truth))
    ratio = together.mean_ms / alone.mean_ms
    fine = loss <= 0.5 and ratio <= (0.35 if quantized else 0.6)
    screen.print(f"top-1 {loss:+.2f} points lost, mean latency ratio {ratio:.3f}: {'met' if fine else 'NOT met'}")
    for one in quantized:
        screen.print(f"against {one.artifact} alone: {together.mean_ms / one.mean_ms:.3f}")
    return {"loss_points": loss, "ratio": ratio, "summary": photo_summaries(measurement), "evaluation": str(evaluation)}


def _any_preprocess() -> Any:
    from acmix.toolkit.spec import imagenet_preprocess

    return imagenet_preprocess(224)


def measured(cascade: AdaptiveArtifact, single: Artifact, photos: DecodedPhotos, rounds: int) -> PhotoMeasurement:
    """The single model first: ratios are to it."""
    last = list(cascade.networks.values())[-1]
    with ExitStack() as stack:
        contenders = [
            Contender(stack.enter_context(load_single(single)), (single.manifest.model.macs,)),
            Contender(stack.enter_context(load_adaptive(cascade)), cascade.manifest.exit_macs),
        ]
        if cascade.manifest.precision != single.manifest.recipe.name:
            contenders.append(Contender(stack.enter_context(load_single(last)), (last.manifest.model.macs,)))
        return measure(contenders, photos, rounds)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cascade", default="cascade:efficientnet_lite0@192,efficientnet_lite2@260")
    parser.add_argument("--exits", default="accuracy=0.5")
    parser.add_argument("--target", default="tflite")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path("build/cascade"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = run(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
