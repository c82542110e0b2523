"""GFNet's networks in stages: glance, then policy, patch, focus and cascaded head once for every further exit."""

from __future__ import annotations

from acmix.toolkit.adaptive.spec import AdaptiveSpec, Crop, Photo, Resize, Run, Stage, Step, Zeros, zoo
from acmix.toolkit.adaptive.table import published_thresholds
from acmix.toolkit.models._gfnet_networks import HIDDEN_CHANNELS
from acmix.toolkit.spec import ModelSpec, Preprocess

EXITS = 3


def glance_and_focus(
    name: str, networks: dict[str, ModelSpec], photo: Preprocess, side: int, paper: str, exits: int = EXITS
) -> AdaptiveSpec:
    """A whole pipeline (section 3).  networks: glance, policy, focus, head2, head3; side: of glance and patch."""
    first: tuple[Step, ...] = (
        Photo(photo, "image"),
        Resize("image", (side, side), "small"),
        Zeros((1, HIDDEN_CHANNELS), "hidden_1"),
        Run("glance", ("small",), ("logits_1", "embedding_1", "state_1")),
    )
    further = tuple(_stage(number, side) for number in range(2, exits + 1))
    return AdaptiveSpec(
        name,
        name,
        {role: zoo(spec) for role, spec in networks.items()},
        (Stage("glance", first, "logits_1"), *further),
        paper=paper,
        threshold_table=published_thresholds,
        one_checkpoint=True,
    )


def _stage(number: int, side: int) -> Stage:
    before, patch = number - 1, f"patch_{number}"
    steps = (
        Run("policy", (f"state_{before}", f"hidden_{before}"), (f"action_{number}", f"hidden_{number}")),
        Crop("image", f"action_{number}", (side, side), patch),
        Run("focus", (patch,), (f"embedding_{number}", f"state_{number}")),
        Run(f"head{number}", tuple(f"embedding_{i}" for i in range(1, number + 1)), (f"logits_{number}",)),
    )
    return Stage(f"focus_{number}", steps, f"logits_{number}")
