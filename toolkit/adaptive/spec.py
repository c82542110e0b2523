"""What an adaptive model is: ordinary networks, the stages that run them, and the host steps in between."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from acmix.toolkit.errors import UsageError
from acmix.toolkit.policy import Rule
from acmix.toolkit.source import ModelSource
from acmix.toolkit.spec import ModelSpec, Preprocess


class Photo(msgspec.Struct, frozen=True, tag="photo", tag_field="do"):
    """The photo resized, cropped and normalised: a value [1, 3, H, W]."""

    preprocess: Preprocess
    gives: str


class Resize(msgspec.Struct, frozen=True, tag="resize", tag_field="do"):
    """An image value at another size (height, width): bicubic between aligned corners."""

    source: str
    size: tuple[int, int]
    gives: str


class Crop(msgspec.Struct, frozen=True, tag="crop", tag_field="do"):
    """The patch whose place a network predicts, of size (height, width), from an image value.

    action: a value [1, 2] in 0 to 1; the corner is row floor(a0 (H - height)), column floor(a1 (W - width)).
    """

    source: str
    action: str
    size: tuple[int, int]
    gives: str


class Zeros(msgspec.Struct, frozen=True, tag="zeros", tag_field="do"):
    """A value of float32 zeros, for a state that has no past."""

    shape: tuple[int, ...]
    gives: str


class Run(msgspec.Struct, frozen=True, tag="run", tag_field="do"):
    """One inference: values to the network's inputs, its outputs to values, each in their order."""

    network: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]


Step = Photo | Resize | Crop | Zeros | Run


class Stage(msgspec.Struct, frozen=True):
    """The steps up to one exit. Values of earlier stages stay known; logits: the value that the exit looks at."""

    name: str
    steps: tuple[Step, ...]
    logits: str


@dataclass(frozen=True)
class AdaptiveSpec:
    """Networks by name, each an ordinary model, and the stages that run them; the last stage always ends.

    A network may run in several stages: it is one file. reference: what --model says.
    threshold_table: reads the operating points that a published checkpoint carries, one row of thresholds each.
    """

    name: str
    reference: str
    networks: dict[str, ModelSource]
    stages: tuple[Stage, ...]
    rule: Rule = "max_softmax"
    paper: str = ""
    threshold_table: Callable[[str], tuple[tuple[float, ...], ...]] | None = None
    one_checkpoint: bool = field(default=False)
    """Whether --weights FILE holds the weights of all networks; otherwise each has its own."""

    @property
    def preprocess(self) -> Preprocess:
        """How the first stage sees a photo."""
        return first_preprocess(self.stages)

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages)


def first_preprocess(stages: tuple[Stage, ...]) -> Preprocess:
    """How the first stage sees a photo; raises UsageError for stages that see none."""
    seen = (step.preprocess for stage in stages[:1] for step in stage.steps if isinstance(step, Photo))
    found = next(seen, None)
    if found is None:
        raise UsageError("the first stage of an adaptive model looks at the photo: it needs a step 'photo'.")
    return found


def zoo(spec: ModelSpec, reference: str = "") -> ModelSource:
    """A network of an adaptive model as --model would find it."""
    return ModelSource(reference or spec.name, "zoo", spec)


def own(spec: ModelSpec) -> ModelSource:
    """A network of a user's adaptive model, with the weights that its build() gives it."""
    return ModelSource(spec.name, "module", spec)


def taken(step: Step) -> tuple[str, ...]:
    """The values that a step reads."""
    if isinstance(step, Run):
        return step.takes
    if isinstance(step, Crop):
        return (step.source, step.action)
    return (step.source,) if isinstance(step, Resize) else ()


def given(step: Step) -> tuple[str, ...]:
    """The values that a step makes."""
    return step.gives if isinstance(step, Run) else (step.gives,)


def check_spec(spec: AdaptiveSpec) -> None:
    """Raise UsageError as `check_stages` does, and where a step runs a network with other values than it takes.

    Also for names that torch refuses for a part of a network.
    """
    _refuse_dots("network", spec.networks)
    _refuse_dots("value", [value for stage in spec.stages for step in stage.steps for value in given(step)])
    check_stages(spec.stages, set(spec.networks))
    if not re.fullmatch(r"\w[\w.-]*", spec.name):
        raise UsageError(f"an adaptive model is called {spec.name!r}; folders are named after it.\nTake letters and _.")
    for step in (step for stage in spec.stages for step in stage.steps):
        if isinstance(step, Run):
            network = spec.networks[step.network].spec
            for what, values, wanted in (("takes", step.takes, network.inputs), ("gives", step.gives, network.outputs)):
                if len(values) != len(wanted):
                    raise UsageError(
                        f"the number of values that network {step.network!r} {what} is {len(wanted)} by its ModelSpec, "
                        f"{len(values)} by the stages.\nMend the AdaptiveSpec."
                    )


def _refuse_dots(what: str, names: Iterable[str]) -> None:
    for name in names:
        if not name or "." in name:
            raise UsageError(
                f"a {what} of the stages is called {name!r}; torch has no dots in names.\nTake letters and _."
            )


def check_stages(stages: tuple[Stage, ...], networks: set[str]) -> None:
    """Raise UsageError unless every value is made before it is read, once, and every network runs."""
    if not stages:
        raise UsageError("an adaptive model needs one stage at least.")
    first_preprocess(stages)
    for trouble in _troubles(stages, networks):
        raise UsageError(f"the stages do not fit together: {trouble}.\nMend the AdaptiveSpec, or export again.")


def _troubles(stages: tuple[Stage, ...], networks: set[str]) -> Iterator[str]:
    known: set[str] = set()
    images: set[str] = set()
    running: set[str] = set()
    for stage in stages:
        for step in stage.steps:
            for value in taken(step):
                if value not in known:
                    yield f"stage {stage.name!r} reads {value!r} before anything made it"
            if isinstance(step, Run):
                running.add(step.network)
            if isinstance(step, Crop) and step.source in known - images:
                yield (
                    f"stage {stage.name!r} crops {step.source!r}, which is no image: a crop is cut from what 'photo', "
                    "'resize' or another 'crop' makes"
                )
            if isinstance(step, Photo | Crop | Resize):
                images.add(step.gives)
            for value in given(step):
                if value in known:
                    yield f"stage {stage.name!r} makes {value!r} a second time"
                known.add(value)
        if stage.logits not in known:
            yield f"the exit of stage {stage.name!r} looks at {stage.logits!r}, which nothing made"
    if len({stage.name for stage in stages}) < len(stages):
        yield "two stages have the same name"
    if running != networks:
        yield f"the stages run {', '.join(sorted(running))}; there are {', '.join(sorted(networks))}"
