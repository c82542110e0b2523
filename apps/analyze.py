"""The verb `acmix analyze`: its flags. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acmix.apps.verbs import Json
from acmix.toolkit import catalog


def analyze(
    model: Annotated[str, typer.Option("--model", help="As acmix-export.")] = catalog.DEFAULT_MODEL,
    calibration: Annotated[
        str | None, typer.Option("--calibration", help="What finds the ranges: as acmix-export.")
    ] = None,
    calibration_count: Annotated[
        int | None, typer.Option("--calibration-count", help="At most so many samples calibrate (128).")
    ] = None,
    accept_calibration: Annotated[
        bool, typer.Option("--accept-calibration", help="Calibrate on samples that the checks refuse.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Other photos to compare on, labelled or not; else the calibration's.")
    ] = None,
    data_count: Annotated[int | None, typer.Option("--data-count", min=1, help="Compare on so many (16).")] = None,
    precision: Annotated[str, typer.Option("--precision", help="What to look at.")] = "w8a8",
    target: Annotated[str, typer.Option("--target", help="Whose form of the network.")] = "onnx",
    weights: Annotated[str | None, typer.Option("--weights", help="A checkpoint, or 'random'.")] = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", help="Shape of an input, as acmix-export.")] = None,
    preprocess: Annotated[str | None, typer.Option("--preprocess", help="'imagenet' or a TOML file.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31, help="Of random weights.")] = 0,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the ranking: .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Rank the modules of a network by what int8 in each alone costs the outputs."""
    from acmix.apps import analysis, requests

    flags = requests.ExportFlags(
        model=model,
        target=target,
        precision=precision,
        weights=weights,
        inputs=tuple(inputs or ()),
        preprocess=preprocess,
        seed=seed,
        calibration=calibration,
        calibration_count=calibration_count,
        accept_calibration=accept_calibration,
        data=data,
        data_count=data_count,
    )
    analysis.analyze(flags, plot, as_json)
