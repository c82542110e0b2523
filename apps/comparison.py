"""`acmix compare`: two of eager and saved files, outputs and modules, as tables or JSON."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from acmix.apps import tables
from acmix.apps.output import console, log_file, print_json
from acmix.toolkit.artifact import Artifact, open_artifact
from acmix.toolkit.compare import CompareRequest, Comparison, ModuleAgreement, compare

if TYPE_CHECKING:
    from rich.table import Table

    from acmix.toolkit.samples import Samples

PHOTOS = 32


def show(a: Path, b: Path | None, layers: bool, model: str | None, photos: Path | None, as_json: bool) -> bool:
    """Compare and print; whether the two agree. Raises UsageError, GateError as acmix.toolkit.compare does."""
    opened = open_artifact(a)
    other = open_artifact(b) if b else None
    request = CompareRequest(opened, other, layers, model, _photos(opened, photos))
    screen = console()
    with (
        log_file(a, "compare") as log,
        tempfile.TemporaryDirectory(prefix="acmix-") as scratch,
        screen.status(f"comparing {opened.name} with {other.name if other else 'eager'}"),
    ):
        result = compare(request, Path(scratch), log)
    if as_json:
        print_json("compare", comparison=result, agrees=result.agrees)
    sides = zip((result.a, result.b), result.executed_by, strict=True)
    screen.print(" against ".join(f"{name} (reference)" if by == "reference" else name for name, by in sides))
    if result.modules:
        screen.print(_modules(result.modules))
    screen.print(_outputs(result))
    for remark in result.remarks:
        screen.print(f"remark: {remark}")
    if layers:
        screen.print(conclusion(result))
    return result.agrees


def _photos(artifact: Artifact, folder: Path | None) -> Samples | None:
    if folder is None:
        return None
    from acmix.calibration.photos import read_photo_folder

    return read_photo_folder(folder, artifact.manifest.preprocess, artifact.manifest.further_preprocess).first(PHOTOS)


def conclusion(result: Comparison) -> str:
    """One sentence: the first module where the two part, or that there is none."""
    if result.first is None:
        below = [m for m in result.modules if m.snr_db is not None and m.snr_db < result.asked_db]
        if below:
            return (
                f"No module parts by a jump; below {result.asked_db:.0f} dB from {_name(below[0])} on, "
                "where rounding has gathered."
            )
        return f"No module parts: all of {len(result.modules)} keep {result.asked_db:.0f} dB."
    first = result.first
    together = f", computed together with {', '.join(first.covers)}" if first.covers else ""
    return (
        f"They part at {_name(first)} ({first.operator}, {first.line}){together}: SNR {_db(first.snr_db)} dB, "
        f"of its inputs {_db(first.inputs_snr_db)} dB, on {first.worst_sample!r}."
    )


def _name(module: ModuleAgreement) -> str:
    return module.module or f"{module.kind} itself"


def _db(ratio: float | None) -> str:
    return tables.snr(ratio)


def _modules(modules: tuple[ModuleAgreement, ...]) -> Table:
    made = tables.table("module", "operator", "line", ">SNR dB", ">inputs dB", "worst on", "with", "")
    for one in modules:
        made.add_row(
            _name(one),
            one.operator,
            one.line,
            _db(one.snr_db),
            _db(one.inputs_snr_db),
            one.worst_sample,
            ", ".join(name or "the network itself" for name in one.covers),
            "parts" if one.parts else "",
        )
    return made


def _outputs(result: Comparison) -> Table:
    made = tables.table(
        "output", ">samples", ">worst SNR dB", ">asked", ">largest difference", ">cosine", ">same top-1", ""
    )
    for one in result.outputs:
        made.add_row(
            one.output,
            str(one.samples),
            _db(one.snr_db),
            f"{one.asked_db:.0f}",
            f"{one.max_abs:.3g}",
            "-" if one.cosine is None else f"{one.cosine:.6f}",
            "-" if one.top1_agreement is None else f"{one.top1_agreement:.0%}",
            "agrees" if one.passed else "differs",
        )
    return made
