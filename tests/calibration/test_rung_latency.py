"""Latencies of rungs: which are measured, what is said of the others, and one ladder timed for real."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn
from torch.export import ExportedProgram

from acmix.apps import analysis
from acmix.calibration.collect import collect
from acmix.calibration.rung_latency import WARM_UP_RUNS, RungTimer, latency_of
from acmix.calibration.tradeoff import Latency, Rung, Tradeoff, draw, timed
from acmix.targets.coreml import TARGET as COREML
from acmix.targets.onnx import TARGET as ONNX
from acmix.toolkit._session_messages import Answer
from acmix.toolkit.errors import GateError
from acmix.toolkit.quantize import graph_module
from acmix.toolkit.quantized import Calibrated
from acmix.toolkit.request import TargetRequest
from acmix.toolkit.samples import Probes
from acmix.toolkit.session import Session
from acmix.toolkit.spec import ModelSpec, TensorSpec

IMAGE = TensorSpec("image", (1, 3, 48, 48), "float32", "nchw")


def rung(name: str, kept: tuple[str, ...] = ()) -> Rung:
    return Rung(name, "mse", False, True, kept, 0.9, 0.95, 1.0, 18.0, 4.8, 1.0 - 0.1 * len(kept), 2.0)


FOUND = Tradeoff(
    1.0, "eval", 150, "abc", 0.9, 18.5,
    (rung("w8a8"), rung("equalized"), rung("equalized, 1 in float", ("a",)), rung("equalized, 2 in float", ("a", "b"))),
    3,
)  # fmt: skip


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 8, 3, 2, 1)
    ).eval()


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return torch.export.export(net(), (torch.zeros(IMAGE.shape),))


def timer_of(target: object) -> RungTimer:
    spec = ModelSpec(name="net", build=net, inputs=(IMAGE,), outputs=("output",), classifies=False)
    return RungTimer(TargetRequest(target.name, target.options()), spec, Probes((IMAGE,)))  # type: ignore[attr-defined]


class Noting:
    """Notes what it is asked to time: the choice is what is tested with it, not the clock."""

    obstacle = ""
    target_name = "onnx"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(
        self, program: ExportedProgram, rungs: Sequence[Calibrated], asked: Sequence[str] = ()
    ) -> tuple[Latency, ...]:
        self.asked = [",".join(one.repairs) for one in rungs]
        return tuple(Latency(10.0 + i, 1.0 + i / 10, None, None, 4) for i in range(len(rungs) + 1))


def test_rungs_of_the_same_operators_are_measured_once_and_the_others_say_so(program: ExportedProgram) -> None:
    timer = Noting()
    tried = [Calibrated(program, None, (one.name,)) for one in FOUND.rungs]
    made = timed(FOUND, program, tried, timer, ())
    assert timer.asked == ["w8a8", "equalized, 1 in float", "equalized, 2 in float"]
    assert made.float_latency is not None and made.float_latency.p50_ms == 10.0
    assert [one.latency.p50_ms if one.latency else None for one in made.rungs] == [11.0, None, 12.0, 13.0]
    assert made.rungs[1].latency_reason == "not measured: the operators of 'w8a8', with other constants"


def test_the_chosen_rung_is_the_one_that_is_measured(program: ExportedProgram) -> None:
    timer = Noting()
    tried = [Calibrated(program, None, (one.name,)) for one in FOUND.rungs]
    made = timed(replace(FOUND, chosen=1), program, tried, timer, ())
    assert timer.asked[0] == "equalized"
    assert made.rungs[0].latency is None and "'equalized'" in made.rungs[0].latency_reason


def test_where_no_runtime_is_nothing_is_measured_and_every_rung_says_why(program: ExportedProgram) -> None:
    timer = timer_of(COREML)
    if not timer.obstacle:
        pytest.skip("Core ML runs here")
    made = timed(FOUND, program, [], timer, ())
    assert made.float_latency is None
    assert all(one.latency is None and "coreml" in one.latency_reason for one in made.rungs)


class Breaking(Noting):
    """A converter that fails on one of the rungs."""

    def __call__(
        self, program: ExportedProgram, rungs: Sequence[Calibrated], asked: Sequence[str] = ()
    ) -> tuple[Latency, ...]:
        raise GateError("onnx: the converter crashed\nFull log: log")


def test_a_converter_that_fails_costs_the_latencies_and_not_the_ladder(program: ExportedProgram) -> None:
    made = timed(FOUND, program, [Calibrated(program, None)] * 4, Breaking(), ())
    assert made.chosen == FOUND.chosen and made.float_latency is None
    assert {one.latency_reason for one in made.rungs} == {"not measured: onnx: the converter crashed"}


def test_the_ratio_is_that_of_interleaved_runs() -> None:
    base = [1_000_000 + 1000 * (i % 5) for i in range(64)]
    found = latency_of(base, [2 * ns for ns in base])
    assert found.ratio == pytest.approx(2.0)
    assert found.p50_ms == pytest.approx(2.004)
    assert found.runs == 64
    assert found.ratio_low is not None and found.ratio_low <= 2.0


@dataclass
class Timings:
    """Notes of each ONNX file that is timed how often it quantizes, and what its runs took after the warm-up."""

    time: Callable[[Session, int], Answer]
    quantizations: dict[str, int] = field(default_factory=dict)
    runs_ns: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __call__(self, session: Session, count: int) -> Answer:
        file = session.request.file
        if file not in self.quantizations:
            nodes = onnx.load(file).graph.node
            self.quantizations[file] = sum(node.op_type == "QuantizeLinear" for node in nodes)
        answer = self.time(session, count)
        if count != WARM_UP_RUNS:
            self.runs_ns[file] += answer.latency_ns
        return answer


def test_rungs_are_lowered_and_timed_on_this_host(
    program: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings = Timings(Session.time)
    monkeypatch.setattr(Session, "time", lambda session, count: timings(session, count))
    timer = timer_of(ONNX)
    layers = [n.name for n in graph_module(program).graph.nodes if "conv2d" in str(n.target)]
    ranges = collect(program, timer.samples, "minmax")
    tried = [Calibrated(program, ranges, (), kept) for kept in ((), tuple(layers[:2]))]
    ladder = replace(FOUND, rungs=(rung("w8a8"), rung("w8a8, 2 in float", ("0", "2"))), chosen=1)
    made = timed(ladder, program, tried, timer, ())
    assert made.float_latency is not None and made.float_latency.ratio == 1.0
    assert made.latency_target == "onnx"
    for one in made.rungs:
        assert one.latency is not None and one.latency.runs >= 16 and one.latency.p50_ms > 0
    # Each latency is that of its own file; which of them is the fastest is the machine's affair.
    floats, some, most = sorted(timings.quantizations, key=lambda file: timings.quantizations[file])
    assert 0 == timings.quantizations[floats] < timings.quantizations[some] < timings.quantizations[most]
    for latency, file in ((made.float_latency, floats), (made.rungs[0].latency, most), (made.rungs[1].latency, some)):
        assert latency == latency_of(timings.runs_ns[floats], timings.runs_ns[file])
    draw(tmp_path / "a.png", made)
    assert np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).std() > 10
    shown = analysis.rungs(made)
    assert f"float {made.float_latency.p50_ms:.2f} ms" in str(shown.caption)
