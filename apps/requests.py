"""From the words of a command line to a checked request."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from acmix.toolkit import catalog
from acmix.toolkit.errors import UsageError
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.request import ExportRequest, Outcome, TargetRequest
from acmix.toolkit.source import ModelSource, find_model, parse_input

if TYPE_CHECKING:
    from acmix.calibration.calibrate import SampleCalibrator
    from acmix.calibration.photos import PhotoFolder
    from acmix.toolkit.quantized import Calibrator
    from acmix.toolkit.samples import Samples

PHOTOS_IN_PROOF = 32
MIXED = "mixed"
MAX_DROP = 1.0
"""Points of top-1 that mixed may lose."""
DATA_COUNT = 500
"""Photos that judge it, at most: they stay in memory."""


@dataclass(frozen=True)
class ExportFlags:
    """The flags of `acmix export` as they were typed, but for the targets' own."""

    model: str = catalog.DEFAULT_MODEL
    target: str = "all"
    precision: str = "float32"
    weights: str | None = None
    inputs: tuple[str, ...] = ()
    out: Path = Path("build")
    overwrite: bool = False
    photos: Path | None = None
    preprocess: str | None = None
    labels: Path | None = None
    seed: int = 0
    min_snr: str | None = None
    require_full_delegation: bool = False
    calibration: str | None = None
    calibration_count: int | None = None
    accept_calibration: bool = False
    max_drop: float | None = None
    data: Path | None = None
    data_count: int | None = None


def export_request(flags: ExportFlags, target_flags: dict[str, Any]) -> ExportRequest:
    """Check every flag before any work; raises UsageError for the first that is wrong."""
    targets = target_requests(flags.target, target_flags)
    recipe = catalog.load_recipe(flags.precision)
    min_snr = parse_min_snr(flags.min_snr) if flags.min_snr else {}
    labels = read_labels(flags.labels) if flags.labels else ()
    for request in targets:
        catalog.require_packages(request.name)
    source = model_source(flags)
    if any(getattr(t.options, "image_input", False) for t in targets) and source.spec.preprocess is None:
        raise UsageError("--image-input bakes the preprocessing in, and this model has none.\nAdd --preprocess.")
    samples = None
    if flags.photos is not None:
        samples = _photos("--photos", flags.photos, source).first(PHOTOS_IN_PROOF)
    return ExportRequest(
        source,
        recipe,
        targets,
        flags.out,
        flags.weights,
        flags.seed,
        labels,
        samples,
        flags.overwrite,
        min_snr,
        flags.require_full_delegation,
        _calibrator(flags, recipe, source, targets),
    )


def _calibrator(
    flags: ExportFlags, recipe: Recipe, source: ModelSource, targets: tuple[TargetRequest, ...]
) -> Calibrator | None:
    """Checked calibration samples, where the recipe needs them; raises UsageError without, and for unfit ones."""
    _refuse_data(flags, recipe)
    if has_pairs(source):
        from acmix.toolkit.pairs import check_request

        check_request(recipe, flags.calibration is not None)
        _refuse_calibration(flags, "this program brings scales and zero points of its own", "export the float network")
        return None
    if not recipe.needs_ranges:
        _refuse_calibration(flags, f"{recipe.name!r} has none", "ask for --precision w8a8")
        return None
    made = sample_calibrator(flags, recipe, source)
    if recipe.name != MIXED:
        return made
    from acmix.calibration.ladder import MixedCalibrator
    from acmix.calibration.rung_latency import RungTimer

    data = held_out(flags, source, made.samples, DATA_COUNT)
    max_drop = MAX_DROP if flags.max_drop is None else flags.max_drop
    timers = [RungTimer(target, source.spec, made.samples) for target in targets]
    timer = next((one for one in timers if not one.obstacle), timers[0])
    return MixedCalibrator(made.samples, data, max_drop, made.remarks, timer=timer)


def _refuse_calibration(flags: ExportFlags, reason: str, otherwise: str) -> None:
    """Raise UsageError for a flag of the calibration where nothing is calibrated."""
    given = {
        "--calibration": flags.calibration is not None,
        "--calibration-count": flags.calibration_count is not None,
        "--accept-calibration": flags.accept_calibration,
    }
    for flag in (flag for flag, typed in given.items() if typed):
        raise UsageError(
            f"{flag} is for finding the ranges of integer activations, and {reason}.\nLeave it out, or {otherwise}."
        )


def has_pairs(source: ModelSource) -> bool:
    """Whether the model is a saved program that its author quantized: then its ranges are its own."""
    if source.kind != "program":
        return False
    from acmix.toolkit import pairs
    from acmix.toolkit.program import load_program

    return pairs.has_pairs(load_program(Path(source.reference)))


def sample_calibrator(flags: ExportFlags, recipe: Recipe, source: ModelSource) -> SampleCalibrator:
    """The checked samples of --calibration; raises UsageError without, and for unfit ones."""
    if flags.calibration is None:
        raise UsageError(
            f"--precision {recipe.name} needs calibration: photos like those that the model will see.\n"
            "Give --calibration FOLDER (or .npz, .npy, file.py:function), or say --calibration builtin for the few "
            "photos that scikit-image and scikit-learn carry."
        )
    from acmix.calibration.calibrate import SampleCalibrator
    from acmix.calibration.checks import check_samples, require_fit
    from acmix.calibration.sources import DEFAULT_COUNT, read_calibration

    spec = source.spec
    count = DEFAULT_COUNT if flags.calibration_count is None else flags.calibration_count
    samples = read_calibration(flags.calibration, spec.inputs, spec.preprocess, count, flags.seed)
    findings = check_samples(samples, spec.inputs, spec.preprocess)
    require_fit(findings, flags.calibration, flags.accept_calibration)
    return SampleCalibrator(samples, tuple(f.sentence for f in findings))


def held_out(flags: ExportFlags, source: ModelSource, samples: Samples, count: int) -> PhotoFolder:
    """The photos of --data, at most --data-count; raises UsageError for one that calibrates."""
    from acmix.calibration.ladder import require_disjoint

    assert flags.data is not None
    data = _photos("--data", flags.data, source)
    data = data.first(count if flags.data_count is None else flags.data_count)
    require_disjoint(samples, data)
    return data


def _photos(flag: str, folder: Path, source: ModelSource) -> PhotoFolder:
    from acmix.calibration.photos import read_photo_folder
    from acmix.calibration.sources import for_photos

    spec = source.spec
    preprocess = for_photos(f"{flag} {folder}", spec.inputs, spec.preprocess, spec.further_preprocess)
    return read_photo_folder(folder, preprocess, spec.further_preprocess)


def _refuse_data(flags: ExportFlags, recipe: Recipe) -> None:
    """Raise UsageError for the flags of mixed without it, for mixed without photos to judge on, for a wrong budget."""
    given = {"--max-drop": flags.max_drop, "--data": flags.data, "--data-count": flags.data_count}
    typed = [flag for flag, value in given.items() if value is not None]
    if recipe.name != MIXED and typed:
        raise UsageError(
            f"{typed[0]} belongs to --precision mixed, and asked for was {recipe.name!r}.\n"
            "Leave it out, or ask for --precision mixed; acmix evaluate measures a finished file."
        )
    if recipe.name == MIXED and flags.data is None:
        raise UsageError(
            "--precision mixed needs photos to judge its repairs on, others than those of --calibration.\n"
            "Give --data FOLDER: with labels.csv or a folder a class, top-1 is held; without, agreement with eager."
        )
    if flags.max_drop is not None and not 0.0 <= flags.max_drop <= 100.0:
        raise UsageError(f"--max-drop {flags.max_drop:g} is no number of points.\nGive 0 to 100; the default is 1.")


def model_source(flags: ExportFlags) -> ModelSource:
    """What --model, --input and --preprocess name."""
    specs = tuple(parse_input(text, i) for i, text in enumerate(flags.inputs))
    source = find_model(flags.model, specs)
    if flags.preprocess is None:
        return source
    from acmix.calibration.preprocessing import read_preprocess

    spec = replace(source.spec, preprocess=read_preprocess(flags.preprocess, source.spec.inputs))
    return replace(source, spec=spec)


def target_requests(text: str, flags: dict[str, Any]) -> tuple[TargetRequest, ...]:
    """The targets of `--target a,b` or `all`, each with the flags that are its own.

    Raises UsageError for an unknown target, a flag that none of them has, or a value that is not allowed.
    """
    known = catalog.stems("targets")
    names = known if text == "all" else tuple(dict.fromkeys(n.strip() for n in text.split(",") if n.strip()))
    if not names:
        raise UsageError(f"--target names nothing.\nKnown are {', '.join(known)}, or all.")
    for name in names:
        catalog.check_target(name)
    fields = {name: catalog.load_target(name).options.__dataclass_fields__ for name in known}
    for flag in flags:
        owners = [name for name in known if flag in fields[name]]
        if not set(owners) & set(names):
            raise UsageError(
                f"--{flag.replace('_', '-')} belongs to {' and '.join(owners)}; asked for was {', '.join(names)}.\n"
                f"Leave it out, or add --target {owners[0]}."
            )
    return tuple(
        TargetRequest(name, _options(name, {k: v for k, v in flags.items() if k in fields[name]})) for name in names
    )


def _options(name: str, flags: dict[str, Any]) -> Any:
    values = {key: value.lower() if isinstance(value, str) else value for key, value in flags.items()}
    try:
        return msgspec.convert(values, catalog.load_target(name).options)
    except msgspec.ValidationError as error:
        schema = msgspec.json.schema(catalog.load_target(name).options)
        properties = next(iter(schema.get("$defs", {"": schema}).values()))["properties"]
        for key, value in values.items():
            allowed = properties[key].get("enum")
            if allowed and value not in allowed:
                raise UsageError(
                    f"--{key.replace('_', '-')} {value!r} is not known to {name}.\nIt takes {', '.join(allowed)}."
                ) from error
        raise UsageError(f"target {name!r}: {error}") from error


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names, one a line, in the order of the logits."""
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--labels {path} cannot be read: {error}\nGive a text file, one class name a line."
        ) from error
    if not names or not all(names):
        raise UsageError(f"--labels {path} has an empty line or none at all.\nGive one class name a line.")
    return names


def parse_min_snr(text: str) -> dict[str, float]:
    """`70` or `logits=70,features=40` as dB by output name; '' stands for every output."""
    wanted = {}
    for part in text.split(","):
        name, _, value = part.rpartition("=")
        try:
            wanted[name.strip()] = float(value)
        except ValueError:
            wanted[name.strip()] = math.nan
        if not math.isfinite(wanted[name.strip()]):
            raise UsageError(f"--min-snr {part!r} is no number of dB.\nWrite 70, or logits=70,features=40.")
    return wanted


def outcome_record(result: Outcome) -> dict[str, Any]:
    """What `acmix export --json` says of one target."""
    artifact = result.artifact
    return {
        "target": result.target,
        "artifact": str(artifact.folder) if artifact else None,
        "model_file": str(artifact.model_file) if artifact else None,
        "verdict": artifact.manifest.proof.verdict if artifact else None,
        "agreements": artifact.manifest.proof.agreements if artifact else (),
        "random_weights": artifact.manifest.model.weights.is_random if artifact else None,
        "operators": len(artifact.manifest.placement.operators) if artifact else None,
        "fallbacks": len(artifact.manifest.placement.fallbacks) if artifact else None,
        "partitions": artifact.manifest.placement.partitions if artifact else None,
        "timings_s": artifact.manifest.timings_s if artifact else {},
        "error": result.error,
        "exit_code": result.exit_code,
    }
