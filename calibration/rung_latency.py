"""What each rung of `mixed` takes on this host: lowered to one target, and run interleaved with the float file."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.export import ExportedProgram

from acmix.calibration.tradeoff import Latency
from acmix.toolkit import catalog, machine
from acmix.toolkit.execute import Interface, file_inputs
from acmix.toolkit.grid import choose_grid
from acmix.toolkit.lower import LoweringRequest, start_lowering
from acmix.toolkit.program import save_program
from acmix.toolkit.quantize import graph_module, quantize
from acmix.toolkit.quantized import Calibrated, example_inputs
from acmix.toolkit.ranges import save_ranges
from acmix.toolkit.ratio import paired_ratio
from acmix.toolkit.request import TargetRequest
from acmix.toolkit.samples import Probes, Samples
from acmix.toolkit.session import SessionRequest, open_session
from acmix.toolkit.spec import ModelSpec, TensorSpec
from acmix.toolkit.target import Lowered, executor

ROUNDS = 32
"""Of two runs each, in mirrored order."""
LIMIT_S = 30.0
LEAST_ROUNDS = 8
"""After the limit a measurement ends with so many rounds."""
WARM_UP_RUNS = 5


@dataclass(frozen=True)
class RungTimer:
    """Lowers programs to one target and times them, one thread on one processor. samples: those that calibrate."""

    target: TargetRequest
    spec: ModelSpec
    samples: Samples

    @property
    def target_name(self) -> str:
        """What the rungs are lowered to."""
        return self.target.name

    @property
    def obstacle(self) -> str:
        """Why nothing can be timed on this host; '' where it can."""
        by, reason = executor(catalog.load_target(self.target.name), self.target.options)
        return "" if by == "runtime" else f"{self.target.name}: {reason or 'it runs by a reference evaluator here'}"

    def __call__(
        self, program: ExportedProgram, rungs: Sequence[Calibrated], asked: Sequence[str] = ()
    ) -> tuple[Latency, ...]:
        """The latency of the float program, then of each rung. asked: nodes that are float in any case.

        Raises GateError where the converter or the runtime fails.
        """
        with tempfile.TemporaryDirectory(prefix="acmix-") as scratch:
            folder = Path(scratch)
            (folder / "float").mkdir()
            requests = [self._float(program, folder / "float")]
            for number, rung in enumerate(rungs):
                place = folder / f"rung-{number}"
                place.mkdir()
                requests.append(self._int8(rung, asked, place))
            with ThreadPoolExecutor(machine.conversions_at_once(len(requests))) as pool:
                lowered = list(pool.map(self._lowered, requests))
            return self._timed(requests, lowered, folder / "sessions.log")

    def _float(self, program: ExportedProgram, place: Path) -> LoweringRequest:
        save_program(program, place / "program.pt2")
        return self._request(program, "float32", place)

    def _int8(self, rung: Calibrated, asked: Sequence[str], place: Path) -> LoweringRequest:
        """As `share` hands a quantized program to a target."""
        assert rung.ranges is not None
        program, kept = rung.program, (*asked, *rung.kept)
        save_ranges(rung.ranges, place / "ranges.npz")
        made = self._request(program, "w8a8", place)
        if catalog.load_target(self.target.name).quantization == "pairs":
            grid = choose_grid(graph_module(program).graph, rung.ranges, kept)
            program = quantize(program, grid, example_inputs(program))
        else:
            arrays = {s.name: np.concatenate([one[i] for one in self.samples]) for i, s in enumerate(self.spec.inputs)}
            np.savez(place / "samples.npz", allow_pickle=False, **arrays)
            made = dataclasses.replace(made, samples_file=str(place / "samples.npz"))
        save_program(program, place / "program.pt2")
        return dataclasses.replace(made, ranges=str(place / "ranges.npz"), kept_float=kept)

    def _request(self, program: ExportedProgram, recipe: str, place: Path) -> LoweringRequest:
        suffix = catalog.load_target(self.target.name).suffix
        return LoweringRequest(
            str(place / "program.pt2"),
            str(place / f"model{suffix}"),
            self.spec.name,
            catalog.load_recipe(recipe),
            self.spec.inputs,
            tuple(_outputs(program)),
            dataclasses.asdict(self.target.options),
            self.spec.preprocess,
        )

    def _lowered(self, request: LoweringRequest) -> Lowered:
        log = Path(request.file).with_suffix(".log")
        with start_lowering(self.target.name, log, 1) as lowering:
            return lowering.lower(request)[0]

    def _timed(self, requests: Sequence[LoweringRequest], lowered: Sequence[Lowered], log: Path) -> tuple[Latency, ...]:
        probes = Probes(self.spec.inputs)
        noise = dict(zip(probes.identifiers, probes, strict=True))["noise"]
        cpu = machine.usable_cpus()[-1:]
        with ExitStack() as stack:
            sessions = []
            for request, made in zip(requests, lowered, strict=True):
                one = SessionRequest(self.target.name, request.file, 1, cpu)
                sessions.append(stack.enter_context(open_session(one, log)))
                interface = Interface(
                    self.spec.inputs, request.outputs, made.inputs, made.outputs, self.spec.preprocess
                )
                sessions[-1].load()
                sessions[-1].run(file_inputs(noise, interface))
                sessions[-1].time(WARM_UP_RUNS)
            runs: list[list[int]] = [[] for _ in sessions]
            end = time.perf_counter() + LIMIT_S
            for number in range(2 * ROUNDS):
                order = range(len(sessions)) if number % 2 == 0 else reversed(range(len(sessions)))
                for i in order:
                    runs[i] += sessions[i].time(1).latency_ns
                if time.perf_counter() > end and number + 1 >= 2 * LEAST_ROUNDS and number % 2:
                    break
        return tuple(latency_of(runs[0], taken) for taken in runs)


def latency_of(base_ns: Sequence[int], taken_ns: Sequence[int]) -> Latency:
    """The median, and the ratio to the float file with its interval."""
    ratio = paired_ratio([(base_ns, taken_ns)])
    return Latency(float(np.median(taken_ns)) / 1e6, ratio.estimate, ratio.low, ratio.high, len(taken_ns))


def _outputs(program: ExportedProgram) -> Iterator[TensorSpec]:
    """The program's outputs, by number: nobody reads their names here."""
    named = {node.name: node for node in program.graph.nodes}
    for i, name in enumerate(program.graph_signature.user_outputs):
        yield TensorSpec(f"output_{i}", tuple(named[str(name)].meta["val"].shape), "float32", "any")
