"""Four networks as int8 on every target: against eager, and against the simulation of their own integers.

python tests/benchmarks/int8_zoo.py --data PHOTOS [--model lsnet_t,...] [--target onnx,...] [--precision w8a8,mixed]
    [--count 16] [--judges 100] [--max-drop 5] [--json FILE] [--out FOLDER]

Weights by the rule of coreml_zoo.py, the same for all: the network's own initialisation under seed 0, and every
residual branch ends at a quarter of its size. Photos whose class index mod 20 is 0 calibrate, the first `--count` of
them spread evenly. A network that some target fails as w8a8 is exported to it as mixed too: --judges other photos
judge, by their agreement with the float network, of which --max-drop points may be lost. Columns: the worst of eight
photos against eager and what was asked; the worst of these photos and the seven probes against the simulation, and
what was asked. `equal`: every output to the last bit. What FILE already holds is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from coreml_zoo import network_of
from int8 import split
from rich.console import Console
from rich.table import Table

from acmix.apps.requests import ExportFlags, export_request
from acmix.apps.tables import snr
from acmix.calibration.ladder import MixedCalibrator
from acmix.toolkit import pipeline
from acmix.toolkit.capture import Network
from acmix.toolkit.errors import AcmixError
from acmix.toolkit.request import Outcome
from acmix.toolkit.verify import Agreement

MODELS = ("mobilenet_v3_large_100", "lsnet_t", "condensenetv2_a", "acmix_resnet26")
BAR_DB = 30.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One file, by its worst output. *_db: None where there is no signal; error: why there is no file."""

    model: str
    target: str
    precision: str
    eager_db: float | None = None
    eager_asked_db: float | None = None
    simulation_db: float | None = None
    simulation_asked_db: float | None = None
    verdict: str = ""
    repairs: tuple[str, ...] = ()
    error: str = ""

    @property
    def passes(self) -> bool:
        """Whether it passed its gates, and keeps 30 dB of its own simulation."""
        return self.verdict == "passed" and self.simulation_db is not None and self.simulation_db >= BAR_DB


def exported(network: Network, flags: ExportFlags) -> list[Row]:
    """One precision of one network to some targets, its weights as they are."""
    request = export_request(flags, {})
    if isinstance(request.calibrator, MixedCalibrator):  # no latencies of rungs: each costs a conversion
        request = dataclasses.replace(request, calibrator=dataclasses.replace(request.calibrator, timer=None))
    spec = dataclasses.replace(request.source.spec, build=lambda: network.module, weights=None)
    source = dataclasses.replace(request.source, kind="module", spec=spec)
    try:
        outcomes = pipeline.export(dataclasses.replace(request, source=source), lambda target, stage, seconds: None)
    except AcmixError as error:  # of the ladder: no rung within the budget
        return [Row(spec.name, t.name, flags.precision, error=str(error)) for t in request.targets]
    return [row_of(spec.name, flags.precision, outcome) for outcome in outcomes]


def row_of(model: str, precision: str, outcome: Outcome) -> Row:
    """What the manifest says of one file."""
    if outcome.artifact is None:
        return Row(model, outcome.target, precision, error=outcome.error)
    manifest = outcome.artifact.manifest
    eager, own = worst(manifest.proof.agreements), worst(manifest.proof.conversion)
    repairs = manifest.quantization.repairs if manifest.quantization else ()
    figures = (eager.snr_db, eager.asked_db, own.snr_db, own.asked_db)
    return Row(model, outcome.target, precision, *figures, manifest.proof.verdict, repairs)


def worst(agreements: Sequence[Agreement]) -> Agreement:
    """The output with the least signal-to-noise ratio."""
    return min(agreements, key=lambda one: float("inf") if one.snr_db is None else one.snr_db)


def table_of(rows: Sequence[Row]) -> Table:
    """Every file; a cross where it fails a gate or the bar."""
    made = Table(
        "model", "target", "precision", "eager dB", "asked", "simulation dB", "asked", "verdict", "bar", box=None
    )
    for row in rows:
        asked = ["-" if v is None else f"{v:.0f}" for v in (row.eager_asked_db, row.simulation_asked_db)]
        cells = [snr(row.eager_db), asked[0], snr(row.simulation_db), asked[1], row.verdict or "refused"]
        made.add_row(row.model, row.target, row.precision, *cells, "yes" if row.passes else "NO")
    return made


def main() -> None:
    """Export what is not measured yet, print, and leave with 1 where a network has a target without a passing file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=",".join(MODELS))
    parser.add_argument("--target", default="onnx,executorch,tflite,coreml")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--max-drop", type=float, default=5.0)
    parser.add_argument("--precision", default="w8a8,mixed")
    parser.add_argument("--judges", type=int, default=100)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    resumed = flags.json is not None and flags.json.exists()
    rows = [Row(**row) for row in json.loads(flags.json.read_text("utf-8"))] if resumed else []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        calibrate, evaluate = split(flags.data, folder)
        for photos in (calibrate, evaluate):  # weights that were not trained have no right classes
            (photos / "labels.csv").unlink()
        for model in flags.model.split(","):
            for precision in flags.precision.split(","):
                wanted = left(rows, model, flags.target.split(","), precision)
                if not wanted:
                    continue
                begin = time.perf_counter()
                asked = ExportFlags(
                    model=model, target=",".join(wanted), precision=precision, calibration=str(calibrate),
                    calibration_count=flags.count, out=flags.out or folder / "out", overwrite=True,
                )  # fmt: skip
                if precision == "mixed":
                    asked = dataclasses.replace(asked, data=evaluate, data_count=flags.judges, max_drop=flags.max_drop)
                rows += exported(network_of(model), asked)
                print(f"{model} {precision}: {time.perf_counter() - begin:.0f} s", flush=True)
                if flags.json:
                    text = json.dumps([dataclasses.asdict(row) for row in rows], indent=1)
                    flags.json.write_text(text, encoding="utf-8")
    Console(width=140).print(table_of(rows))
    for row in rows:
        if row.error:
            print(f"{row.model} {row.target} {row.precision}: {row.error}")
    done = {(row.model, row.target) for row in rows if row.passes}
    raise SystemExit(0 if all((row.model, row.target) in done for row in rows) else 1)


def left(rows: Sequence[Row], model: str, targets: Sequence[str], precision: str) -> list[str]:
    """The targets that still want this precision: mixed where w8a8 did not pass its gates."""
    known = {(row.target, row.precision): row for row in rows if row.model == model}
    wanted = []
    for target in targets:
        before = known.get((target, "w8a8"))
        fine = before is not None and before.passes
        if (target, precision) not in known and (precision == "w8a8" or not fine):
            wanted.append(target)
    return wanted


if __name__ == "__main__":
    main()
