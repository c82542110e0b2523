"""make demo: EfficientNet-Lite0 with its ImageNet weights, to every target, on real photos, in one table."""

from __future__ import annotations

import csv
import re
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from acmix.apps import cli, requests, tables
from acmix.apps.live import StageLines
from acmix.apps.output import console
from acmix.calibration.photos import PhotoFolder, read_photo_folder
from acmix.toolkit import pipeline
from acmix.toolkit import profile as profiling
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.errors import UsageError
from acmix.toolkit.evaluate import Evaluation, evaluate

MODEL = "efficientnet_lite0"
PHOTO = re.compile(r"foolbox/data/imagenet_\d+_(\d+)\.jpg")


def unpack_photos(wheel: Path, folder: Path) -> int:
    """Write the labelled photos of a foolbox wheel and their labels.csv; how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if match := PHOTO.fullmatch(name):
                file = Path(name).name
                (folder / file).write_bytes(archive.read(name))
                rows.append((file, int(match[1])))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows([("file", "label"), *rows])
    return len(rows)


def run(wheels: Path, out: Path) -> int:
    """Export, prove, evaluate and profile; the exit code."""
    wheel = next(iter(sorted(wheels.glob("foolbox-*.whl"))), None)
    if wheel is None:
        raise UsageError(f"{wheels} holds no foolbox wheel.\nRun `make demo`, which fetches it.")
    shutil.rmtree(out, ignore_errors=True)
    count = unpack_photos(wheel, out / "photos")
    screen = console()
    screen.print(f"Exporting {MODEL} with its ImageNet weights to every target; {count} photos prove each file.")
    request = requests.export_request(
        requests.ExportFlags(model=MODEL, target="all", out=out, photos=out / "photos"), {}
    )
    with StageLines(screen) as lines:
        outcomes = pipeline.export(request, lines.progress)
    made = [o.artifact for o in outcomes if o.artifact is not None]
    runnable = [a for a in made if a.manifest.proof.executed_by == "runtime"]
    photos = read_photo_folder(out / "photos", request.source.spec.preprocess)
    scores = _scores([a for a in made if a.manifest.proof.executed_by], photos, out, screen)
    with screen.status("profiling") as status:
        measurement = profiling.profile(runnable, profiling.ProfileRequest(), out / "profile.log", status.update)
    saved = profiling.save(measurement, out)
    screen.print(_table(made, scores, measurement))
    for outcome in outcomes:
        reason = outcome.error or (outcome.artifact.manifest.proof.reason if outcome.artifact else "")
        if reason:
            screen.print(f"{outcome.target}: {reason}")
    screen.print(f"Artifacts, logs and raw latency samples ({saved.name}) are in {out}.")
    return max(o.exit_code for o in outcomes)


def _scores(artifacts: Sequence[Artifact], photos: PhotoFolder, out: Path, screen: Console) -> dict[str, Evaluation]:
    if not artifacts:
        return {}
    with Progress(console=screen, transient=True) as progress:
        task = progress.add_task("evaluating", total=len(photos))
        results, _ = evaluate(artifacts, photos, out / "evaluate.log", lambda n: progress.update(task, completed=n))
    return {result.artifact: result for result in results}


def _table(artifacts: Sequence[Artifact], scores: dict[str, Evaluation], measurement: profiling.Measurement) -> Table:
    timings = {t.artifact: t for t in measurement.timings}
    made = tables.table(*tables.OUTCOME_COLUMNS, ">photos right", ">p50 ms", ">p90 ms", ">peak MB")
    for artifact in artifacts:
        score, timing = scores.get(artifact.name), timings.get(artifact.name)
        right = f"{round((score.top1 or 0) * score.photos)} of {score.photos}" if score else "-"
        latency = (
            [f"{timing.percentile_ms(50):.2f}", f"{timing.percentile_ms(90):.2f}", f"{timing.peak_memory_mb:.0f}"]
            if timing
            else ["-"] * 3
        )
        made.add_row(*tables.outcome_row(artifact), right, *latency)
    return made


def main(arguments: Sequence[str]) -> None:
    """The demo's program: the folder of the foolbox wheel, and the folder to fill."""
    cli.guard(lambda: sys.exit(run(Path(arguments[0]), Path(arguments[1]))))


if __name__ == "__main__":
    main(sys.argv[1:])
