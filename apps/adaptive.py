"""The verbs on adaptive models: export, exits, verify, inspect, evaluate, profile; and what they show."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from acmix.apps import tables
from acmix.apps.adaptive_flags import checked_ranges, refuse_export_flags, refuse_given
from acmix.apps.adaptive_tables import calibration_table, evaluation_table, latency_table, summary, way
from acmix.apps.output import console, log_file, print_json
from acmix.apps.requests import MIXED, ExportFlags, parse_min_snr, read_labels, target_requests
from acmix.calibration.aims import OperatingAim, parse_aim
from acmix.calibration.calibrate import SampleCalibrator
from acmix.calibration.curve import Baseline, check_picture, draw
from acmix.calibration.decoded import DecodedPhotos
from acmix.calibration.exits import answers, calibrate
from acmix.calibration.photos import read_photo_folder
from acmix.toolkit import catalog
from acmix.toolkit.adaptive.artifact import is_adaptive, open_adaptive, replace_policy
from acmix.toolkit.adaptive.export import AdaptiveOutcome, AdaptiveRequest, Calibrate, export_adaptive
from acmix.toolkit.adaptive.find import find_adaptive, names_adaptive
from acmix.toolkit.adaptive.observe import every_stage, logits_of, stage_costs_ms
from acmix.toolkit.adaptive.photos import SeededPhotos
from acmix.toolkit.adaptive.runner import load_adaptive, load_single
from acmix.toolkit.adaptive.spec import AdaptiveSpec
from acmix.toolkit.artifact import open_artifact
from acmix.toolkit.errors import UsageError
from acmix.toolkit.request import ExportRequest, has_random_weights

if TYPE_CHECKING:
    from acmix.toolkit.adaptive.engine import Trace
    from acmix.toolkit.adaptive.photos import Photos
    from acmix.toolkit.policy import Policy, Rule
    from acmix.toolkit.spec import Preprocess

DEFAULT_AIM = "accuracy=0.5"
TABLE = "table="

__all__ = ["evaluate", "exits", "export", "inspect", "is_adaptive", "names_adaptive", "profile", "verify"]


def adaptive_request(flags: ExportFlags, target_flags: dict[str, Any], exits: str = DEFAULT_AIM) -> AdaptiveRequest:
    """Check every flag of an adaptive export before any work."""
    targets = target_requests(flags.target, target_flags)
    recipe = catalog.load_recipe(flags.precision)
    if recipe.name == MIXED:
        raise UsageError("--precision mixed judges one network by its own accuracy; stages have none.\nTake w8a8.")
    refuse_export_flags(flags, recipe)
    for request in targets:
        catalog.require_packages(request.name)
    if flags.inputs:
        raise UsageError("--input is for single models; in a cascade write NAME@SIZE.")
    if flags.preprocess not in (None, "imagenet"):
        raise UsageError("--preprocess of an adaptive model is 'imagenet' or nothing: each stage has its own size.")
    if flags.photos is None:
        raise UsageError(f"{flags.model} is adaptive: its thresholds are chosen on photos.\nAdd --photos FOLDER.")
    aim = None if exits.startswith(TABLE) else parse_aim(exits)
    spec = find_adaptive(flags.model, flags.preprocess == "imagenet")
    aim = aim or published_aim(exits, spec, flags.weights)
    base = ExportRequest(
        source=next(iter(spec.networks.values())),
        recipe=recipe,
        targets=targets,
        out=flags.out,
        weights=flags.weights,
        seed=flags.seed,
        labels=read_labels(flags.labels) if flags.labels else (),
        overwrite=flags.overwrite,
        snr_db_overrides=_min_snr(flags.min_snr),
        require_full_delegation=flags.require_full_delegation,
    )
    photos = decoded_photos(flags.photos, spec.preprocess)
    choose = chooser(aim, spec.rule, flags.seed, spec.stage_names)
    remarks = checked_ranges(flags, spec.preprocess) if recipe.needs_ranges else ()
    return AdaptiveRequest(spec, base, photos, choose, partial(SampleCalibrator, remarks=remarks), remarks)


def _min_snr(text: str | None) -> dict[str, float]:
    wanted = parse_min_snr(text) if text else {}
    if set(wanted) - {""}:
        raise UsageError(f"--min-snr {text}: the networks have different outputs; give one number for all of them.")
    return wanted


def published_aim(text: str, spec: AdaptiveSpec, weights: str | None) -> OperatingAim:
    """`table=ROW`: the thresholds of a row, from 1, of the table that the checkpoint carries."""
    if spec.threshold_table is None or weights in (None, "random"):
        raise UsageError(f"--exits {text} reads a checkpoint that carries thresholds, GFNet's.\nAdd --weights FILE.")
    rows = spec.threshold_table(str(weights))
    number = text.removeprefix(TABLE)
    if not (number.isascii() and number.isdecimal() and 1 <= int(number) <= len(rows)):
        raise UsageError(f"--exits {text}: the checkpoint has the rows 1 to {len(rows)}.")
    return OperatingAim("thresholds", rows[int(number) - 1], text)


def decoded_photos(folder: Path, preprocess: Preprocess) -> DecodedPhotos:
    """The photos of a folder, with their labels if it has any."""
    return DecodedPhotos(read_photo_folder(folder, preprocess))


def chooser(aim: OperatingAim, rule: Rule, seed: int, stages: Sequence[str]) -> Calibrate:
    """How an export chooses thresholds: by measured stage times where there are any, by MACs otherwise."""

    def choose(traces: list[Trace], photos: Photos, exit_macs: tuple[int, ...], timed: bool) -> Policy:
        each = [total - before for total, before in zip(exit_macs, (0, *exit_macs), strict=False)]
        costs = stage_costs_ms(traces) if timed else tuple(macs / 1e6 for macs in each)
        found = answers(logits_of(traces), photos.labels, rule, costs, "ms" if timed else "MMAC")
        return calibrate(found, aim, rule, stages, (photos.name, photos.digest), seed)

    return choose


def export(
    flags: ExportFlags, target_flags: dict[str, Any], exits: str | None, shared_weights: bool, as_json: bool
) -> int:
    """`acmix export` of an adaptive model: the exit code."""
    from acmix.apps.live import StageLines

    if not names_adaptive(flags.model):
        flag = "--shared-weights" if exits is None else "--exits"
        raise UsageError(f"{flag} belongs to adaptive models; {flags.model} is none.\nLeave it out.")
    request = replace(adaptive_request(flags, target_flags, exits or DEFAULT_AIM), shared_weights=shared_weights)
    screen = console()
    if any(has_random_weights(replace(request.base, source=s)) for s in request.spec.networks.values()):
        screen.print("RANDOM WEIGHTS: exits and thresholds say nothing about photos.", style="bold red")
    for remark in request.remarks:
        screen.print(f"--photos: {remark}", style="yellow")
    with StageLines(screen) as lines:
        results = export_adaptive(request, lines.progress)
    if as_json:
        print_json("export", adaptive=True, outcomes=[_outcome_record(r) for r in results])
    for result in results:
        if result.artifact is not None:
            screen.print(summary(result.artifact))
            screen.print(way(result.artifact.manifest.proof))
        if result.error:
            screen.print(f"{result.target}: {result.error}", style="red")
    done = [str(r.artifact.folder) for r in results if r.artifact is not None]
    if done:
        screen.print(f"Wrote {', '.join(done)}\nNext: acmix profile {done[0]} --photos FOLDER")
    codes = {r.exit_code for r in results}
    return 0 if codes == {0} else (2 if codes == {2} else 1)


def _outcome_record(result: AdaptiveOutcome) -> dict[str, Any]:
    artifact = result.artifact
    return {
        "target": result.target,
        "artifact": str(artifact.folder) if artifact else None,
        "manifest": artifact.manifest if artifact else None,
        "policy": artifact.policy if artifact else None,
        "error": result.error,
        "exit_code": result.exit_code,
    }


def exits(folder: Path, photos: Path, aim: str, picture: Path | None, baselines: Sequence[Path], as_json: bool) -> None:
    """Choose the thresholds of an adaptive artifact anew, on photos, at this host's speed; draw the curve."""
    wanted = parse_aim(aim)
    if picture is None:
        refuse_given({"--baseline": tuple(baselines) or None}, "without --picture there is nothing to draw it on")
    else:
        check_picture(picture)
    artifact = open_adaptive(folder)
    decoded = decoded_photos(photos, artifact.manifest.first_preprocess)
    if baselines and decoded.labels is None:
        raise UsageError(
            f"--baseline is drawn at its accuracy, and {photos} has no labels.\nAdd labels, or leave it out."
        )
    stages = [stage.name for stage in artifact.manifest.stages]
    with load_adaptive(artifact) as loaded:
        # The first runs pay for the caches: not counted.
        every_stage(loaded, SeededPhotos(2, artifact.manifest.seed))
        traces = every_stage(loaded, decoded)
        timed = not loaded.reference
    choose = chooser(wanted, artifact.manifest.rule, artifact.manifest.seed, stages)
    policy = choose(traces, decoded, artifact.manifest.exit_macs, timed)
    if picture is not None:
        draw(picture, policy, baselines_of(baselines, decoded, timed))
    replace_policy(artifact, policy)
    if as_json:
        print_json("exits", artifact=artifact.name, policy=policy)
    screen = console()
    screen.print(calibration_table(policy))
    screen.print(f"Wrote {folder / 'policy.json'}" + (f" and {picture}" if picture else ""))


def baselines_of(folders: Sequence[Path], photos: DecodedPhotos, timed: bool) -> list[Baseline]:
    """Single models on labelled photos, at what the curve's costs are: times, or multiply-accumulates."""
    from acmix.toolkit.adaptive.measure import Contender, measure

    labels = photos.labels or ()
    opened = [open_artifact(folder) for folder in folders]
    with ExitStack() as stack:
        loaded = [stack.enter_context(load_single(one)) for one in opened]
        macs = [one.manifest.model.macs for one in opened]
        if timed and opened:
            found = measure([Contender(one, (count,)) for one, count in zip(loaded, macs, strict=True)], photos)
            return [Baseline(one.artifact, one.mean_ms, one.accuracy(labels)) for one in found.timings]
        said = [[trace.label for trace in every_stage(one, photos)] for one in loaded]
    rows = zip(opened, macs, said, strict=True)
    return [Baseline(one.name, count / 1e6, float(np.mean(np.equal(said, labels)))) for one, count, said in rows]


def verify(folder: Path, as_json: bool) -> int:
    """`acmix verify` of an adaptive artifact: the exit code."""
    from acmix.toolkit.adaptive.reference import reprove_adaptive

    artifact = open_adaptive(folder)
    with log_file(folder, "verify") as log:
        proof = reprove_adaptive(artifact, log)
    if as_json:
        print_json("verify", artifact=artifact.name, proof=proof)
    screen = console()
    screen.print(f"{artifact.name}: digests match, the policy fits the stages.")
    made = tables.table("network", "against eager", "")
    for name, one in proof.networks.items():
        made.add_row(name, tables.verdict(one), one.reason)
    screen.print(made)
    screen.print(way(proof.way))
    return 1 if proof.failed else 0


def inspect(folder: Path, as_json: bool) -> None:
    """`acmix inspect` of an adaptive artifact."""
    artifact = open_adaptive(folder)
    if as_json:
        return print_json("inspect", artifact=artifact.name, manifest=artifact.manifest, policy=artifact.policy)
    screen = console()
    screen.print(summary(artifact))
    screen.print(way(artifact.manifest.proof))
    screen.print(
        f"Each network is an artifact of its own: acmix inspect {folder / artifact.manifest.networks[0].folder}"
    )
    return None


def evaluate(folder: Path, data: Path, limit: int | None, model: str | None, as_json: bool) -> None:
    """`acmix evaluate` of an adaptive artifact; model: where its networks come from, when they are the user's own."""
    from acmix.toolkit.adaptive.evaluate import evaluate_adaptive
    from acmix.toolkit.adaptive.rebuild import rebuild_adaptive

    artifact = open_adaptive(folder)
    found = read_photo_folder(data, artifact.manifest.first_preprocess)
    photos = DecodedPhotos(found.first(limit) if limit else found)
    eager, missing = rebuild_adaptive(artifact, model)
    result = evaluate_adaptive(artifact, photos, eager, missing)
    if as_json:
        print_json("evaluate", evaluation=result)
    screen = console()
    screen.print(evaluation_table(result, [stage.name for stage in artifact.manifest.stages]))
    screen.print(way(result.way) if result.way else f"No agreement with eager: {result.eager_missing}")


def profile(folders: Sequence[Path], photos: Path | None, threads: int, as_json: bool) -> None:
    """`acmix profile` where an artifact is adaptive: over photos, single models beside it."""
    from acmix.toolkit.adaptive.measure import Contender, measure, photo_summaries

    if photos is None:
        raise UsageError("how long an adaptive model takes depends on the photos.\nAdd --photos FOLDER.")
    with ExitStack() as stack:
        contenders = []
        preprocess = None
        for folder in folders:
            if is_adaptive(folder):
                adaptive = open_adaptive(folder)
                preprocess = preprocess or adaptive.manifest.first_preprocess
                loaded = stack.enter_context(load_adaptive(adaptive, threads))
                contenders.append(Contender(loaded, adaptive.manifest.exit_macs))
            else:
                single = open_artifact(folder)
                loaded = stack.enter_context(load_single(single, threads))
                contenders.append(Contender(loaded, (single.manifest.model.macs,)))
        decoded = DecodedPhotos(read_photo_folder(photos, preprocess))
        measurement = measure(contenders, decoded)
    if as_json:
        print_json("profile", measurement=measurement, summary=photo_summaries(measurement))
    console().print(latency_table(measurement, decoded.labels))
