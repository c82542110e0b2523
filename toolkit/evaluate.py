"""Accuracy on labelled photos, and agreement with the eager network, photo by photo."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from acmix.toolkit import catalog
from acmix.toolkit.adaptive.find import is_of_zoo
from acmix.toolkit.adaptive.unrolled import OWN_WEIGHTS
from acmix.toolkit.artifact import Artifact, check_digests, executed_by
from acmix.toolkit.errors import UsageError
from acmix.toolkit.execute import Interface, run_sample, snapped
from acmix.toolkit.profile import interface_of
from acmix.toolkit.samples import Samples
from acmix.toolkit.session import Session, SessionRequest, open_session
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Array
from acmix.toolkit.verify import snr_db

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """An artifact on a set of photos. Shares are 0 to 1; None where there are no labels or no eager network.

    agreement: share of photos whose top-1 is eager's. eager_missing says why there is no eager network.
    exit_top1: of every output of class scores, by name, where there are several; the others are of the last.
    """

    artifact: str
    samples: str
    digest: str
    photos: int
    top1: float | None
    top5: float | None
    eager_top1: float | None
    agreement: float | None
    worst_snr_db: float | None
    eager_missing: str = ""
    exit_top1: dict[str, float] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class SameTop1:
    """Two artifacts on the same photos: the share, 0 to 1, that both give the same top-1."""

    a: str
    b: str
    share: float


@dataclass(frozen=True)
class _Row:
    label: int | None
    found: Array
    eager: Array | None
    exits: tuple[Array, ...]


@dataclass(frozen=True)
class _Lane:
    """One artifact in its runtime: how it is fed, which outputs are class scores, and what it gave so far.

    grid: the preprocessing whose pixels its inputs are.
    """

    artifact: Artifact
    session: Session
    interface: Interface
    grid: Preprocess | None
    exits: tuple[int, ...]
    rows: list[_Row] = field(default_factory=list)

    def take(self, label: int | None, fed: Sequence[Array], eager: list[Array] | None) -> None:
        """Run one photo, which eager gave these outputs for."""
        found, scores = run_sample(self.session, fed, self.interface), self.exits[-1]
        exits = tuple(found[i] for i in self.exits)
        self.rows.append(_Row(label, found[scores], eager[scores] if eager else None, exits))


def evaluate(
    artifacts: Sequence[Artifact],
    samples: Samples,
    log: Path,
    advance: Callable[[int], None],
    model: str | None = None,
) -> tuple[list[Evaluation], list[SameTop1]]:
    """Run every photo through each saved file and once through eager float32; and how often two files agree.

    Raises UsageError when an artifact cannot run here, was changed, does not classify, or is of another network than
    the first.
    """
    requests = [_request(artifact) for artifact in artifacts]
    for other in artifacts[1:]:
        _check_alike(artifacts[0], other)
    eager, missing = rebuild(artifacts[0], model)
    labels = samples.labels or (None,) * len(samples)
    with ExitStack() as stack:
        lanes = [
            _lane(artifact, stack.enter_context(open_session(request, log)))
            for artifact, request in zip(artifacts, requests, strict=True)
        ]
        for count, (label, inputs) in enumerate(zip(labels, samples, strict=True), 1):
            wanted: dict[Preprocess | None, list[Array]] = {}
            for lane in lanes:
                fed = snapped(inputs, lane.grid)
                if eager is not None and lane.grid not in wanted:
                    wanted[lane.grid] = eager(fed)
                lane.take(label, fed, wanted.get(lane.grid))
            advance(count)
    between = [
        SameTop1(a.artifact.name, b.artifact.name, _same_top1(a.rows, b.rows))
        for a, b in itertools.combinations(lanes, 2)
    ]
    return [_judge(lane.artifact, samples, lane.rows, missing) for lane in lanes], between


def _lane(artifact: Artifact, session: Session) -> _Lane:
    session.load()
    manifest = artifact.manifest
    grid = manifest.preprocess if manifest.pixel_grid else None
    exits = outputs_of_scores(manifest.outputs, manifest.model.exits)
    return _Lane(artifact, session, interface_of(artifact), grid, exits)


def _request(artifact: Artifact) -> SessionRequest:
    """What runs the file, or UsageError where it is of no use here."""
    check_digests(artifact)
    if not artifact.manifest.model.classifies:
        raise UsageError(f"{artifact.name} gives no class scores, so there is no top-1 to evaluate.")
    by, reason = executed_by(artifact)
    if not by:
        raise UsageError(f"{artifact.name} cannot be evaluated on this host: {reason}")
    return artifact.session(by)


def _check_alike(first: Artifact, other: Artifact) -> None:
    """Eager runs once for all, so weights, inputs and what is made of a photo have to be the same."""
    one, two = first.manifest, other.manifest
    unlike = {
        "another model": one.model.source != two.model.source,
        "other weights": one.model.weights.digest != two.model.weights.digest,
        "other inputs": one.inputs != two.inputs,
        "other outputs": one.outputs != two.outputs,
        "another preprocessing": (one.preprocess, one.further_preprocess) != (two.preprocess, two.further_preprocess),
    }
    if words := [word for word, differs in unlike.items() if differs]:
        raise UsageError(
            f"{other.name} has {' and '.join(words)} than {first.name}, so the two are of different networks.\n"
            "Artifacts of one network are evaluated together; evaluate this one by itself."
        )


def _same_top1(ones: Sequence[_Row], others: Sequence[_Row]) -> float:
    hits = [one.found.argmax() == other.found.argmax() for one, other in zip(ones, others, strict=True)]
    return sum(map(bool, hits)) / len(hits)


def outputs_of_scores(outputs: Sequence[TensorSpec], exits: Sequence[str] = ()) -> tuple[int, ...]:
    """Which outputs are class scores, one for each exit: the named ones, else those as wide as the first."""
    if exits:
        return tuple(i for i, spec in enumerate(outputs) if spec.name in exits)
    return tuple(i for i, spec in enumerate(outputs) if spec.shape == outputs[0].shape)


def output_of_scores(outputs: Sequence[TensorSpec], exits: Sequence[str] = ()) -> int:
    """Which output to evaluate: the last with class scores, which of several exits is the best one."""
    return outputs_of_scores(outputs, exits)[-1]


def _judge(artifact: Artifact, samples: Samples, rows: Sequence[_Row], missing: str) -> Evaluation:
    labelled = [row for row in rows if row.label is not None]
    known = [(row, row.eager) for row in rows if row.eager is not None]
    ratios = [r for row, eager in known if (r := snr_db(eager, row.found)) is not None]

    def share(hits: list[bool]) -> float | None:
        return sum(hits) / len(hits) if hits else None

    return Evaluation(
        artifact.name,
        samples.name,
        samples.digest,
        len(rows),
        share([_among(row.found, row.label, 1) for row in labelled]),
        share([_among(row.found, row.label, 5) for row in labelled]),
        share([_among(row.eager, row.label, 1) for row in labelled if row.eager is not None]),
        share([int(eager.argmax()) == int(row.found.argmax()) for row, eager in known]),
        min(ratios, default=None),
        missing,
        _of_exits(artifact, labelled),
    )


def _of_exits(artifact: Artifact, rows: Sequence[_Row]) -> dict[str, float]:
    outputs = artifact.manifest.outputs
    names = [outputs[i].name for i in outputs_of_scores(outputs, artifact.manifest.model.exits)]
    if len(names) < 2 or not rows:
        return {}
    return {n: sum(_among(row.exits[i], row.label, 1) for row in rows) / len(rows) for i, n in enumerate(names)}


def _among(scores: Array, label: int | None, count: int) -> bool:
    return label in np.argsort(-scores.ravel(), kind="stable")[:count].tolist()


def rebuild(
    artifact: Artifact, model: str | None = None
) -> tuple[Callable[[Sequence[Array]], list[Array]] | None, str]:
    """The eager network that an artifact came from, or None and the reason; `model` as for --model.

    The weights' digest must be the manifest's, or nothing could be said about agreement.
    """
    from acmix.toolkit import capture, source

    record = artifact.manifest.model
    in_zoo = any(card.name == record.source for card in catalog.model_cards())
    in_zoo = in_zoo or (record.source.startswith(source.UNROLLED) and is_of_zoo(record.source))
    if model is None and not in_zoo:
        # A manifest may come from anywhere: it does not get to choose which Python file runs here.
        return None, f"it was made from {record.source}; run that again with --model {record.source}"
    reference = model or record.source
    fixed = reference.endswith(".pt2") or reference.startswith(source.UNROLLED)
    inputs = () if fixed else artifact.manifest.inputs
    options = {"file": record.weights.source, "random": "random"}
    option = None if record.weights.source == OWN_WEIGHTS else options.get(record.weights.kind)
    try:
        found = source.find_model(reference, inputs, artifact.manifest.preprocess)
        network = capture.build(found, option, record.weights.seed or 0)
    except UsageError as error:
        return None, str(error).splitlines()[0]
    if network.weights.digest != record.weights.digest:
        return None, f"{reference} has other weights now than when it was exported"
    return network, ""
