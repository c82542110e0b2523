"""DVT, the Dynamic Vision Transformer (Wang et al., NeurIPS 2021, arXiv 2105.15075), with DeiT-S, for ImageNet.

Three transformers see the photo as 7x7, 10x10 and 14x14 patches. Each later one reads the features and the relations
of the one before. Keys are those of the authors' `DVT_Deit_small` checkpoint, which holds all three.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from acmix.toolkit.adaptive.spec import AdaptiveSpec, Photo, Run, Stage, zoo
from acmix.toolkit.adaptive.table import published_thresholds
from acmix.toolkit.models._dvt_layers import MatrixResize, TokenResize, Transformer, Width
from acmix.toolkit.spec import Claims, ModelSpec, StateDict, TensorSpec, imagenet_preprocess

IMAGE_SIZE = 224
PAPER = "https://arxiv.org/abs/2105.15075"
PARTS = ("less_less_token", "less_token", "normal_token")
"""The transformers as the checkpoint calls them, coarse to fine."""
PATCHES = ((32, 0), (23, 3), (16, 0))
"""Side and padding of the patches of each."""
GRIDS = (7, 10, 14)
DEIT_SMALL = Width()


def keys_of_part(state: StateDict, part: str) -> StateDict:
    """One transformer of a file of all three; a bare state dict as it is."""
    if not any(key.startswith(f"{name}.") for key in state for name in PARTS):
        return state
    return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}


def build_transformer(number: int, width: Width = DEIT_SMALL, grids: tuple[int, ...] = GRIDS) -> Transformer:
    """Transformer number 0, 1 or 2."""
    before = grids[number - 1] if number else None
    return Transformer(width, PATCHES[number], (grids[number], grids[number]), before, number == len(grids) - 1)


def resize_by_matrices(module: nn.Module, target: str) -> nn.Module:
    """The same transformer with a constant matrix for every resize of tokens, for any target."""
    made = copy.deepcopy(module)
    dtype = next(p.dtype for p in made.parameters())
    with torch.no_grad():
        for owner in list(made.modules()):
            if isinstance(resize := getattr(owner, "resize", None), TokenResize):
                owner.resize = MatrixResize(resize, dtype)
    return made


def at_size(spec: ModelSpec, size: tuple[int, int]) -> ModelSpec:
    """The first transformer for another image: it has other positions then, so that no published file fits."""
    patch = PATCHES[0][0]
    grid = (size[0] // patch, size[1] // patch)
    return replace(spec, build=partial(Transformer, DEIT_SMALL, PATCHES[0], grid, None, False))


def transformer(name: str, number: int, claims: Claims, width: Width = DEIT_SMALL, side: int = IMAGE_SIZE) -> ModelSpec:
    """Transformer number 0, 1 or 2 for square images of `side`; the later two take what the one before found."""
    grids = tuple((side + 2 * padding) // patch for patch, padding in PATCHES)
    inputs: tuple[TensorSpec, ...] = (TensorSpec("image", (1, 3, side, side), layout="nchw"),)
    if number:
        tokens, count = 1 + grids[number - 1] ** 2, width.depth * width.heads
        inputs += (
            TensorSpec("features", (1, tokens, width.channels)),
            TensorSpec("relations", (1, count, tokens, tokens), layout="nchw"),
        )
    is_last = number == len(PARTS) - 1
    return ModelSpec(
        name=name,
        build=partial(build_transformer, number, width, grids),
        inputs=inputs,
        outputs=("logits",) if is_last else ("logits", "found_features", "found_relations"),
        preprocess=None if number else imagenet_preprocess(side),
        for_inference=resize_by_matrices,
        adapt_checkpoint=partial(keys_of_part, part=PARTS[number]),
        resized=None if number else at_size,
        paper=PAPER,
        claims=claims,
    )


# The authors' counts and accuracies stand in the checkpoint and in figures alone.
MODELS: dict[str, ModelSpec] = {
    "dvt_deit_small_7x7": transformer(
        "dvt_deit_small_7x7", 0, claims=Claims(macs_note="counts are in the checkpoint alone")
    ),
    "dvt_deit_small_10x10": transformer(
        "dvt_deit_small_10x10", 1, claims=Claims(macs_note="counts are in the checkpoint alone")
    ),
    "dvt_deit_small_14x14": transformer(
        "dvt_deit_small_14x14", 2, claims=Claims(macs_note="counts are in the checkpoint alone")
    ),
}


def coarse_to_fine(name: str, networks: tuple[ModelSpec, ...]) -> AdaptiveSpec:
    """The transformers one behind the other; each looks at the same crop of the photo."""
    stages = []
    for number, (part, spec) in enumerate(zip(PARTS, networks, strict=True), 1):
        seen = ("image",) if number == 1 else ("image", f"features_{number - 1}", f"relations_{number - 1}")
        found = (f"logits_{number}", f"features_{number}", f"relations_{number}")[: len(spec.outputs)]
        run = Run(part, seen, found)
        photo = () if spec.preprocess is None else (Photo(spec.preprocess, "image"),)
        stages.append(Stage(f"exit_{number}", (*photo, run), f"logits_{number}"))
    return AdaptiveSpec(
        name,
        name,
        {part: zoo(spec) for part, spec in zip(PARTS, networks, strict=True)},
        tuple(stages),
        paper=PAPER,
        threshold_table=published_thresholds,
        one_checkpoint=True,
    )


ADAPTIVE: dict[str, AdaptiveSpec] = {
    "dvt_deit_small": coarse_to_fine("dvt_deit_small", tuple(MODELS.values())),
}
