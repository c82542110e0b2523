"""cascade:NAME@SIZE,NAME@SIZE: catalog models one behind the other, small first; each sees the photo anew."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from acmix.toolkit.adaptive.spec import AdaptiveSpec, Photo, Run, Stage
from acmix.toolkit.errors import UsageError
from acmix.toolkit.source import ModelSource, find_model
from acmix.toolkit.spec import Preprocess, TensorSpec, imagenet_preprocess

PREFIX = "cascade:"
EXAMPLE = "cascade:efficientnet_lite0@192,efficientnet_lite2@260"
LEAST_PIXELS = 32


def is_cascade(reference: str) -> bool:
    """Whether --model names a cascade."""
    return reference.startswith(PREFIX)


@dataclass(frozen=True)
class _Part:
    text: str
    model: str
    size: int | None


def cascade(reference: str, imagenet: bool = False) -> AdaptiveSpec:
    """The adaptive model that `cascade:...` names; @SIZE scales the preprocessing with the input.

    imagenet: models without a preprocessing of their own get ImageNet's, at their input's size.
    Raises UsageError for an unknown model, a size that is none, and models that cannot stand in a cascade.
    """
    parts = [_part(text.strip()) for text in reference.removeprefix(PREFIX).split(",")]
    sources = [_source(part, imagenet) for part in parts]
    names = [source.spec.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"{reference} names {name} twice: the second would answer as the first.\nGive it another size."
            )
    stages = tuple(_stage(number, source) for number, source in enumerate(sources, 1))
    networks = {source.spec.name: source for source in sources}
    return AdaptiveSpec(f"cascade_{'_'.join(names)}", reference, networks, stages)


def _part(text: str) -> _Part:
    model, at, size = text.rpartition("@")
    if not text or (at and not model):
        raise UsageError(f"a part of the cascade is empty.\nWrite {EXAMPLE}.")
    if not at:
        return _Part(text, text, None)
    if not (size.isascii() and size.isdecimal() and int(size) >= LEAST_PIXELS):
        raise UsageError(
            f"{text!r}: {size!r} is no input size in pixels, a whole number from {LEAST_PIXELS}.\nWrite {EXAMPLE}."
        )
    return _Part(text, model, int(size))


def _source(part: _Part, imagenet: bool) -> ModelSource:
    inputs = () if part.size is None else (TensorSpec("image", (1, 3, part.size, part.size), layout="nchw"),)
    source = find_model(part.model, inputs)
    spec = source.spec
    shapes = [one.shape for one in spec.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 3:
        raise UsageError(f"{part.text} cannot stand in a cascade: it takes {len(shapes)} inputs, not one RGB image.")
    if source.kind == "zoo" and (not spec.classifies or len(spec.outputs) != 1):
        raise UsageError(
            f"{part.text} cannot stand in a cascade: it gives {', '.join(spec.outputs)}, not one row of class scores."
            f"\nTake classifiers: {EXAMPLE}."
        )
    size = shapes[0][2]
    preprocess = spec.preprocess or _preprocess(part, size, imagenet)
    if preprocess.crop != shapes[0][2:]:
        raise UsageError(f"{part.text} crops photos to {preprocess.crop}, but takes {shapes[0][2:]}.")
    # Two sizes of one model are two files.
    name = re.sub(r"\W+", "_", Path(spec.name).stem) + f"_{size}"
    return replace(source, spec=replace(spec, name=name, preprocess=preprocess))


def _preprocess(part: _Part, size: int, imagenet: bool) -> Preprocess:
    if not imagenet:
        raise UsageError(
            f"{part.text} has no preprocessing, so a photo cannot become its input.\nAdd --preprocess imagenet."
        )
    return imagenet_preprocess(size)


def _stage(number: int, source: ModelSource) -> Stage:
    image, logits = f"image_{number}", f"logits_{number}"
    assert source.spec.preprocess is not None
    steps = (Photo(source.spec.preprocess, image), Run(source.spec.name, (image,), (logits,)))
    return Stage(source.spec.name, steps, logits)
