"""The ladder of `mixed`: repairs that cost nothing, then modules in float, until the accuracy is within budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch.export import ExportedProgram
from torch.fx import Graph

from acmix.calibration.calibrate import Mended, corrected, equalized, insufficient, mend
from acmix.calibration.collect import collect, collect_each
from acmix.calibration.leaks import leaks
from acmix.calibration.selection import CalibrationSamples, spread
from acmix.calibration.sensitivity import Tally, by_noise_per_mac, is_scores, require_classes, sensitivity
from acmix.calibration.simulation import Simulation, macs_of, size_bytes, total_macs, units
from acmix.calibration.tradeoff import Rung, Timer, Tradeoff, digest, file_name, timed
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.grid import Grid, choose_grid
from acmix.toolkit.quantize import graph_module
from acmix.toolkit.quantized import Calibrated, example_inputs
from acmix.toolkit.ranges import Array, Observer, Ranges
from acmix.toolkit.recipe import Recipe
from acmix.toolkit.samples import Samples

OTHER_OBSERVERS: tuple[Observer, ...] = ("minmax", "percentile")
"""Moving averages and entropy never did better than these: docs/quantization.md."""
MOST_FLOAT = 0.5
"""Of multiply-accumulates: with more in float, the file is no int8 file any more."""
SENSITIVITY_SAMPLES = 8
ALMOST_NONE = 0.02
"""Of photos that the float network has right, or half of what guessing has: the labels are wrong, or the weights."""

Report = Callable[[Rung], None]


@dataclass(frozen=True)
class Plan:
    """What the ladder found, in words that hold for every target's program: module names, not nodes."""

    recipe: Recipe
    kept: tuple[str, ...]
    tradeoff: Tradeoff


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
        remarks = insufficient(made.program, self.samples)
        return replace(made, repairs=(*in_words(self.plan), *made.repairs, *remarks))


def require_disjoint(samples: Samples, data: Samples) -> None:
    """Raise UsageError where photos that calibrate would also judge."""
    for found in leaks(samples, data):
        raise UsageError(
            f"--data is not held out: {found.sentence}\nGive photos to --data that --calibration does not have."
        )


def in_words(plan: Plan) -> tuple[str, ...]:
    """What the manifest says of the ladder."""
    t, rung = plan.tradeoff, plan.tradeoff.best
    said = (
        f"mixed: {rung.name!r}, rung {(t.chosen or 0) + 1} of {len(t.rungs)} tried, drops {rung.drop_points:.2f} points"
        f" of {t.measure} on {t.photos_count} photos of {t.photos_name}, simulated; {t.max_drop:g} were allowed",
        f"mixed: {file_name(t)} has sha256 {digest(t)}",
    )
    return (*said, f"mixed: kept float: {', '.join(plan.kept)}") if plan.kept else said


def nodes_of(graph: Graph, modules: Collection[str]) -> tuple[str, ...]:
    """The layers of some modules, by node, in one program; of modules inside them, where a form is split into parts."""
    found: list[str] = []
    for name, layers in units(graph).items():
        if any(name == module or name.startswith(f"{module}.") for module in modules):
            found.extend(layer.name for layer in layers)
    return tuple(found)


def apply(plan: Plan, program: ExportedProgram, samples: Samples, asked: Sequence[str] = ()) -> Calibrated:
    """Calibrate another program of the same network by the plan. asked: nodes that are float in any case."""
    kept = nodes_of(graph_module(program).graph, plan.kept)
    mended = mend(program, plan.recipe, samples, (*asked, *kept))
    return Calibrated(mended.program, collect(mended.program, samples, plan.recipe.observer), mended.repairs, kept)


@dataclass(frozen=True)
class Evaluation:
    """Photos in memory with the float program's outputs, to judge rungs on. float_right: None without labels."""

    data: Samples
    inputs: tuple[tuple[Array, ...], ...]
    wanted: tuple[tuple[Array, ...], ...]
    float_right: int | None

    @classmethod
    def of(cls, program: ExportedProgram, data: Samples) -> Evaluation:
        """Run the float program.

        Raises UsageError where its first output is no row of scores, and for labels that are not its classes.
        """
        run = Simulation(graph_module(program), Grid({}, frozenset(), frozenset(), frozenset()))
        inputs = tuple(data)
        wanted = tuple(tuple(array.copy() for array in run.outputs(sample)) for sample in inputs)
        if not wanted or not is_scores(wanted[0]):
            shape = "x".join(map(str, wanted[0][0].shape)) if wanted else "nothing"
            raise UsageError(
                f"--precision mixed counts right classes, and the first output is {shape}, no row of scores.\n"
                "Take --precision w8a8, and look at acmix analyze."
            )
        if data.labels is None:
            return cls(data, inputs, wanted, None)
        require_classes(data, wanted[0][0].size)
        right = sum(int(w[0].argmax()) == label for w, label in zip(wanted, data.labels, strict=True))
        if right <= max(ALMOST_NONE, 0.5 / wanted[0][0].size) * len(data):
            raise UsageError(
                f"the float network is right on {right} of {len(data)} photos of {data.name}, so no accuracy is left "
                "to hold: do the labels count like its classes?\nGive the numbers of its classes in labels.csv or as "
                "folder names, and trained weights; or give the photos without labels: then agreement is held."
            )
        return cls(data, inputs, wanted, right)


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
        self.rungs: list[Rung] = []
        self.tried: list[tuple[Recipe, Mended, Calibrated]] = []

    def to(self, max_drop: float) -> tuple[Calibrated, Plan]:
        """The first rung within the budget. Raises GateError where there is none."""
        if any(rung.drop_points <= max_drop for rung in self._free_rungs()):
            return self._taken(max_drop, len(self.rungs) - 1)
        best = min(range(len(self.rungs)), key=lambda i: self.rungs[i].drop_points)
        order = self._order(self.tried[best][2])
        count = fewest(len(order), lambda few: self._keep_float(order[:few], best).drop_points <= max_drop)
        if count is None:
            raise GateError(_out_of_reach(self._tradeoff(max_drop, None)))
        return self._taken(max_drop, next(i for i, rung in enumerate(self.rungs) if len(rung.kept) == count))

    def _taken(self, max_drop: float, position: int) -> tuple[Calibrated, Plan]:
        recipe, _, calibrated = self.tried[position]
        return calibrated, Plan(recipe, self.rungs[position].kept, self._tradeoff(max_drop, position))

    def _tradeoff(self, max_drop: float, chosen: int | None) -> Tradeoff:
        data, size = self.on.data, size_bytes(graph_module(self.program), frozenset()) / 1e6
        right = self.on.float_right
        top1 = None if right is None else right / len(data)
        return Tradeoff(max_drop, data.name, len(data), data.digest, top1, size, tuple(self.rungs), chosen)

    def _free_rungs(self) -> Iterator[Rung]:
        """Repairs that cost no latency and no size, each measured when it is asked for."""
        begin = time.perf_counter()
        recipe, plain = self.recipe, Mended(self.program)
        mended = corrected(plain, recipe, self.samples, self.asked)
        ranges = collect_each(mended.program, self.samples, (recipe.observer, *OTHER_OBSERVERS))
        yield self._measure("w8a8", recipe, plain, _calibrated(mended, ranges[recipe.observer]), begin)
        for observer in OTHER_OBSERVERS:
            begin = time.perf_counter()
            other = replace(recipe, observer=observer)
            yield self._measure(f"{observer} ranges", other, plain, _calibrated(mended, ranges[observer]), begin)
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
        self, name: str, recipe: Recipe, before: Mended, made: Calibrated, begin: float, kept: tuple[str, ...] = ()
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
