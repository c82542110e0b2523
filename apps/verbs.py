"""The verbs of acmix but for export: thin, over the library. Heavy imports wait until a verb needs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from acmix.apps.output import console, log_file, print_json
from acmix.toolkit import catalog
from acmix.toolkit.errors import UsageError, did_you_mean

Folder = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A folder that acmix-export wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
OwnNetwork = Annotated[str | None, typer.Option("--model", help="Where your own network comes from: file.py:make.")]


def list_room(
    what: Annotated[str, typer.Argument(metavar="models|targets|recipes|rewrites", help="What to list.")],
    as_json: Json = False,
) -> None:
    """List models, targets, recipes or rewrites."""
    listings: dict[str, Callable[[bool], None]] = {
        "models": _list_models,
        "targets": _list_targets,
        "recipes": _list_recipes,
        "rewrites": _list_rewrites,
    }
    if what not in listings:
        raise UsageError(
            f"there is no list of {what!r}.{did_you_mean(what, listings)}\nacmix lists {', '.join(listings)}."
        )
    listings[what](as_json)


def _list_models(as_json: bool) -> None:
    from acmix.toolkit.adaptive.find import adaptive_names

    cards, adaptive = catalog.model_cards(), sorted(adaptive_names())
    if as_json:
        return print_json("list", models=cards, adaptive=adaptive)
    from acmix.apps import tables

    console().print(tables.models(cards))
    console().print(f"Adaptive: {', '.join(adaptive)}, and cascade:NAME@SIZE,NAME@SIZE of any classifiers.")
    return None


def _list_targets(as_json: bool) -> None:
    rows = [(name, catalog.load_target(name), catalog.missing_package(name)) for name in catalog.stems("targets")]
    if as_json:
        return print_json("list", targets=[{"name": n, "suffix": t.suffix, "missing": m} for n, t, m in rows])
    from acmix.apps import tables

    made = tables.table("target", "file", "options", "installed")
    for name, target, missing in rows:
        flags = " ".join(f"--{key.replace('_', '-')}" for key in target.options.__dataclass_fields__)
        made.add_row(name, f"model{target.suffix}", flags, f"no: pip install 'acmix[{name}]'" if missing else "yes")
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


def _list_rewrites(as_json: bool) -> None:
    cards = catalog.rewrite_cards()
    if as_json:
        return print_json("list", rewrites=cards)
    from acmix.apps import tables

    made = tables.table("rewrite", "for", "what it does")
    for card in cards:
        made.add_row(card.name, ", ".join(card.targets) or "every target", card.summary)
    console().print(made)
    return None


def verify(artifact: Folder, as_json: Json = False) -> None:
    """Check an artifact's digests, then run the saved file against the stored eager outputs."""
    from acmix.apps import tables
    from acmix.toolkit.artifact import open_artifact
    from acmix.toolkit.reproof import reprove

    if is_adaptive(artifact):
        from acmix.apps import adaptive

        raise typer.Exit(adaptive.verify(artifact, as_json))
    opened = open_artifact(artifact)
    with log_file(artifact, "verify") as log:
        proof = reprove(opened, log)
    if as_json:
        print_json("verify", artifact=opened.name, proof=proof)
    screen = console()
    screen.print(f"{opened.name}: digests match.", tables.verdict(proof), proof.reason)
    if proof.agreements:
        screen.print(tables.agreements(proof))
    raise typer.Exit(1 if proof.verdict == "failed" else 0)


def inspect(
    artifact: Annotated[
        Path | None, typer.Argument(metavar="[ARTIFACT]", help="A folder that acmix-export wrote.")
    ] = None,
    every: Annotated[bool, typer.Option("--every", help="List every operator, in order.")] = False,
    model: Annotated[str | None, typer.Option("--model", help="Before any export: a model, as acmix-export.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="With --model: the one target to look at.")] = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", help="With --model: the input, 1x3x224x224.")] = None,
    as_json: Json = False,
) -> None:
    """Show what is in an artifact and where each operator runs; or, with --model, what an export would give."""
    from acmix.apps import forecasts, tables
    from acmix.toolkit.artifact import open_artifact

    # A flag that belongs to --model is refused there beside an artifact, not passed over.
    if artifact is None or model is not None or target is not None or inputs:
        return forecasts.show(artifact, model, target, tuple(inputs or ()), every, as_json)
    if is_adaptive(artifact):
        from acmix.apps import adaptive, adaptive_flags

        adaptive_flags.refuse_given({"--every": every}, adaptive_flags.EVERY)
        return adaptive.inspect(artifact, as_json)
    opened = open_artifact(artifact)
    if as_json:
        return print_json("inspect", artifact=opened.name, manifest=opened.manifest)
    screen = console()
    manifest = opened.manifest
    screen.print(tables.summary(manifest))
    if manifest.proof.agreements:
        screen.print(tables.agreements(manifest.proof))
    screen.print(tables.delegation(manifest.placement))
    changes = sum(op.changes_layout for op in manifest.placement.operators)
    screen.print(f"{tables.outside(manifest.placement)}{changes} operators only change layout")
    screen.print(tables.every_operator(manifest.placement) if every else tables.operators(manifest.placement))
    return None


def evaluate(
    artifacts: Annotated[
        list[Path], typer.Argument(metavar="ARTIFACT...", help="Folders that acmix-export wrote, of one network.")
    ],
    data: Annotated[Path, typer.Option("--data", help="Photos with labels.csv (file,label) or a folder a class.")],
    model: OwnNetwork = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many photos, spread evenly.")] = None,
    as_json: Json = False,
) -> None:
    """Top-1 and top-5 on labelled photos; agreement with the eager network, and of several files with one another."""
    if any(map(is_adaptive, artifacts)):
        from acmix.apps import adaptive

        if len(artifacts) > 1:
            raise UsageError("an adaptive artifact is evaluated by itself.\nGive one folder, or single networks only.")
        return adaptive.evaluate(artifacts[0], data, limit, model, as_json)
    from acmix.apps import evaluation

    return evaluation.show(artifacts, data, limit, model, as_json)


def exits(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A folder of an adaptive model.")],
    photos: Annotated[Path, typer.Option("--photos", help="Photos to choose the thresholds on, labelled or not.")],
    aim: Annotated[
        str,
        typer.Option(
            "--exits", help="accuracy=POINTS, surely=POINTS, cost=MS, rates=0.6,0.4, geometric=ROW, thresholds=0.8"
        ),
    ] = "accuracy=0.5",
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw accuracy against mean cost: .png, .svg.")
    ] = None,
    baseline: Annotated[
        list[Path] | None, typer.Option("--baseline", help="With --picture: artifacts of single models to draw.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose the exit thresholds of an adaptive artifact anew, on photos and at this host's speed."""
    from acmix.apps import adaptive

    adaptive.exits(artifact, photos, aim, picture, tuple(baseline or ()), as_json)


def is_adaptive(folder: Path) -> bool:
    """Whether an artifact has stages and a policy, told without importing what would read them."""
    from acmix.toolkit.adaptive.artifact import is_adaptive

    return is_adaptive(folder)


def compare(
    a: Folder,
    b: Annotated[Path | None, typer.Argument(metavar="[ARTIFACT]", help="The other side; without it: eager.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Find the first module where the two part.")] = False,
    model: OwnNetwork = None,
    photos: Annotated[Path | None, typer.Option("--photos", help="Compare the outputs on these photos too.")] = None,
    as_json: Json = False,
) -> None:
    """Compare an artifact with eager or with another one; with --layers, module by module."""
    from acmix.apps import comparison

    raise typer.Exit(0 if comparison.show(a, b, layers, model, photos, as_json) else 1)


def doctor(as_json: Json = False) -> None:
    """Say what this installation and this machine can do, and what is missing."""
    from acmix.apps import tables
    from acmix.toolkit.doctor import examine

    checks = examine()
    if as_json:
        print_json("doctor", checks=checks)
    made = tables.table("", "what", "found", "cure")
    for check in checks:
        made.add_row(tables.mark(check.fine), check.what, check.found, check.cure)
    console().print(made)
    raise typer.Exit(0 if all(check.fine for check in checks) else 1)
