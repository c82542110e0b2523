"""The ladder of `mixed`: repairs that cost nothing, then modules in float, until the accuracy is within budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch.export import ExportedProgram

from acmix.calibration.calibrate import Mended, corrected, equalized, insufficient
from acmix.calibration.collect import collect, observe
from acmix.calibration.evaluation import Evaluation
from acmix.calibration.leaks import leaks
from acmix.calibration.plan import Plan, apply, in_words, nodes_of, steady_from
from acmix.calibration.selection import CalibrationSamples, spread
from acmix.calibration.sensitivity import Tally, by_noise_per_mac, sensitivity
from acmix.calibration.simulation import Simulation, macs_of, size_bytes, total_macs
from acmix.calibration.steadiness import steady_db
from acmix.calibration.tradeoff import Rung, Timer, Tradeoff, timed
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.grid import choose_grid
from acmix.toolkit.quantize import graph_module
from acmix.toolkit.quantized import Calibrated, example_inputs
from acmix.toolkit.ranges import Observer, Ranges
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.samples import Samples

OTHER_OBSERVERS: tuple[Observer, ...] = ("minmax", "percentile")
"""Moving averages and entropy never did better than these: docs/quantization.md."""
MOST_FLOAT = 0.5
"""Of multiply-accumulates: with more in float, the file is no int8 file any more."""
SENSITIVITY_SAMPLES = 8
STEADINESS_SAMPLES = 8
Report = Callable[[Rung], None]


@dataclass
class MixedCalibrator:
    """Calibrates the first program by climbing the ladder, every other one by the plan that this gave.

    data: labelled photos, or photos alone: then agreement with the float program is what may drop.
    max_drop: in points. report: called with each rung as it is measured. timer: for their latencies, at the end.
    """

    samples: CalibrationSamples
    data: Samples
    max_drop: float
    remarks: tuple[str, ...] = ()
    report: Report = field(default=lambda rung: None)
    plan: Plan | None = None
    timer: Timer | None = None

    def __call__(self, program: ExportedProgram, recipe: Recipe, kept: Sequence[str] = ()) -> Calibrated:
        """Raises GateError with the best that was reached where the budget cannot be met."""
        if self.plan is None:
            climb = Climb(program, recipe, kept, self.samples, Evaluation.of(program, self.data), self.report)
            made, self.plan = climb.to(self.max_drop)
            if self.timer is not None:
                tried = [calibrated for _, _, calibrated in climb.tried]
                tradeoff = timed(self.plan.tradeoff, program, tried, self.timer, climb.asked)
                self.plan = replace(self.plan, tradeoff=tradeoff)
        else:
            made = apply(self.plan, program, self.samples, kept)
        remarks = insufficient(observe(made.program, self.samples, ()))
        return replace(made, repairs=(*in_words(self.plan), *made.repairs, *remarks))


def require_disjoint(samples: Samples, data: Samples) -> None:
    """Raise UsageError where photos that calibrate would also judge."""
    for found in leaks(samples, data):
        raise UsageError(
            f"--data is not held out: {found.sentence}\nGive photos to --data that --calibration does not have."
        )


class Climb:
    """One captured program on its way up the ladder; the rungs so far. asked: nodes that are float in any case."""

    def __init__(
        self,
        program: ExportedProgram,
        recipe: Recipe,
        asked: Sequence[str],
        samples: CalibrationSamples,
        on: Evaluation,
        report: Report,
    ) -> None:
        self.program, self.recipe, self.asked = program, recipe, tuple(asked)
        self.samples, self.on, self.report = samples, on, report
        self.macs = total_macs(program, example_inputs(program))
        self.max_drop = 0.0
        self.rungs: list[Rung] = []
        self.tried: list[tuple[Recipe, Mended, Calibrated]] = []

    def to(self, max_drop: float) -> tuple[Calibrated, Plan]:
        """The first rung within the budget that is steady, or the first within it. Raises GateError without one."""
        self.max_drop = max_drop
        free = next((i for i, rung in enumerate(self._free_rungs()) if rung.drop_points <= max_drop), None)
        if free is not None and self._is_steady(free):
            return self._taken(free)
        base = min(range(len(self.rungs)), key=lambda i: self.rungs[i].drop_points) if free is None else free
        order, measured = self._order(self.tried[base][2]), dict[int, int]()

        def position(count: int) -> int:
            if count not in measured:
                self._keep_float(order[:count], base)
                measured[count] = len(self.rungs) - 1
            return measured[count]

        def is_within(count: int) -> bool:
            return self.rungs[position(count)].drop_points <= max_drop

        steady = fewest(len(order), lambda count: is_within(count) and self._is_steady(position(count)))
        if steady is not None:
            return self._taken(position(steady))
        if free is not None:
            return self._taken(free)
        few = fewest(len(order), is_within)
        if few is None:
            raise GateError(_out_of_reach(self._tradeoff(None)))
        return self._taken(position(few))

    def _is_steady(self, position: int) -> bool:
        found = self.rungs[position].steady_db
        return found is not None and found >= steady_from(self.recipe)

    def _taken(self, position: int) -> tuple[Calibrated, Plan]:
        recipe, _, calibrated = self.tried[position]
        return calibrated, Plan(recipe, self.rungs[position].kept, self._tradeoff(position))

    def _tradeoff(self, chosen: int | None) -> Tradeoff:
        data, size = self.on.data, size_bytes(graph_module(self.program), frozenset()) / 1e6
        right = self.on.float_right
        top1 = None if right is None else right / len(data)
        return Tradeoff(self.max_drop, data.name, len(data), data.digest, top1, size, tuple(self.rungs), chosen)

    def _free_rungs(self) -> Iterator[Rung]:
        """Repairs that cost no latency and no size, each measured when it is asked for."""
        begin = time.perf_counter()
        recipe, plain = self.recipe, Mended(self.program)
        mended = corrected(plain, recipe, self.samples, self.asked)
        observed = observe(mended.program, self.samples, (recipe.observer, *OTHER_OBSERVERS))
        yield self._measure("w8a8", recipe, plain, _calibrated(mended, observed.ranges(recipe.observer)), begin)
        for observer in OTHER_OBSERVERS:
            begin = time.perf_counter()
            other = replace(recipe, observer=observer)
            yield self._measure(
                f"{observer} ranges", other, plain, _calibrated(mended, observed.ranges(observer)), begin
            )
        begin = time.perf_counter()
        alike = equalized(self.program, self.samples)
        # With bias correction first: measured, it is worth more with equalization than without.
        for name, correct in (("equalized", True), ("equalized, biases left", False)):
            other = replace(recipe, equalize=True, correct_bias=correct)
            mended = corrected(alike, other, self.samples, self.asked)
            found = collect(mended.program, self.samples, other.observer)
            yield self._measure(name, other, alike, _calibrated(mended, found), begin)
            begin = time.perf_counter()

    def _order(self, calibrated: Calibrated) -> tuple[str, ...]:
        """Modules in the order in which they are worth keeping in float, as many as may be."""
        few = self.samples.pick(spread(len(self.samples), SENSITIVITY_SAMPLES))
        order, spent = [], 0
        for one in by_noise_per_mac(sensitivity(calibrated, few, self.asked)):
            spent += one.macs
            if spent > MOST_FLOAT * self.macs:
                break
            order.append(one.module)
        return tuple(order)

    def _keep_float(self, modules: Sequence[str], base: int) -> Rung:
        """Measure a rung with some modules in float."""
        begin = time.perf_counter()
        recipe, before, calibrated = self.tried[base]
        assert calibrated.ranges is not None
        kept = nodes_of(graph_module(before.program).graph, modules)
        mended = corrected(before, recipe, self.samples, (*self.asked, *kept))
        # The ranges hold: only biases moved, by what rounding had added. Fingerprints are exact, so those are new.
        first = collect(mended.program, self.samples.pick([0]), "minmax")
        ranges = replace(calibrated.ranges, fingerprints=first.fingerprints)
        made = Calibrated(mended.program, ranges, mended.repairs, kept)
        name = f"{self.rungs[base].name}, {len(modules)} in float"
        return self._measure(name, recipe, before, made, begin, tuple(modules))

    def _measure(
        self,
        name: str,
        recipe: Recipe,
        before: Mended,
        made: Calibrated,
        begin: float,
        kept: tuple[str, ...] = (),
    ) -> Rung:
        """Run a rung's integers on the photos, and note what came out."""
        assert made.ranges is not None
        module = graph_module(made.program)
        grid = choose_grid(module.graph, made.ranges, (*self.asked, *made.kept))
        run, tally = Simulation(module, grid), Tally()
        labels = self.on.data.labels
        for i, (sample, wanted) in enumerate(zip(self.on.inputs, self.on.wanted, strict=True)):
            tally.add(wanted, run.outputs(sample), labels[i] if labels is not None else None)
        cost = tally.cost(True, labels is not None)
        # Counted in photos: a difference of two shares would miss a budget of exactly so many.
        lost = tally.count - tally.same if self.on.float_right is None else self.on.float_right - tally.right
        int8 = sum(macs_of(module, n) for n in module.graph.nodes if n.name in grid.weights)
        rung = Rung(
            name,
            recipe.observer,
            recipe.equalize,
            recipe.correct_bias,
            kept,
            cost.top1,
            tally.same / tally.count,
            100 * lost / tally.count,
            cost.snr_db,
            size_bytes(module, grid.weights) / 1e6,
            int8 / max(self.macs, 1),
            time.perf_counter() - begin,
        )
        if rung.drop_points <= self.max_drop:
            few = self.samples.pick(spread(len(self.samples), STEADINESS_SAMPLES))
            rung = replace(rung, steady_db=steady_db(made.program, grid, few), seconds=time.perf_counter() - begin)
        self.rungs.append(rung)
        self.tried.append((recipe, before, made))
        self.report(rung)
        return rung


def fewest(most: int, meets: Callable[[int], bool]) -> int | None:
    """The least count from 1 to `most` that meets a condition, once met always met; None where none does.

    Doubles, then halves: few are what is mostly needed, and each trial takes seconds.
    """
    low, high = 0, 1
    while high <= most and not meets(high):
        low, high = high, min(2 * high, most) if high < most else most + 1
    if high > most:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def _calibrated(mended: Mended, ranges: Ranges) -> Calibrated:
    return Calibrated(mended.program, ranges, mended.repairs)


def _out_of_reach(tradeoff: Tradeoff) -> str:
    best = tradeoff.best
    return (
        f"--max-drop {tradeoff.max_drop:g} cannot be met: the best of {len(tradeoff.rungs)} rungs, {best.name!r}, "
        f"drops {best.drop_points:.2f} points of {tradeoff.measure} on {tradeoff.photos_count} photos; "
        "nothing was written.\n"
        f"Allow more, calibrate on other photos, or take --precision float16. With over {MOST_FLOAT:.0%} of "
        "multiply-accumulates in float it would be no int8 file."
    )
