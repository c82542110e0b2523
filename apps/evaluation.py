"""`acmix evaluate` of single networks: one table, agreement with eager, and of the files with one another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from acmix.apps import tables
from acmix.apps.output import console, log_file, print_json
from acmix.calibration.photos import read_photo_folder
from acmix.toolkit.artifact import open_artifact
from acmix.toolkit.evaluate import Evaluation, SameTop1, evaluate


def show(folders: Sequence[Path], data: Path, limit: int | None, model: str | None, as_json: bool) -> None:
    """Evaluate the artifacts of one network on a folder of photos, at most `limit` of them, and print."""
    artifacts = [open_artifact(folder) for folder in folders]
    first = artifacts[0].manifest
    samples = read_photo_folder(data, first.preprocess, first.further_preprocess)
    samples = samples.first(limit) if limit else samples
    screen = console()
    with log_file(folders[0], "evaluate") as log, Progress(console=screen, transient=True) as progress:
        task = progress.add_task(", ".join(a.name for a in artifacts), total=len(samples))
        results, between = evaluate(artifacts, samples, log, lambda n: progress.update(task, completed=n), model)
    if as_json:
        several = {"evaluations": results, "between": between}
        print_json("evaluate", **(several if len(results) > 1 else {"evaluation": results[0]}))
    screen.print(tables.evaluations(results))
    for line in _remarks(results, between):
        screen.print(line)


def _remarks(results: Sequence[Evaluation], between: Sequence[SameTop1]) -> list[str]:
    lines = []
    for result in results:
        if result.exit_top1:
            shares = (f"{name} {tables.percent(share, result.photos)}" for name, share in result.exit_top1.items())
            lines.append(f"Top-1 by exit of {result.artifact}: {', '.join(shares)}")
    lines += [f"{p.a} and {p.b}: same top-1 on {tables.percent(p.share, results[0].photos)}" for p in between]
    if results[0].eager_missing:
        lines.append(f"No agreement with eager: {results[0].eager_missing}")
    return lines
