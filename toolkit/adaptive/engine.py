"""One photo through an adaptive model: stage by stage until one is sure, with every stage's own time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from acmix.toolkit.adaptive import host
from acmix.toolkit.adaptive.host import ImageLayout
from acmix.toolkit.adaptive.spec import Crop, Photo, Resize, Run, Stage, Zeros
from acmix.toolkit.policy import Policy, Rule, exit_test
from acmix.toolkit.spec import Layout, TensorSpec
from acmix.toolkit.target import Array, Runner, to_layout


@dataclass(frozen=True)
class Network:
    """A loaded network, eager or a saved file, with the interface of what it runs."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    run: Runner


@dataclass(frozen=True)
class StageTime:
    """Where a stage's time went: host steps, networks, the test whether to end."""

    host_ns: int
    network_ns: int
    exit_ns: int

    @property
    def total_ns(self) -> int:
        return self.host_ns + self.network_ns + self.exit_ns


@dataclass(frozen=True)
class StageResult:
    """What a stage gave: logits [classes], how sure it is, and where its crops were (row, column), by value.

    actions: what the networks predicted, before it became a corner.
    """

    stage: str
    logits: Array
    confidence: float
    corners: Mapping[str, tuple[int, int]]
    actions: Mapping[str, Array]
    time: StageTime


@dataclass(frozen=True)
class Trace:
    """One photo's way: the stages that ran, in order; the last of them answered."""

    stages: tuple[StageResult, ...]

    @property
    def exit(self) -> int:
        """The number of the stage that answered, from 0."""
        return len(self.stages) - 1

    @property
    def label(self) -> int:
        return int(self.stages[-1].logits.argmax())

    @property
    def total_ns(self) -> int:
        """Of every stage that ran, from the decoded photo to the answer."""
        return sum(stage.time.total_ns for stage in self.stages)


@dataclass(frozen=True)
class _Value:
    array: Array
    layout: Layout


Recorder = Callable[[str, Sequence[Array]], None]
"""Called with a network and the inputs that it is about to get."""


class Engine:
    """Runs the stages of an adaptive model on loaded networks.

    image_layout: how images are kept between steps; that of the networks' inputs saves a copy.
    """

    def __init__(self, stages: Sequence[Stage], networks: Mapping[str, Network], image_layout: ImageLayout) -> None:
        self.stages = tuple(stages)
        self.networks = networks
        self.image_layout = image_layout
        self._exit_tests: dict[Rule, list[Callable[[Array], float]]] = {}

    def __call__(self, photo: Array, policy: Policy | None, record: Recorder | None = None) -> Trace:
        """A decoded photo, uint8 [H, W, 3] RGB, to its trace; every stage runs where policy is None.

        Raises GateError when a confidence is no number or a predicted place is none, and what a runtime raises.
        """
        values: dict[str, _Value] = {}
        results: list[StageResult] = []
        thresholds = [None] * len(self.stages) if policy is None else [e.threshold for e in policy.exits]
        tests = self._tests(policy.rule if policy is not None else "max_softmax")
        for stage, threshold, test in zip(self.stages, thresholds, tests, strict=True):
            begin = time.perf_counter_ns()
            passage = _Passage(self, photo, values, record)
            for step in stage.steps:
                passage.take(step)
            logits = values[stage.logits].array.reshape(-1)
            before = time.perf_counter_ns()
            sure = test(logits)
            ends = threshold is not None and sure >= threshold
            end = time.perf_counter_ns()
            times = StageTime(before - begin - passage.network_ns, passage.network_ns, end - before)
            results.append(StageResult(stage.name, logits, sure, passage.corners, passage.actions, times))
            if ends:
                break
        return Trace(tuple(results))

    def _tests(self, rule: Rule) -> list[Callable[[Array], float]]:
        if rule not in self._exit_tests:
            self._exit_tests[rule] = [exit_test(rule, stage.name) for stage in self.stages]
        return self._exit_tests[rule]


class _Passage:
    """One photo in one stage: takes the steps, keeps corners and time."""

    def __init__(self, engine: Engine, photo: Array, values: dict[str, _Value], record: Recorder | None) -> None:
        self.engine = engine
        self.photo = photo
        self.values = values
        self.record = record
        self.network_ns = 0
        self.corners: dict[str, tuple[int, int]] = {}
        self.actions: dict[str, Array] = {}

    def take(self, step: Photo | Resize | Crop | Zeros | Run) -> None:
        """Add what the step makes to the values."""
        if isinstance(step, Run):
            return self._run(step)
        if isinstance(step, Photo):
            image: Array = host.normalised(host.fitted(self.photo, step.preprocess), step.preprocess)
            if self.engine.image_layout == "nchw":
                image = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
            made = _Value(image, self.engine.image_layout)
        elif isinstance(step, Resize):
            made = _Value(host.resized(*self._image(step.source), step.size), self.engine.image_layout)
        elif isinstance(step, Crop):
            made = self._crop(step)
        else:
            made = _Value(np.zeros(step.shape, np.float32), "any")
        self.values[step.gives] = made
        return None

    def _image(self, name: str) -> tuple[Array, ImageLayout]:
        return self.values[name].array, self.engine.image_layout

    def _crop(self, step: Crop) -> _Value:
        image, layout = self._image(step.source)
        action = self.values[step.action].array
        place = host.corner(action, host.sides(image, layout), step.size)
        self.corners[step.gives], self.actions[step.gives] = place, action
        return _Value(host.patch(image, layout, place, step.size), layout)

    def _run(self, step: Run) -> None:
        network = self.engine.networks[step.network]
        values = [self.values[name] for name in step.takes]
        pairs = zip(values, network.inputs, strict=True)
        fed = [to_layout(v.array, TensorSpec("", v.array.shape, layout=v.layout), spec) for v, spec in pairs]
        if self.record is not None:
            self.record(step.network, fed)
        begin = time.perf_counter_ns()
        outputs = network.run(fed)
        self.network_ns += time.perf_counter_ns() - begin
        for name, array, spec in zip(step.gives, outputs, network.outputs, strict=True):
            self.values[name] = _Value(array, spec.layout)
