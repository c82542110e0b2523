"""The verb `acmix export`, which is also `acmix-export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acmix.apps.output import console, print_json
from acmix.apps.verbs import Json
from acmix.toolkit import catalog

if TYPE_CHECKING:
    from acmix.toolkit.request import ExportRequest, Outcome


def export_model(
    model: Annotated[
        str,
        typer.Option("--model", help="A name of `acmix list models`, package.module:make, file.py:make, or FILE.pt2."),
    ] = catalog.DEFAULT_MODEL,
    target: Annotated[str, typer.Option("--target", help="Targets, separated by commas, or 'all'.")] = "all",
    precision: Annotated[str, typer.Option("--precision", help="See `acmix list recipes`.")] = "float32",
    weights: Annotated[
        str | None, typer.Option("--weights", help="A checkpoint (.pth, .pt, .safetensors), or 'random'.")
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="Shape of an input: 1x3x224x224, or name=1x3x224x224.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where artifact folders go.")] = Path("build"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace artifacts that exist.")] = False,
    photos: Annotated[
        Path | None, typer.Option("--photos", help="A folder of photos to prove the files on, beside the probes.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", help="For int8: a folder of photos, .npz, .npy, file.py:function, or 'builtin'."),
    ] = None,
    calibration_count: Annotated[
        int | None, typer.Option("--calibration-count", help="At most so many samples calibrate (128).")
    ] = None,
    accept_calibration: Annotated[
        bool, typer.Option("--accept-calibration", help="Calibrate on samples that the checks refuse.")
    ] = False,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="mixed: points of top-1 that may be lost on --data (1).")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="mixed: held-out photos, with labels.csv or a folder a class.")
    ] = None,
    data_count: Annotated[
        int | None, typer.Option("--data-count", min=1, help="mixed: at most so many photos of --data (500).")
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option("--preprocess", help="'imagenet' or a TOML file; for your own models.")
    ] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="A text file, one class name a line.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31, help="Of random weights and of the probes.")] = 0,
    min_snr: Annotated[
        str | None, typer.Option("--min-snr", help="Agreement asked for in dB: 70, or logits=70,features=40.")
    ] = None,
    require_full_delegation: Annotated[
        bool, typer.Option("--require-full-delegation", help="Fail when any operator runs outside the delegate.")
    ] = False,
    layout: Annotated[str | None, typer.Option("--layout", help="tflite: nhwc (default) or nchw.")] = None,
    minimum_deployment: Annotated[
        str | None,
        typer.Option("--minimum-deployment", help="coreml: ios15, ios16 (default), ios17 (default for int8) or ios18."),
    ] = None,
    image_input: Annotated[
        bool, typer.Option("--image-input", help="coreml: take an image, with the preprocessing baked in.")
    ] = False,
    delegate: Annotated[
        str | None, typer.Option("--delegate", help="executorch: xnnpack (default), coreml or vulkan.")
    ] = None,
    half_arithmetic: Annotated[
        bool, typer.Option("--half-arithmetic", help="executorch float16: compute in float16 too; less exact.")
    ] = False,
    opset: Annotated[int | None, typer.Option("--opset", help="onnx: the operator set.")] = None,
    weight_type: Annotated[
        str | None,
        typer.Option(
            "--weight-type",
            help="onnx w8a8: int8 (default), or uint8: exact on any x86, less fast on others.",
        ),
    ] = None,
    exits: Annotated[
        str | None, typer.Option("--exits", help="Adaptive models: accuracy=0.5 (default), cost=MS, rates=0.6,0.4 ...")
    ] = None,
    unrolled: Annotated[
        bool,
        typer.Option("--unrolled", help="Adaptive models: one graph with the logits of every exit, no exit taken."),
    ] = False,
    shared_weights: Annotated[
        bool,
        typer.Option(
            "--shared-weights", help="Adaptive models: one file a target with all networks, equal weights once."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Export a model: capture once, lower to every target, prove each saved file."""
    from acmix.apps import requests
    from acmix.toolkit.adaptive import find

    flags = requests.ExportFlags(
        model, target, precision, weights, tuple(inputs or ()), out, overwrite, photos, preprocess, labels, seed,
        min_snr, require_full_delegation, calibration, calibration_count, accept_calibration,
        max_drop, data, data_count,
    )  # fmt: skip
    target_flags = {
        "layout": layout,
        "minimum_deployment": minimum_deployment,
        "image_input": image_input or None,
        "delegate": delegate,
        "half_arithmetic": half_arithmetic or None,
        "opset": opset,
        "weight_type": weight_type,
    }
    given = {k: v for k, v in target_flags.items() if v is not None}
    if unrolled:
        from acmix.apps.adaptive_flags import unrolled_flags

        flags = unrolled_flags(flags, exits, shared_weights)
    elif find.names_adaptive(model) or exits is not None or shared_weights:
        from acmix.apps import adaptive

        raise typer.Exit(adaptive.export(flags, given, exits, shared_weights, as_json))
    from acmix.apps import analysis

    request = analysis.following(requests.export_request(flags, given))
    results = _run_export(request)
    analysis.keep_tradeoff(request, results)
    code = _report_export(results)
    # Last: what fails before it is the one JSON object that is printed.
    if as_json:
        outcomes = [requests.outcome_record(r) for r in results]
        print_json("export", outcomes=outcomes, tradeoff=analysis.tradeoff_of(request))
    raise typer.Exit(code)


def _run_export(request: ExportRequest) -> list[Outcome]:
    from acmix.apps.live import StageLines
    from acmix.toolkit import pipeline
    from acmix.toolkit.request import has_random_weights, refuse_early

    refuse_early(request)
    screen = console()
    if has_random_weights(request):
        screen.print(
            f"RANDOM WEIGHTS: {request.source.spec.name} has no trained weights (seed {request.seed}).\n"
            "Right for timing and placement, useless for classifying. Give a checkpoint: --weights FILE.",
            style="bold red",
        )
    for remark in request.calibrator.remarks if request.calibrator else ():
        screen.print(f"calibration: {remark}", style="yellow")
    with StageLines(screen) as lines:
        return pipeline.export(request, lines.progress)


def _report_export(results: list[Outcome]) -> int:
    from acmix.apps import tables

    screen = console()
    screen.print(tables.outcomes(results))
    for result in results:
        if result.error:
            screen.print(f"{result.target}: {result.error}", style="red")
        elif result.artifact and result.artifact.manifest.proof.reason:
            screen.print(f"{result.target}: {result.artifact.manifest.proof.reason}")
    done = [r.artifact for r in results if r.artifact is not None]
    for remark in tables.remarks([artifact.manifest for artifact in done]):
        screen.print(remark)
    if done:
        screen.print(f"Wrote {', '.join(str(a.folder) for a in done)}")
        runnable = [str(a.folder) for a in done if a.manifest.proof.executed_by == "runtime"]
        screen.print(
            f"Next: acmix profile {' '.join(runnable)}" if runnable else f"Next: acmix inspect {done[0].folder}"
        )
    codes = {r.exit_code for r in results}
    return 0 if codes == {0} else (2 if codes == {2} else 1)
