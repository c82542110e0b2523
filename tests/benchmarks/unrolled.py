"""An adaptive model in two forms, one interleaved run over photos: a file a network with exits, and one graph without.

python tests/benchmarks/unrolled.py --model gfnet_100 [--exits rates=0.5,0.3,0.2] [--target tflite] [--rounds 1]
                                    [--data FOLDER] [--calibration FOLDER] [--out FOLDER]

Exports what does not stand in --out yet. Three contenders take turns on every photo, one thread: the unrolled graph,
the stages one by one without any exit (the difference is what the hops between files cost and what cutting patches in
the graph does), and the stages with the exits that --exits chose on --calibration (without it: on the same photos).
Time runs from the decoded photo to the answer.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from acmix.apps.adaptive import adaptive_request
from acmix.apps.adaptive_flags import unrolled_flags
from acmix.apps.adaptive_tables import latency_table, summary, way
from acmix.apps.requests import ExportFlags, export_request
from acmix.calibration.decoded import DecodedPhotos
from acmix.calibration.photos import read_photo_folder
from acmix.toolkit import pipeline
from acmix.toolkit.adaptive.artifact import AdaptiveArtifact, open_adaptive
from acmix.toolkit.adaptive.export import export_adaptive
from acmix.toolkit.adaptive.measure import Contender, PhotoMeasurement, measure
from acmix.toolkit.adaptive.runner import load_adaptive, load_single, without_exits
from acmix.toolkit.artifact import Artifact, open_artifact

DATA = Path(__file__).parents[3] / "shared" / "data" / "imagenet_sample"


def no_progress(target: str, stage: pipeline.Stage, seconds: float) -> None:
    """Nobody watches."""


def staged(flags: ExportFlags, exits: str) -> AdaptiveArtifact:
    """The form with a file a network."""
    request = adaptive_request(flags, {}, exits)
    folder = request.folder(request.base.targets[0])
    if not folder.exists() and (error := export_adaptive(request, no_progress)[0].error):
        raise SystemExit(error)
    return open_adaptive(folder)


def in_one_graph(flags: ExportFlags) -> Artifact:
    """The form with one file."""
    # Seeded probes are enough to prove it.
    request = export_request(replace(unrolled_flags(flags, None), photos=None), {})
    folder = flags.out / request.folder_name(request.targets[0])
    if not folder.exists() and (error := pipeline.export(request, no_progress)[0].error):
        raise SystemExit(error)
    return open_artifact(folder)


def measured(stages: AdaptiveArtifact, graph: Artifact, photos: DecodedPhotos, rounds: int) -> PhotoMeasurement:
    """The graph first: ratios are to it."""
    macs = stages.manifest.exit_macs
    with ExitStack() as stack:
        whole = stack.enter_context(load_single(graph))
        loaded = stack.enter_context(load_adaptive(stages))
        contenders = [Contender(whole, (graph.manifest.model.macs,))]
        contenders += [Contender(form, macs) for form in (without_exits(loaded), loaded)]
        return measure(contenders, photos, rounds)


def main() -> None:
    """The program: the stages, a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--exits", default="accuracy=0.5")
    parser.add_argument("--target", default="tflite")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/unrolled"))
    arguments = parser.parse_args()
    calibration = arguments.calibration or arguments.data
    flags = ExportFlags(arguments.model, target=arguments.target, out=arguments.out, photos=calibration)
    stages, graph = staged(flags, arguments.exits), in_one_graph(flags)
    screen = Console(width=160)
    screen.print(summary(stages), way(stages.manifest.proof))
    photos = DecodedPhotos(read_photo_folder(arguments.data, stages.manifest.first_preprocess))
    screen.print(latency_table(measured(stages, graph, photos, arguments.rounds), photos.labels))


if __name__ == "__main__":
    main()
