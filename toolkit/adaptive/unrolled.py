"""unrolled:MODEL, an adaptive model as one ordinary network: photos in, the logits of every exit out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from acmix.toolkit import catalog
from acmix.toolkit.adaptive.find import find_adaptive, names_adaptive
from acmix.toolkit.adaptive.spec import AdaptiveSpec, Crop, Photo, Stage, Step, check_stages
from acmix.toolkit.errors import UsageError
from acmix.toolkit.manifest import WeightsKind, WeightsOrigin
from acmix.toolkit.source import UNROLLED, ModelSource
from acmix.toolkit.spec import ModelSpec, TensorSpec

if TYPE_CHECKING:
    from torch import nn

OWN_WEIGHTS = "each network's own weights"


@dataclass(frozen=True, kw_only=True)
class UnrolledSpec(ModelSpec):
    """The one network that all stages of an adaptive model make, run without any exit."""

    adaptive: AdaptiveSpec


def find_unrolled(reference: str) -> ModelSource:
    """What --model unrolled:MODEL names; raises UsageError where MODEL has no exits to unroll."""
    inner = reference.removeprefix(UNROLLED)
    own = ":" in inner or inner.endswith(".pt2")
    if not names_adaptive(inner) and (own or inner in {card.name for card in catalog.model_cards()}):
        raise UsageError(
            f"{inner} is no adaptive model: its file is one graph already.\n"
            "Leave --unrolled out, or name one that `acmix list models` shows under 'Adaptive'."
        )
    return unrolled(find_adaptive(inner, imagenet=True))


def unrolled(adaptive: AdaptiveSpec) -> ModelSource:
    """One network of all stages.

    Its inputs are the distinct ways in which stages see the photo, its outputs the logits of every exit, then every
    predicted place, so that a host knows which patch was looked at.
    Raises UsageError for stages that do not fit together.
    """
    check_stages(adaptive.stages, set(adaptive.networks))
    photos = distinct_photos(adaptive.stages)
    exits = tuple(stage.logits for stage in adaptive.stages)
    places = tuple(step.action for step in steps_of(adaptive.stages) if isinstance(step, Crop))
    spec = UnrolledSpec(
        name=f"{adaptive.name}_unrolled",
        build=partial(_built, adaptive),
        inputs=tuple(TensorSpec(p.gives, (1, 3, *p.preprocess.crop), layout="nchw") for p in photos),
        outputs=(*exits, *dict.fromkeys(places)),
        preprocess=photos[0].preprocess,
        further_preprocess=tuple(photo.preprocess for photo in photos[1:]),
        for_inference=partial(_in_one_graph, adaptive),
        # A place is two numbers, as wide as the scores of two classes.
        exits=exits,
        float_only=CROP_IN_INTEGERS if places else "",
        paper=adaptive.paper,
        adaptive=adaptive,
    )
    return ModelSource(f"{UNROLLED}{adaptive.reference}", "unrolled", spec)


CROP_IN_INTEGERS = (
    "it cuts patches at places that it predicts, and a place rounded to 8 bits cuts another patch.\n"
    "Take float32 or float16, or leave --unrolled out: then only the networks become integers"
)


def steps_of(stages: tuple[Stage, ...]) -> list[Step]:
    """The steps of all stages, in order."""
    return [step for stage in stages for step in stage.steps]


def distinct_photos(stages: tuple[Stage, ...]) -> tuple[Photo, ...]:
    """The first step of each preprocessing: stages that see the photo in the same way share it."""
    found: dict[object, Photo] = {}
    for step in steps_of(stages):
        if isinstance(step, Photo):
            found.setdefault(step.preprocess, step)
    return tuple(found.values())


def networks_of(source: ModelSource) -> tuple[ModelSource, ...]:
    """The networks that a model is made of: those of an unrolled one, or itself."""
    spec = source.spec
    return tuple(spec.adaptive.networks.values()) if isinstance(spec, UnrolledSpec) else (source,)


def refuse_one_file(adaptive: AdaptiveSpec, weights: str | None) -> None:
    """Raise UsageError for --weights FILE where each network has a file of its own."""
    if weights not in (None, "random") and not adaptive.one_checkpoint:
        raise UsageError(
            f"--weights {weights}: each network of {adaptive.name} has weights of its own.\nLeave --weights out."
        )


def join_origins(origins: Sequence[WeightsOrigin], digest: str, seed: int) -> WeightsOrigin:
    """Where the weights of all networks came from, as of one; random if those of any are."""
    kinds = [origin.kind for origin in origins]
    only: WeightsKind = kinds[0] if len(set(kinds)) == 1 else "as_built"
    kind: WeightsKind = "random" if "random" in kinds else only
    # Said, since the same networks with --weights random would be others.
    sources = [origin.source for origin in origins] if kind == only else [OWN_WEIGHTS]
    return WeightsOrigin(
        kind,
        digest,
        _joined(sources),
        _joined(origin.licence for origin in origins),
        seed if kind == "random" else None,
        _joined(origin.report for origin in origins),
    )


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(text for text in texts if text))


def _built(adaptive: AdaptiveSpec) -> nn.Module:
    from acmix.toolkit.adaptive.graph import Unrolled

    return Unrolled(adaptive.stages, {name: source.spec.build() for name, source in adaptive.networks.items()})


def _in_one_graph(adaptive: AdaptiveSpec, module: nn.Module, target: str) -> nn.Module:
    from acmix.toolkit.adaptive.graph import Unrolled, in_one_graph

    assert isinstance(module, Unrolled)
    return in_one_graph(module, {name: source.spec for name, source in adaptive.networks.items()}, target)
