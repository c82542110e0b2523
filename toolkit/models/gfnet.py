"""GFNet, Glance and Focus (Wang et al., NeurIPS 2020, arXiv 2010.05300; T-PAMI 2023, arXiv 2201.03014).

The networks of its MobileNetV3-Large pipelines, one model each: glance at the whole image, let the policy choose a
patch, focus on it, classify all embeddings so far by a cascaded head. Not to be confused with the Global Filter
Network of the same short name.  Names end in the width of the backbone in percent, then the patch size where that
is not the family's smallest.  The heads fit both patch sizes.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Literal

from acmix.toolkit.adaptive.spec import AdaptiveSpec
from acmix.toolkit.errors import UsageError
from acmix.toolkit.models._gfnet_networks import (
    EMBEDDING_CHANNELS,
    HIDDEN_CHANNELS,
    LAST_CHANNELS,
    CascadedHead,
    Focus,
    Glance,
    Policy,
    focus_for_inference,
    policy_for_inference,
)
from acmix.toolkit.models._gfnet_stages import glance_and_focus
from acmix.toolkit.spec import Claims, ModelSpec, StateDict, TensorSpec, imagenet_preprocess

IMAGE_SIZE = 224
STRIDE = 32
PAPER = "https://arxiv.org/abs/2010.05300"

Part = Literal["model_prime_state_dict", "model_state_dict", "policy", "fc"]
PARTS: tuple[Part, ...] = ("model_prime_state_dict", "model_state_dict", "policy", "fc")
"""The state dicts that one official file holds: glance, focus, policy, heads."""


def part_of_bundle(state: StateDict, part: Part) -> StateDict:
    """One network of an official file whose keys begin with the names of its PARTS; a bare state dict as it is.

    A `module.` before every key of the part (DataParallel) is cut off.
    Raises UsageError for a bundle without the part.
    """
    bundled = {name for name in PARTS if any(key.startswith(f"{name}.") for key in state)}
    if bundled and part not in bundled:
        raise UsageError(
            f"this GFNet file has no {part!r}; it has {', '.join(sorted(bundled))}.\n"
            "Load a file that was saved after the last training stage, or the network's own state dict."
        )
    if bundled:
        state = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
    wrapped = all(key.startswith("module.") for key in state)
    return {key.removeprefix("module."): value for key, value in state.items()} if wrapped else state


def head_of_bundle(state: StateDict, step: int) -> StateDict:
    """One cascaded head: the official files hold heads 2 to 5 whatever the number of their steps."""
    others = re.compile(rf"fc_(?!{step}\.)\d+\.(weight|bias)$")
    return {key: value for key, value in part_of_bundle(state, "fc").items() if not others.match(key)}


def _image(side: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("image", (1, 3, side, side), layout="nchw"),)


def _glance(name: str, width: float, side: int, claims: Claims) -> ModelSpec:
    """The pipeline shrinks a photo's 224 px crop between aligned corners; a photo for this network alone is cropped."""
    return ModelSpec(
        name=name,
        build=partial(Glance, width),
        inputs=_image(side),
        outputs=("logits", "embedding", "state"),
        preprocess=imagenet_preprocess(side),
        adapt_checkpoint=partial(part_of_bundle, part="model_prime_state_dict"),
        paper=PAPER,
        claims=claims,
    )


def _focus(name: str, width: float, side: int, claims: Claims) -> ModelSpec:
    """Patches keep the scale of the 224 px crop: a photo gives the one in its middle."""
    return ModelSpec(
        name=name,
        build=partial(Focus, width),
        inputs=_image(side),
        outputs=("embedding", "state"),
        preprocess=replace(imagenet_preprocess(IMAGE_SIZE), crop=(side, side)),
        for_inference=focus_for_inference,
        adapt_checkpoint=partial(part_of_bundle, part="model_state_dict"),
        classifies=False,
        paper=PAPER,
        claims=claims,
    )


def _policy(name: str, width: float, side: int, claims: Claims) -> ModelSpec:
    channels, cells = LAST_CHANNELS[width], side // STRIDE
    return ModelSpec(
        name=name,
        build=partial(Policy, channels, cells),
        inputs=(
            TensorSpec("state", (1, channels, cells, cells), layout="nchw"),
            TensorSpec("hidden", (1, HIDDEN_CHANNELS)),
        ),
        outputs=("action", "next_hidden"),
        for_inference=policy_for_inference,
        adapt_checkpoint=partial(part_of_bundle, part="policy"),
        classifies=False,
        paper=PAPER,
        claims=claims,
    )


def _head(name: str, step: int, claims: Claims) -> ModelSpec:
    return ModelSpec(
        name=name,
        build=partial(CascadedHead, step),
        inputs=tuple(TensorSpec(f"embedding_{i + 1}", (1, EMBEDDING_CHANNELS)) for i in range(step)),
        adapt_checkpoint=partial(head_of_bundle, step=step),
        paper=PAPER,
        claims=claims,
    )


# The authors count whole pipelines, to three exits: 43.1, 88.1 and 134.5 M multiply-accumulates for width 100 at
# 96 px. Those are one glance with its classifier (41.8 + 1.28 M), then for each further exit a policy step (0.74 M),
# a focus without classifier (41.8 M) and a head (2.56, 3.84 M). Shrinking the image for the glance is not counted.
# Claims are the terms of those sums; where no term was published (the policy of width 125), what the layers give.
MODELS: dict[str, ModelSpec] = {
    "gfnet_glance_100": _glance("gfnet_glance_100", 1.0, 96, claims=Claims(parameters=5_483_032, macs=43_100_000)),
    "gfnet_glance_100_128": _glance(
        "gfnet_glance_100_128", 1.0, 128, claims=Claims(parameters=5_483_032, macs=73_400_000)
    ),
    "gfnet_glance_125": _glance("gfnet_glance_125", 1.25, 128, claims=Claims(parameters=7_551_976, macs=119_500_000)),
    "gfnet_focus_100": _focus("gfnet_focus_100", 1.0, 96, claims=Claims(parameters=5_483_032, macs=41_800_000)),
    "gfnet_focus_100_128": _focus(
        "gfnet_focus_100_128", 1.0, 128, claims=Claims(parameters=5_483_032, macs=72_100_000)
    ),
    "gfnet_focus_125": _focus("gfnet_focus_125", 1.25, 128, claims=Claims(parameters=7_551_976, macs=118_200_000)),
    "gfnet_policy_100": _policy("gfnet_policy_100", 1.0, 96, claims=Claims(parameters=500_227, macs=740_000)),
    "gfnet_policy_100_128": _policy(
        "gfnet_policy_100_128", 1.0, 128, claims=Claims(parameters=557_571, macs=1_020_000)
    ),
    "gfnet_policy_125": _policy("gfnet_policy_125", 1.25, 128, claims=Claims(parameters=565_251, macs=1_139_200)),
    "gfnet_head2_100": _head("gfnet_head2_100", 2, claims=Claims(parameters=2_561_000, macs=2_560_000)),
    "gfnet_head3_100": _head("gfnet_head3_100", 3, claims=Claims(parameters=3_841_000, macs=3_840_000)),
    "gfnet_head2_125": _head("gfnet_head2_125", 2, claims=Claims(parameters=2_561_000, macs=2_560_000)),
    "gfnet_head3_125": _head("gfnet_head3_125", 3, claims=Claims(parameters=3_841_000, macs=3_840_000)),
}


def _pipeline(name: str, width: str, side: int, variant: str = "") -> AdaptiveSpec:
    """Three exits; `variant` names the networks of a patch size, where the family has two."""
    roles = {role: f"gfnet_{role}_{width}{variant}" for role in ("glance", "policy", "focus")}
    # The heads fit both patch sizes.
    roles |= {role: f"gfnet_{role}_{width}" for role in ("head2", "head3")}
    networks = {role: MODELS[model] for role, model in roles.items()}
    return glance_and_focus(name, networks, imagenet_preprocess(IMAGE_SIZE), side, PAPER)


ADAPTIVE: dict[str, AdaptiveSpec] = {
    "gfnet_100": _pipeline("gfnet_100", "100", 96),
    "gfnet_100_128": _pipeline("gfnet_100_128", "100", 128, "_128"),
    "gfnet_125": _pipeline("gfnet_125", "125", 128),
}
