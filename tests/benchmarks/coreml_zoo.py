"""Every network of the zoo as a Core ML package, float32 and float16: what the saved file keeps of eager's outputs.

python tests/benchmarks/coreml_zoo.py --json FILE [--model lsnet_t,...] [--precision float32,float16] [--minutes 20]
python tests/benchmarks/coreml_zoo.py --time [--model efficientnet_lite0,lsnet_t,mobilenet_v3_large_100]

Smallest networks first; what FILE already holds is not measured again, so that a run can be stopped and go on.
Weights are a package's where one carries them. Otherwise one rule for all: those that the network initialises itself
with under seed 0, and every residual branch ends at a quarter of its size. Training begins with branches that add
little (Goyal et al. 2017, section 5.1) and residual networks stay near the identity (De and Smith 2020); without it
the deepest ones amplify rounding so much that eager itself keeps under 40 dB in float16, which tells nothing of a
file. Inputs: noise of standard deviation 1 and a smooth image. Beside the file's worst SNR stands
what eager itself keeps when it rounds as the file does (acmix.toolkit.conditioning): a file that keeps as much has
lost nothing to its conversion or to the evaluator. --time measures seconds an image and memory in a fresh process.
Exit 1 when a file keeps less than 70 dB (float32) or 40 dB (float16).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from acmix.apps.requests import ExportFlags, export_request
from acmix.targets.coreml import TARGET, CoreMLOptions
from acmix.targets.mil import load_package
from acmix.toolkit import capture, catalog
from acmix.toolkit.conditioning import attainable
from acmix.toolkit.session import SessionRequest, open_session, peak_memory_mb
from acmix.toolkit.spec import TensorSpec
from acmix.toolkit.target import Array, Lowered, LoweringJob
from acmix.toolkit.verify import snr_db

BARS_DB = {"float32": 70.0, "float16": 40.0}
BAR_MEMORY_MB = 1024.0
BARS_S = {"efficientnet_lite0": 0.5, "lsnet_t": 1.0, "mobilenet_v3_large_100": 1.0}
UNKNOWN_MACS = 500_000_000
SEED = 0
BRANCH_SCALE = 0.25
ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclasses.dataclass(frozen=True)
class Row:
    """One package. snr_db, eager_db: of the worst input and output; None where eager gives zeros.

    margin_db: the least by which the file beats, or misses, what eager keeps under the same rounding.
    """

    model: str
    precision: str
    snr_db: float | None
    eager_db: float | None
    margin_db: float | None
    lower_s: float
    evaluate_s: float
    peak_mb: float
    error: str = ""

    @property
    def passes(self) -> bool:
        return not self.error and (self.snr_db is None or self.snr_db >= BARS_DB[self.precision])


def by_size() -> list[str]:
    """The zoo's names, least multiply-accumulates first."""
    return [card.name for card in sorted(catalog.model_cards(), key=lambda card: card.claims.macs or UNKNOWN_MACS)]


def smooth(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise of a few octaves, the coarse ones strongest as in a photo, with standard deviation 1."""
    total = torch.zeros(shape)
    for cells in (2, 4, 8, 16, 32):
        coarse = torch.randn((*shape[:2], cells, cells), generator=generator)
        total += torch.nn.functional.interpolate(coarse, size=shape[2:], mode="bicubic") / cells
    return total / total.std()


def samples(specs: Sequence[TensorSpec]) -> list[tuple[Array, ...]]:
    """Noise at the networks' scale, then a smooth image wherever an input is one."""
    generator = torch.Generator().manual_seed(SEED)
    noise = tuple(torch.randn(spec.shape, generator=generator) for spec in specs)
    images = tuple(
        smooth(spec.shape, generator) if len(spec.shape) == 4 and min(spec.shape[2:]) > 1 else given
        for spec, given in zip(specs, noise, strict=True)
    )
    return [tuple(tensor.numpy() for tensor in one) for one in (noise, images)]


def network_of(model: str) -> capture.Network:
    """The zoo's network with a package's weights, or with its own, residual branches a quarter as large."""
    flags = ExportFlags(model=model, target="coreml", out=Path(tempfile.gettempdir()) / "unused")
    network = capture.build(export_request(flags, {}).source, None, SEED)
    if network.weights.is_random:
        parameters = dict(network.module.named_parameters())
        for name in branch_ends(capture.capture_published(network)):
            parameters[name].data.mul_(BRANCH_SCALE)
    return network


def branch_ends(program: ExportedProgram) -> set[str]:
    """The parameters of the last layer of every residual branch: what is added to one of its own ancestors."""
    parameters = program.graph_signature.inputs_to_parameters
    above: dict[Node, frozenset[Node]] = {}
    found: set[str] = set()
    for node in program.graph.nodes:
        operands = node.all_input_nodes
        above[node] = frozenset(operands).union(*(above[one] for one in operands))
        if node.target not in ADDITIONS or len(operands) != 2:
            continue
        skip, branch = operands if operands[0] in above[operands[1]] else operands[::-1]
        if skip in above[branch] and skip.meta["val"].shape == branch.meta["val"].shape:
            found |= _last_parameters(branch, skip, above, parameters)
    return found


def _last_parameters(
    branch: Node, skip: Node, above: Mapping[Node, frozenset[Node]], parameters: Mapping[str, str]
) -> set[str]:
    """Going back from the end of a branch to its start, the parameters of the first layer that has any."""
    node = branch
    while node is not skip:
        own = {parameters[one.name] for one in node.all_input_nodes if one.name in parameters}
        if own:
            return own
        # Beside the branch's own values a gate or a shape may be read: the longest way back is the branch.
        node = max(
            (one for one in node.all_input_nodes if one is skip or skip in above[one]), key=lambda n: len(above[n])
        )
    return set()


def lowered(network: capture.Network, captured: capture.Captured, precision: str, file: Path) -> Lowered:
    """Write the package that acmix-export would write."""
    recipe = catalog.load_recipe(precision)
    options = CoreMLOptions()
    job = LoweringJob(network.spec.name, recipe, captured.inputs, captured.outputs, options, network.spec.preprocess)
    return TARGET.lower(captured.programs["coreml"].program, job, file)


def measured(network: capture.Network, precision: str, file: Path, made: Lowered, lower_s: float) -> Row:
    """The package against eager on every sample, and eager under the same rounding."""
    recipe = catalog.load_recipe(precision)
    kept = attainable(network.module, recipe, half_arithmetic=precision == "float16")
    model = load_package(file)
    found_db, eager_db, margins, seconds = [], [], [], []
    for inputs in samples(network.spec.inputs):
        wanted = network(inputs)
        feed = {spec.name: array for spec, array in zip(made.inputs, inputs, strict=True)}
        begin = time.perf_counter()
        results = model(feed)
        seconds.append(time.perf_counter() - begin)
        for spec, output, own in zip(made.outputs, wanted, kept(inputs, wanted), strict=True):
            found = snr_db(output, np.asarray(results[spec.name]))
            if found is not None and own is not None:
                found_db.append(found)
                eager_db.append(own)
                margins.append(found - own)
    return Row(
        network.spec.name,
        precision,
        min(found_db, default=None),
        min(eager_db, default=None),
        min(margins, default=None),
        lower_s,
        min(seconds),
        peak_memory_mb(),
    )


def sweep(models: Sequence[str], precisions: Sequence[str], done: set[tuple[str, str]]) -> Iterator[Row]:
    """Each model captured once, then lowered and evaluated at each precision; the packages are thrown away."""
    for model in models:
        wanted = [precision for precision in precisions if (model, precision) not in done]
        if not wanted:
            continue
        network = network_of(model)
        captured = capture.capture(network, ["coreml"])
        for precision in wanted:
            _forget_peak()
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.mlpackage"
                begin = time.perf_counter()
                try:
                    made = lowered(network, captured, precision, file)
                    yield measured(network, precision, file, made, time.perf_counter() - begin)
                except Exception as error:  # one network that fails must not end the sweep: it is a row
                    text = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                    yield Row(model, precision, None, None, None, 0.0, 0.0, 0.0, text)


def _forget_peak() -> None:
    """Linux counts the peak of resident memory from here on; elsewhere it stays that of the whole run."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5", encoding="ascii")


def time_packages(models: Sequence[str]) -> bool:
    """Seconds an image after loading and peak memory, each package in a fresh process; whether all bars hold."""
    fine = True
    for model in models:
        network = network_of(model)
        captured = capture.capture(network, ["coreml"])
        for precision in BARS_DB:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.mlpackage"
                lowered(network, captured, precision, file)
                request = SessionRequest(TARGET.name, str(file), reference=True)
                with open_session(request, Path(folder) / "log") as session:
                    load_s = session.load().latency_ns[0] / 1e9
                    session.run(samples(network.spec.inputs)[0])
                    answer = session.time(10)
            median_s = float(np.median(answer.latency_ns)) / 1e9
            print(
                f"{model} {precision}: {median_s:.3f} s an image after {load_s:.1f} s of loading, "
                f"{answer.peak_memory_mb:.0f} MB",
                flush=True,
            )
            fine &= median_s < BARS_S.get(model, float("inf")) and answer.peak_memory_mb < BAR_MEMORY_MB
    return fine


def table_of(rows: Sequence[Row]) -> Table:
    """Every package; a cross where it misses its bar."""
    made = Table(*(field.name for field in dataclasses.fields(Row)), "passes", box=None)
    for row in rows:
        cells = [f"{v:.1f}" if isinstance(v, float) else "-" if v is None else str(v) for v in dataclasses.astuple(row)]
        made.add_row(*cells, "yes" if row.passes else "NO")
    return made


def main() -> None:
    """Sweep or time, print, and leave with 1 when a bar is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="")
    parser.add_argument("--precision", default=",".join(BARS_DB))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--time", action="store_true")
    arguments = parser.parse_args()
    models = arguments.model.split(",") if arguments.model else list(BARS_S) if arguments.time else by_size()
    if arguments.time:
        raise SystemExit(0 if time_packages(models) else 1)
    resumed = arguments.json is not None and arguments.json.exists()
    rows = [Row(**row) for row in json.loads(arguments.json.read_text("utf-8"))] if resumed else []
    end = time.monotonic() + 60 * arguments.minutes
    for row in sweep(models, arguments.precision.split(","), {(row.model, row.precision) for row in rows}):
        rows.append(row)
        print(*dataclasses.astuple(row), sep="\t", file=sys.stderr, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps([dataclasses.asdict(r) for r in rows], indent=1), encoding="utf-8")
        if time.monotonic() > end:
            break
    Console(width=180).print(table_of(rows))
    if not all(row.passes for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
