"""acmix and acmix-export: thin verbs over the library. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from acmix.toolkit import catalog
from acmix.toolkit.errors import AcmixError

if TYPE_CHECKING:
    from acmix.toolkit.artifact import Artifact
    from acmix.toolkit.pipeline import ExportRequest, Outcome
    from rich.console import Console

JSON_SCHEMA_VERSION = 1

app = typer.Typer(
    name="acmix",
    help="Export vision backbones to Core ML, TFLite, ExecuTorch and ONNX; prove every file by running it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Folder = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A folder that acmix-export wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def console() -> Console:
    """Where people read: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 160)


def print_json(verb: str, **content: Any) -> None:
    """One JSON object on stdout, with the schema version first."""
    import msgspec

    sys.stdout.buffer.write(
        msgspec.json.encode({"schema_version": JSON_SCHEMA_VERSION, "verb": verb, **content}) + b"\n"
    )
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def log_file(beside: Path, verb: str) -> Iterator[Path]:
    """A log beside the artifact, kept only when something fails; in the temporary folder if that is not writable."""
    folder = beside.absolute().parent
    folder = folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())
    log = folder / f"{beside.name}.{verb}.log"
    log.unlink(missing_ok=True)
    yield log
    log.unlink(missing_ok=True)


@app.command("list")
def list_room(
    what: Annotated[str, typer.Argument(metavar="models|targets|recipes", help="What to list.")], as_json: Json = False
) -> None:
    """List models, targets or recipes."""
    listings: dict[str, Callable[[bool], None]] = {
        "models": _list_models,
        "targets": _list_targets,
        "recipes": _list_recipes,
    }
    if what not in listings:
        raise catalog.unknown("list", what, listings, "models")
    listings[what](as_json)


def _list_models(as_json: bool) -> None:
    cards = catalog.model_cards()
    if as_json:
        return print_json("list", models=cards)
    from acmix.apps import tables

    console().print(tables.models(cards))
    return None


def _list_targets(as_json: bool) -> None:
    rows = [(name, catalog.load_target(name), catalog.missing_package(name)) for name in catalog.stems("targets")]
    if as_json:
        return print_json("list", targets=[{"name": n, "suffix": t.suffix, "missing": m} for n, t, m in rows])
    from acmix.apps import tables

    made = tables.table("target", "file", "options", "installed")
    for name, target, missing in rows:
        flags = " ".join(f"--{key.replace('_', '-')}" for key in target.options.__dataclass_fields__)
        made.add_row(name, f"model{target.suffix}", flags, f"no: pip install 'acmix[[{name}]'" if missing else "yes")
    console().print(made)
    return None


def _list_recipes(as_json: bool) -> None:
    recipes = [catalog.load_recipe(name) for name in catalog.stems("calibration.recipes", ".toml")]
    if as_json:
        return print_json("list", recipes=recipes)
    from acmix.apps import tables

    made = tables.table("precision", "weights", "activations", ">agreement asked, dB", "")
    for r in recipes:
        made.add_row(r.name, r.weights, r.activations, f"{r.tolerance.snr_db:.0f}", r.description)
    console().print(made)
    return None


@app.command("export")
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
    preprocess: Annotated[
        str | None, typer.Option("--preprocess", help="'imagenet' or a TOML file; for your own models.")
    ] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="A text file, one class name a line.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of random weights and of the probes.")] = 0,
    min_snr: Annotated[
        str | None, typer.Option("--min-snr", help="Agreement asked for in dB: 70, or logits=70,features=40.")
    ] = None,
    require_full_delegation: Annotated[
        bool, typer.Option("--require-full-delegation", help="Fail when any operator runs outside the delegate.")
    ] = False,
    layout: Annotated[str | None, typer.Option("--layout", help="tflite: nhwc (default) or nchw.")] = None,
    minimum_deployment: Annotated[
        str | None, typer.Option("--minimum-deployment", help="coreml: ios15, ios16 (default), ios17 or ios18.")
    ] = None,
    image_input: Annotated[
        bool, typer.Option("--image-input", help="coreml: take an image, with the preprocessing baked in.")
    ] = False,
    delegate: Annotated[
        str | None, typer.Option("--delegate", help="executorch: xnnpack (default), coreml or vulkan.")
    ] = None,
    opset: Annotated[int | None, typer.Option("--opset", help="onnx: the operator set.")] = None,
    as_json: Json = False,
) -> None:
    """Export a model: capture once, lower to every target, prove each saved file."""
    from acmix.apps import requests

    flags = requests.ExportFlags(
        model, target, precision, weights, tuple(inputs or ()), out, overwrite, photos, preprocess, labels, seed,
        min_snr, require_full_delegation,
    )  # fmt: skip
    target_flags = {
        "layout": layout,
        "minimum_deployment": minimum_deployment,
        "image_input": image_input or None,
        "delegate": delegate,
        "opset": opset,
    }
    request = requests.export_request(flags, {k: v for k, v in target_flags.items() if v is not None})
    results = _run_export(request)
    if as_json:
        print_json("export", outcomes=[requests.outcome_record(r) for r in results])
    raise typer.Exit(_report_export(results))


def _run_export(request: ExportRequest) -> list[Outcome]:
    from acmix.apps.live import StageLines
    from acmix.toolkit import pipeline

    screen = console()
    if pipeline.has_random_weights(request):
        screen.print(
            f"[bold red]RANDOM WEIGHTS[/]: {request.source.spec.name} has no trained weights (seed {request.seed}).\n"
            "Right for timing and placement, useless for classifying. Give a checkpoint: --weights FILE."
        )
    with StageLines(screen) as lines:
        return pipeline.export(request, lines.progress)


def _report_export(results: list[Outcome]) -> int:
    from acmix.apps import tables

    screen = console()
    screen.print(tables.outcomes(results))
    for result in results:
        if result.error:
            screen.print(f"[red]{result.target}[/]: {result.error}", markup=True)
        elif result.artifact and result.artifact.manifest.proof.reason:
            screen.print(f"{result.target}: {result.artifact.manifest.proof.reason}")
    done = [r.artifact for r in results if r.artifact is not None]
    if done:
        screen.print(f"Wrote {', '.join(str(a.folder) for a in done)}")
        runnable = [str(a.folder) for a in done if a.manifest.proof.verdict != "not executed"]
        screen.print(
            f"Next: acmix profile {' '.join(runnable)}" if runnable else f"Next: acmix inspect {done[0].folder}"
        )
    codes = {r.exit_code for r in results}
    return 0 if codes == {0} else (2 if codes == {2} else 1)


@app.command()
def verify(artifact: Folder, as_json: Json = False) -> None:
    """Check an artifact's digests, then run the saved file against the stored eager outputs."""
    from acmix.apps import tables
    from acmix.toolkit.artifact import open_artifact
    from acmix.toolkit.reproof import reprove

    opened = open_artifact(artifact)
    with log_file(artifact, "verify") as log:
        proof = reprove(opened, log)
    if as_json:
        print_json("verify", artifact=opened.name, proof=proof)
    screen = console()
    screen.print(f"{opened.name}: digests match. {tables.verdict(proof)} {proof.reason}")
    if proof.agreements:
        screen.print(tables.agreements(proof))
    raise typer.Exit(1 if proof.verdict == "failed" else 0)


@app.command()
def inspect(
    artifact: Folder,
    every: Annotated[bool, typer.Option("--every", help="List every operator, in order.")] = False,
    as_json: Json = False,
) -> None:
    """Show what is in an artifact and where each operator runs."""
    from acmix.apps import tables
    from acmix.toolkit.artifact import open_artifact

    opened = open_artifact(artifact)
    if as_json:
        return print_json("inspect", artifact=opened.name, manifest=opened.manifest)
    screen = console()
    manifest = opened.manifest
    screen.print(tables.summary(manifest))
    if manifest.proof.agreements:
        screen.print(tables.agreements(manifest.proof))
    screen.print(tables.delegation(manifest.placement))
    outside = manifest.placement.macs_outside_share
    changes = sum(op.changes_layout for op in manifest.placement.operators)
    screen.print(f"{outside:.1%} of multiply-accumulates outside the delegate; {changes} operators only change layout")
    screen.print(tables.every_operator(manifest.placement) if every else tables.operators(manifest.placement))
    return None


@app.command()
def evaluate(
    artifact: Folder,
    data: Annotated[Path, typer.Option("--data", help="Photos with labels.csv (file,label) or a folder a class.")],
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many photos, spread evenly.")] = None,
    as_json: Json = False,
) -> None:
    """Top-1 and top-5 on labelled photos, and agreement with the eager network."""
    from acmix.apps import tables
    from acmix.calibration.photos import read_photo_folder
    from acmix.toolkit import evaluate as evaluation
    from acmix.toolkit.artifact import open_artifact
    from rich.progress import Progress

    opened = open_artifact(artifact)
    samples = read_photo_folder(data, opened.manifest.preprocess)
    samples = samples.first(limit) if limit else samples
    screen = console()
    with log_file(artifact, "evaluate") as log, Progress(console=screen, transient=True) as progress:
        task = progress.add_task(opened.name, total=len(samples))
        result = evaluation.evaluate(opened, samples, log, lambda n: progress.update(task, completed=n))
    if as_json:
        print_json("evaluate", evaluation=result)
    screen.print(tables.evaluations([result]))
    if result.eager_missing:
        screen.print(f"No agreement with eager: {result.eager_missing}")


@app.command()
def profile(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Artifacts; several are interleaved.")],
    threads: Annotated[int, typer.Option("--threads", help="Runtime threads, each pinned to a processor.")] = 1,
    runs: Annotated[int, typer.Option("--runs", min=1, help="At least so many runs.")] = 50,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="At least so many seconds of runs.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Latency on this host: load, first run, warm-up apart, raw samples kept."""
    from acmix.apps import tables
    from acmix.toolkit import profile as profiling
    from acmix.toolkit.artifact import open_artifact

    opened: list[Artifact] = [open_artifact(folder) for folder in artifacts]
    screen = console()
    with log_file(artifacts[0], "profile") as log, screen.status("starting") as status:
        request = profiling.ProfileRequest(threads, runs, seconds)
        measurement = profiling.profile(opened, request, log, status.update)
    saved = profiling.save(measurement, artifacts[0].absolute().parent)
    if as_json:
        print_json("profile", measurement=measurement, summary=profiling.summaries(measurement), saved=str(saved))
    screen.print(tables.latencies(measurement))
    screen.print(f"Raw samples: {os.path.relpath(saved)}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this installation and this machine can do, and what is missing."""
    from acmix.apps import tables
    from acmix.toolkit.doctor import examine

    checks = examine()
    if as_json:
        print_json("doctor", checks=checks)
    made = tables.table("", "what", "found", "cure")
    for check in checks:
        made.add_row("[green]✓[/]" if check.fine else "[red]✗[/]", check.what, check.found, check.cure)
    console().print(made)
    raise typer.Exit(0 if all(check.fine for check in checks) else 1)


def _usage(error: Exception) -> tuple[str, int]:
    """The sentence for what typer refuses; anything else is a defect of ours and keeps its traceback."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return f"{error.format_message()}\n`acmix --help` lists the verbs, `acmix VERB --help` their flags.", 2
    raise error


def _explain(error: BaseException) -> tuple[str, int]:
    """The sentence and the exit code for an error that reached the top."""
    if isinstance(error, AcmixError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: nothing half-written was left behind.", 2
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            f"the disk is full{f' at {error.filename}' if error.filename else ''}.\nFree some space and run it again.",
            2,
        )
    if isinstance(error, OSError):
        return f"{error.filename or 'the system'}: {error.strerror or error}.", 2
    raise error


def guard(command: Callable[[], Any]) -> None:
    """Run a program: errors become sentences and exit codes, never tracebacks."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        command()
    except (AcmixError, KeyboardInterrupt, OSError) as error:
        sentence, code = _explain(error)
    except Exception as error:
        sentence, code = _usage(error)
    else:
        return
    first, *rest = sentence.splitlines()
    print("\n".join([f"acmix: {first}", *(f"       {line}" for line in rest)]), file=sys.stderr)
    if "--json" in sys.argv:
        print_json("error", error=sentence, exit_code=code)
    sys.exit(code)


def _run() -> None:
    # Without standalone mode typer returns the code of typer.Exit instead of leaving with it.
    if code := app(standalone_mode=False):
        sys.exit(code)


def main() -> None:
    """The program `acmix`."""
    guard(_run)


def main_export() -> None:
    """The program `acmix-export`: `acmix export` by a shorter name."""
    sys.argv.insert(1, "export")
    guard(_run)
