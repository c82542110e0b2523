"""The ladder on small networks: one that equalization mends, one that only float mends, one that nothing mends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.calibration import steadiness
from acmix.calibration.ladder import MixedCalibrator, fewest, require_disjoint
from acmix.calibration.tradeoff import Rung
from acmix.toolkit import catalog
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.program import copy_program, quiet
from acmix.toolkit.quantized import Calibrated, quantize_program, simulate
from acmix.toolkit.samples import digest_of
from acmix.toolkit.target import Array

SHAPE = (1, 3, 12, 12)
RECIPE = catalog.load_recipe("mixed")


@dataclass(frozen=True)
class Scenes:
    """Smooth colours with some noise: each sample its own."""

    seed: int
    count: int
    labels: tuple[int, ...] | None = None
    name: str = "scenes"
    positions: tuple[int, ...] | None = None

    @property
    def chosen(self) -> tuple[int, ...]:
        return tuple(range(self.count)) if self.positions is None else self.positions

    @property
    def identifiers(self) -> tuple[str, ...]:
        return tuple(map(str, self.chosen))

    @property
    def digest(self) -> str:
        return digest_of(self)

    def pick(self, positions: object) -> Scenes:
        return replace(self, positions=tuple(self.chosen[i] for i in positions))

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        for i in self.chosen:
            rng = np.random.default_rng([self.seed, i])
            yield ((rng.standard_normal((1, 3, 1, 1)) + 0.3 * rng.standard_normal(SHAPE)).astype(np.float32),)


class Fragile(nn.Module):
    """A wide body, then two layers with one channel a thousandfold between them, behind an activation."""

    def __init__(self, activation: nn.Module, width: int = 24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, width, 3, padding=1)
        self.narrow, self.activation, self.wide = nn.Conv2d(width, 8, 1), activation, nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 6)
        with torch.no_grad():
            for tensor in (self.narrow.weight, self.narrow.bias):
                tensor[3] *= 1000.0
            self.wide.weight[:, 3] /= 1000.0
            features = torch.cat([self.features(torch.from_numpy(x)) for (x,) in Scenes(7, 64)])
            # Scores without a favourite: else every photo has one class, and nothing can drop.
            self.head.weight /= features.std(0).clamp_min(1e-3)
            self.head.bias.copy_(-self.head.weight @ features.mean(0))

    def features(self, x: Tensor) -> Tensor:
        y = self.narrow(torch.relu(self.body(torch.relu(self.stem(x)))))
        return torch.relu(self.wide(self.activation(y))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def captured(module: nn.Module) -> ExportedProgram:
    with torch.no_grad(), quiet():
        return torch.export.export(module.eval(), (torch.zeros(SHAPE),))


def classes(module: nn.Module, samples: Scenes) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(int(module.eval()(torch.from_numpy(x)).argmax()) for (x,) in samples)


def climbed(module: nn.Module, max_drop: float, labelled: bool = True) -> tuple[MixedCalibrator, list[Rung]]:
    data, seen = Scenes(2, 100), []
    data = replace(data, labels=classes(module, data)) if labelled else data
    return MixedCalibrator(Scenes(1, 16), data, max_drop, report=seen.append), seen


def test_equalization_mends_a_channel_behind_relu_and_nothing_stays_float() -> None:
    net = Fragile(nn.ReLU())
    calibrator, seen = climbed(net, 3.0)
    made = calibrator(captured(net), RECIPE)
    assert calibrator.plan is not None
    assert seen[0].name == "w8a8"
    assert seen[0].drop_points > 20
    assert seen[-1].equalize
    assert seen[-1].drop_points <= 3.0
    assert (seen[-1].kept, made.kept) == ((), ())
    assert seen[-1].int8_macs_share == 1.0
    assert calibrator.plan.tradeoff.rungs == tuple(seen)
    assert any("cross-layer equalization" in repair for repair in made.repairs)


@pytest.fixture(scope="module")
def stubborn() -> tuple[Fragile, MixedCalibrator, list[Rung], ExportedProgram]:
    """A hard swish does not commute with a factor: only float helps."""
    net = Fragile(nn.Hardswish())
    calibrator, seen = climbed(net, 3.0)
    program = captured(net)
    quantize_program(program, RECIPE, calibrator)
    return net, calibrator, seen, program


def test_only_the_layers_around_the_channel_become_float(
    stubborn: tuple[Fragile, MixedCalibrator, list[Rung], ExportedProgram],
) -> None:
    _, calibrator, seen, _ = stubborn
    plan = calibrator.plan
    assert plan is not None
    assert min(rung.drop_points for rung in seen if not rung.kept) > 20
    assert set(plan.kept) <= {"narrow", "wide", "head", "stem"}
    assert {"narrow", "wide"} <= set(plan.kept)
    best = plan.tradeoff.best
    assert best.drop_points <= 3.0
    assert 0.5 <= best.int8_macs_share < 1.0
    assert best.size_mb > seen[0].size_mb


def test_no_rung_with_fewer_float_modules_was_good_enough(
    stubborn: tuple[Fragile, MixedCalibrator, list[Rung], ExportedProgram],
) -> None:
    _, calibrator, seen, _ = stubborn
    assert calibrator.plan is not None
    count = len(calibrator.plan.kept)
    assert all(rung.drop_points > 3.0 for rung in seen if len(rung.kept) < count)
    assert any(len(rung.kept) == count - 1 for rung in seen)


def test_the_plan_holds_for_the_program_of_another_target(
    stubborn: tuple[Fragile, MixedCalibrator, list[Rung], ExportedProgram],
) -> None:
    net, calibrator, seen, program = stubborn
    before = len(seen)
    other = quantize_program(copy_program(program), RECIPE, calibrator)
    assert len(seen) == before
    assert any(kept.reason == "kept float as asked" for kept in other.kept_float)
    kept = {module for k in other.kept_float if k.reason == "kept float as asked" for module in k.modules}
    assert calibrator.plan is not None
    assert kept == set(calibrator.plan.kept)
    # Counted again by the program of pairs, which the ladder never runs.
    run, data = simulate(other.pairs), Scenes(2, 100)
    found = [int(run(x)[0].argmax()) for x in data]
    right = np.mean([a == b for a, b in zip(found, classes(net, data), strict=True)])
    assert 100 * (1 - right) <= 3.0 + 2.0


def test_without_labels_the_classes_of_the_float_network_count() -> None:
    net = Fragile(nn.ReLU())
    calibrator, seen = climbed(net, 3.0, labelled=False)
    made = calibrator(captured(net), RECIPE)
    assert seen[0].top1 is None
    assert seen[0].drop_points == pytest.approx(100 * (1 - seen[0].agreement))
    assert calibrator.plan is not None
    assert calibrator.plan.tradeoff.float_top1 is None
    assert any("points of agreement with the float network" in repair for repair in made.repairs)


def test_a_budget_that_cannot_be_met_says_the_best_that_was_reached() -> None:
    net = Fragile(nn.Hardswish(), width=1)
    calibrator, seen = climbed(net, 0.0)
    with pytest.raises(GateError, match=r"--max-drop 0 cannot be met: the best of \d+ rungs, .* nothing was written"):
        calibrator(captured(net), RECIPE)
    assert calibrator.plan is None
    assert all(rung.int8_macs_share >= 0.5 for rung in seen)


class Residual(nn.Module):
    """A softmax, then sums that carry what it gives: nothing that costs accuracy, but each runtime's own softmax."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.enter, self.head = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 6)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.stem(x).softmax(1))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def rough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float operators stray by a thousandth: with 12 x 12 pixels a millionth would meet no rounding edge."""
    monkeypatch.setattr(steadiness, "STRAY", 1e-3)


def steadied(snr_db: float) -> tuple[MixedCalibrator, list[Rung], Calibrated]:
    """The ladder on Residual, any accuracy allowed, asking so much of what a rung keeps of itself."""
    assert RECIPE.conversion is not None
    recipe = replace(RECIPE, conversion=replace(RECIPE.conversion, snr_db=snr_db))
    calibrator, seen = climbed(Residual(), 100.0, labelled=False)
    return calibrator, seen, calibrator(captured(Residual()), recipe)


@pytest.mark.usefixtures("rough")
def test_a_steady_rung_within_the_budget_ends_the_ladder() -> None:
    calibrator, seen, made = steadied(20.0)
    assert calibrator.plan is not None
    assert [rung.name for rung in seen] == ["w8a8"]
    assert seen[0].steady_db is not None and seen[0].steady_db >= 20.0
    assert made.kept == ()


@pytest.mark.usefixtures("rough")
def test_where_runtimes_would_differ_modules_become_float() -> None:
    calibrator, seen, made = steadied(50.0)
    plan = calibrator.plan
    assert plan is not None
    assert seen[0].steady_db is not None and seen[0].steady_db < 50.0
    assert plan.kept == plan.tradeoff.best.kept != ()
    assert plan.tradeoff.best.steady_db is not None and plan.tradeoff.best.steady_db >= 50.0
    assert all(rung.steady_db < 50.0 for rung in seen if len(rung.kept) < len(plan.kept) and rung.steady_db is not None)
    assert any(f"kept float: {', '.join(plan.kept)}" in repair for repair in made.repairs)


@pytest.mark.usefixtures("rough")
def test_where_no_rung_is_steady_the_first_within_the_budget_is_taken_and_says_so() -> None:
    calibrator, seen, made = steadied(299.0)
    assert calibrator.plan is not None
    assert len(seen) > 2
    assert calibrator.plan.tradeoff.chosen == 0
    assert made.kept == ()
    assert any("no rung within the budget keeps 299: runtimes will differ" in repair for repair in made.repairs)


def test_outputs_that_are_no_scores_are_refused() -> None:
    with pytest.raises(UsageError, match="the first output is 1x4x12x12, no row of scores"):
        MixedCalibrator(Scenes(1, 4), Scenes(2, 4), 1.0)(captured(nn.Conv2d(3, 4, 1)), RECIPE)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ((0, 6, 1, 2), "scenes: 1 has label 6, and the network tells 6 classes apart"),
        ((0, 1, 2, -1), "scenes: 3 has label -1"),
        (None, "the float network is right on 0 of 4 photos of scenes.*do the labels count like its classes?"),
    ],
)
def test_labels_that_are_not_the_networks_classes_are_refused(labels: tuple[int, ...] | None, sentence: str) -> None:
    net, data = Fragile(nn.ReLU()), Scenes(2, 4)
    shifted = tuple((label + 1) % 6 for label in classes(net, data))
    with pytest.raises(UsageError, match=sentence):
        MixedCalibrator(Scenes(1, 4), replace(data, labels=labels or shifted), 1.0)(captured(net), RECIPE)


def test_what_calibrates_may_not_judge() -> None:
    require_disjoint(Scenes(1, 4), Scenes(2, 4))
    with pytest.raises(UsageError, match="--data is not held out: 2 of the 2 samples"):
        require_disjoint(Scenes(1, 4), Scenes(1, 2))


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 16])
def test_the_fewest_are_found_in_few_trials(most: int) -> None:
    for least in range(1, most + 3):
        asked: list[int] = []

        def meets(count: int, least: int = least, asked: list[int] = asked) -> bool:
            asked.append(count)
            return count >= least

        assert fewest(most, meets) == (least if least <= most else None)
        assert len(asked) == len(set(asked)) <= 2 * max(most, 1).bit_length() + 1
        assert all(1 <= count <= most for count in asked)
