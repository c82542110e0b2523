"""The runner: an adaptive artifact on its own host runtime; image in, label, exit and time of every stage out.

with load_adaptive(open_adaptive(folder)) as run:
    trace = run(pixels)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from acmix.toolkit import catalog
from acmix.toolkit.adaptive.artifact import AdaptiveArtifact
from acmix.toolkit.adaptive.engine import Engine, Network, Recorder, Trace
from acmix.toolkit.adaptive.host import ImageLayout
from acmix.toolkit.adaptive.spec import AdaptiveSpec, Photo, Run, Stage
from acmix.toolkit.artifact import Artifact, check_digests, executed_by
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.evaluate import output_of_scores
from acmix.toolkit.joining import open_runners
from acmix.toolkit.policy import OUT_OF_REACH, Policy, policy_of
from acmix.toolkit.spec import TensorSpec
from acmix.toolkit.target import Array, Runner

if TYPE_CHECKING:
    from acmix.toolkit.capture import Network as EagerNetwork


@dataclass(frozen=True)
class Loaded:
    """A loaded adaptive model. Call it with a decoded photo, uint8 [H, W, 3] RGB.

    reference: not the runtime, but the target's reference evaluator: it has no latency.
    """

    name: str
    engine: Engine
    policy: Policy
    reference: bool = False

    def __call__(self, photo: Array) -> Trace:
        """One photo, up to the first stage that is sure."""
        return self.engine(photo, self.policy)

    def every_stage(self, photo: Array, record: Recorder | None = None) -> Trace:
        """One photo through all stages, whatever they say."""
        return self.engine(photo, None, record)


def without_exits(loaded: Loaded) -> Loaded:
    """The same model on its way through every stage, whatever they say: what its exits save is measured against."""
    names = [stage.name for stage in loaded.engine.stages]
    policy = policy_of(loaded.policy.rule, names, [OUT_OF_REACH] * (len(names) - 1), None)
    return replace(loaded, name=f"{loaded.name}, every stage", policy=policy)


@contextmanager
def load_adaptive(artifact: AdaptiveArtifact, threads: int = 1) -> Iterator[Loaded]:
    """Load every network of an adaptive artifact; raises UsageError when its target cannot run here."""
    with load_stages(artifact.manifest.stages, artifact.networks, threads) as (engine, reference):
        yield Loaded(artifact.name, engine, artifact.policy, reference)


@contextmanager
def load_single(artifact: Artifact, threads: int = 1) -> Iterator[Loaded]:
    """An ordinary classifier as an adaptive model of one stage: the baseline, on the same runner."""
    check_digests(artifact)
    manifest = artifact.manifest
    if manifest.preprocess is None or not manifest.model.classifies:
        raise UsageError(f"{artifact.name} cannot take photos: it has no preprocessing or gives no class scores.")
    name = manifest.model.name
    gives = tuple(spec.name for spec in manifest.outputs)
    # Of several exits of one file the last is the best.
    scores = gives[output_of_scores(manifest.outputs, manifest.model.exits)]
    photos = tuple(
        Photo(way, f"photo_{i}") for i, way in enumerate((manifest.preprocess, *manifest.further_preprocess))
    )
    stage = Stage(name, (*photos, Run(name, tuple(photo.gives for photo in photos), gives)), scores)
    with load_stages((stage,), {name: artifact}, threads) as (engine, reference):
        yield Loaded(artifact.name, engine, policy_of("max_softmax", [name], (), None), reference)


@contextmanager
def load_stages(
    stages: tuple[Stage, ...], artifacts: Mapping[str, Artifact], threads: int
) -> Iterator[tuple[Engine, bool]]:
    """An engine on saved files, and whether reference evaluators stand in for the runtime.

    Raises GateError where a runtime refuses its file; so does the engine where one fails on a photo.
    """
    with load_networks(artifacts, threads) as networks:
        by_reference = any(executed_by(artifact)[0] == "reference" for artifact in artifacts.values())
        yield Engine(stages, networks, _image_layout(networks)), by_reference


@contextmanager
def load_networks(artifacts: Mapping[str, Artifact], threads: int) -> Iterator[dict[str, Network]]:
    """Saved files in this process, one that holds several networks once; raises as `load_stages` does."""
    with ExitStack() as stack:
        runners: dict[str, Runner] = {}
        for name, artifact in artifacts.items():
            by, reason = executed_by(artifact)
            if not by:
                raise UsageError(f"{artifact.name} cannot run on this host: {reason}")
            _refuse_pixels(artifact)
            if name not in runners:
                together = {n: a for n, a in artifacts.items() if a.model_file == artifact.model_file}
                runners |= _loaded(stack, together, threads, by == "reference")
        yield {
            name: Network(artifact.manifest.file_inputs, artifact.manifest.file_outputs, runners[name])
            for name, artifact in artifacts.items()
        }


def _loaded(stack: ExitStack, artifacts: Mapping[str, Artifact], threads: int, by_reference: bool) -> dict[str, Runner]:
    """One file in its runtime, in this process: a runner for each of its networks, whose errors name the artifact."""
    first = next(iter(artifacts.values()))
    target = catalog.load_target(first.manifest.target.name)
    functions = [artifact.function for artifact in artifacts.values() if artifact.function is not None]
    try:
        with _silenced():
            loading = open_runners(target, first.model_file, threads, functions, by_reference)
            runners = stack.enter_context(loading)
    except Exception as error:
        raise GateError(_failed(first, "refuses its file", error)) from error
    return {name: _guarded(artifacts[name], run) for name, run in zip(artifacts, runners, strict=True)}


def _guarded(artifact: Artifact, run: Runner) -> Runner:
    def guarded(inputs: Sequence[Array]) -> list[Array]:
        try:
            return run(inputs)
        except Exception as error:
            raise GateError(_failed(artifact, "fails on a photo", error)) from error

    return guarded


def _failed(artifact: Artifact, what: str, error: Exception) -> str:
    runtime = artifact.manifest.target.name
    return (
        f"{artifact.name}: the runtime of {runtime} {what}: {type(error).__name__}: {error}\n"
        "Check the network's file alone: acmix verify."
    )


@contextmanager
def _silenced() -> Iterator[None]:
    """What runtimes print in C++ while they load is for nobody: errors come as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _refuse_pixels(artifact: Artifact) -> None:
    if any(spec.layout == "image" for spec in artifact.manifest.file_inputs):
        raise UsageError(
            f"{artifact.name} takes pixels (--image-input); between stages images are normalised.\n"
            "Export without --image-input."
        )


def _image_layout(networks: Mapping[str, Network]) -> ImageLayout:
    layouts = [spec.layout for network in networks.values() for spec in network.inputs if len(spec.shape) == 4]
    return "nhwc" if "nhwc" in layouts else "nchw"


def eager_engine(stages: tuple[Stage, ...], networks: Mapping[str, EagerNetwork]) -> Engine:
    """The same stages on the published networks in eager float32: the reference."""
    bound = {
        # Eager keeps every value as its neighbours want it: no output needs a layout.
        name: Network(net.spec.inputs, tuple(TensorSpec(output, ()) for output in net.spec.outputs), net)
        for name, net in networks.items()
    }
    return Engine(stages, bound, "nchw")


def eager_model(spec: AdaptiveSpec, networks: Mapping[str, EagerNetwork]) -> Loaded:
    """The published networks as a loaded model, with thresholds that nobody chose."""
    names = spec.stage_names
    return Loaded(
        spec.name, eager_engine(spec.stages, networks), policy_of(spec.rule, names, [1.0] * (len(names) - 1), None)
    )
