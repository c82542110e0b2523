"""The published networks that an adaptive artifact came from, built again and held to the weights' digests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acmix.toolkit.adaptive.artifact import AdaptiveArtifact
from acmix.toolkit.adaptive.find import find_adaptive, is_of_zoo
from acmix.toolkit.adaptive.runner import Loaded, eager_model
from acmix.toolkit.errors import UsageError

if TYPE_CHECKING:
    from acmix.toolkit.capture import Network
    from acmix.toolkit.manifest import WeightsOrigin
    from acmix.toolkit.source import ModelSource


def rebuild_adaptive(artifact: AdaptiveArtifact, model: str | None = None) -> tuple[Loaded | None, str]:
    """The artifact's stages on eager networks, or None and the reason.

    model: where the networks come from, when they are the user's own; raises UsageError where that is none.
    Every network's weights must have the digest that its manifest names, or nothing could be said about agreement.
    """
    source = model or artifact.manifest.source
    # A manifest may come from anywhere: it does not get to choose which Python code runs here.
    if model is None and not is_of_zoo(source):
        return None, f"it was made from {source}, which only its owner runs: --model file.py:NAME"
    networks: dict[str, Network] = {}
    try:
        spec = find_adaptive(source, imagenet=True)
        if spec.stages != artifact.manifest.stages or set(spec.networks) != set(artifact.networks):
            return None, f"{source} has other stages now than when it was exported"
        for name, found in spec.networks.items():
            origin = artifact.networks[name].manifest.model.weights
            networks[name] = _built(found, origin)
            if networks[name].weights.digest != origin.digest:
                return None, f"{name} of {source} has other weights now than when it was exported"
    except UsageError as error:
        if model is not None:
            raise
        return None, str(error).splitlines()[0]
    return eager_model(spec, networks), ""


def _built(source: ModelSource, origin: WeightsOrigin) -> Network:
    from acmix.toolkit import capture

    option = {"file": origin.source, "random": "random"}.get(origin.kind)
    return capture.build(source, option, origin.seed or 0)
