"""Every network of the zoo to every target and precision: what the proof said, where operators run, tensor ranks.

python tests/benchmarks/zoo.py [--model lsnet_t,...] [--target tflite,...] [--precision float32,float16] [--json FILE]

Weights are random unless a package carries them. One line an artifact; exit 1 unless every proof passed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from acmix.apps.requests import ExportFlags, export_request
from acmix.toolkit import catalog, pipeline
from acmix.toolkit.request import Outcome


@dataclasses.dataclass(frozen=True)
class Row:
    """One export. rank: the largest of any tensor in the file; 0 where the format hides them."""

    model: str
    target: str
    precision: str
    verdict: str
    snr_db: float | None
    asked_db: float | None
    partitions: int | None
    fallbacks: str
    rank: int
    size_mb: float
    lowered_s: float
    error: str


def largest_rank(file: Path) -> int:
    """The rank of the file's largest tensor, constants included."""
    if file.suffix == ".tflite":
        from acmix.targets.formats.tflite_flatbuffer import read_model

        tensors = read_model(file).subgraphs[0].tensors
        return max(len(t.shape) for t in tensors if t.shape is not None)
    if file.suffix == ".onnx":
        import onnx

        from acmix.targets.formats.onnx_graph import shapes_of

        return max(len(shape) for shape in shapes_of(onnx.load(file)).values())
    if file.suffix == ".mlpackage":
        from acmix.targets.formats import coreml_package

        return max(len(shape) for shape in coreml_package.shapes_of(coreml_package.read_specification(file)).values())
    return 0


def row_of(model: str, precision: str, outcome: Outcome) -> Row:
    """What one export gave."""
    if outcome.artifact is None:
        error = outcome.error.partition("\n")[0]
        return Row(model, outcome.target, precision, "not exported", None, None, None, "", 0, 0.0, 0.0, error)
    manifest = outcome.artifact.manifest
    signals = [(a.snr_db - a.asked_db, a.snr_db, a.asked_db) for a in manifest.proof.agreements if a.snr_db is not None]
    _, snr_db, asked_db = min(signals, default=(None, None, None))
    outside = sorted({operator.kind for operator in manifest.placement.fallbacks})
    return Row(
        model,
        outcome.target,
        precision,
        manifest.proof.verdict,
        snr_db,
        asked_db,
        manifest.placement.partitions,
        ", ".join(outside),
        largest_rank(outcome.artifact.model_file),
        outcome.artifact.size_bytes / 1e6,
        manifest.timings_s["lower"],
        outcome.error.partition("\n")[0],
    )


def sweep(models: list[str], target: str, precisions: list[str]) -> Iterator[Row]:
    """Export each model at each precision; the artifacts are thrown away."""
    for model in models:
        for precision in precisions:
            with tempfile.TemporaryDirectory() as folder:
                flags = ExportFlags(model=model, target=target, precision=precision, out=Path(folder) / "out")
                for outcome in pipeline.export(export_request(flags, {}), lambda *_: None):
                    yield row_of(model, precision, outcome)


def main() -> None:
    """Sweep, print a line an export, and a table at the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=",".join(card.name for card in catalog.model_cards()))
    parser.add_argument("--target", default="all")
    parser.add_argument("--precision", default="float32,float16")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    table = Table(*(field.name for field in dataclasses.fields(Row)), box=None)
    for row in sweep(arguments.model.split(","), arguments.target, arguments.precision.split(",")):
        rows.append(row)
        values = dataclasses.astuple(row)
        cells = [f"{v:.1f}" if isinstance(v, float) else "-" if v is None else str(v) for v in values]
        print(*cells, sep="\t", file=sys.stderr, flush=True)
        table.add_row(*cells)
        if arguments.json:
            arguments.json.write_text(json.dumps([dataclasses.asdict(r) for r in rows], indent=1), encoding="utf-8")
    Console(width=200).print(table)
    if any(row.error or row.verdict != "passed" or row.rank > 5 for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
