"""Tables of adaptive models for people: stages and exits, the way against eager, latency over photos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from acmix.apps.tables import needs, table

if TYPE_CHECKING:
    from acmix.toolkit.adaptive.artifact import AdaptiveArtifact, Sharing, WayProof
    from acmix.toolkit.adaptive.evaluate import AdaptiveEvaluation
    from acmix.toolkit.adaptive.measure import PhotoMeasurement
    from acmix.toolkit.policy import Policy


def summary(artifact: AdaptiveArtifact) -> Table:
    """Every stage with its networks, threshold, exit rate and cost."""
    manifest = artifact.manifest
    calibration = artifact.policy.calibration
    caption = f"{artifact.name}: {artifact.size_bytes / 1e6:.2f} MB, rule {manifest.rule}"
    if manifest.sharing is not None:
        caption += f"\n{weights_of(manifest.sharing)}"
    if calibration is not None:
        cost, right = calibration.expected_cost, calibration.expected_accuracy
        word = "accuracy" if calibration.labelled else "agreement with the last stage"
        caption += (
            f"\nexpected at {calibration.operating_point} ({calibration.photos} photos): {cost.mean:.2f} "
            f"[{cost.low:.2f}, {cost.high:.2f}] {calibration.unit}, {word} {right.mean:.1%} "
            f"[{right.low:.1%}, {right.high:.1%}]; the last stage alone {calibration.last_accuracy:.1%}"
        )
    caption += "".join(f"\n{need}" for need in needs(network.manifest for network in artifact.networks.values()))
    made = table("stage", ">ends at", ">of photos", ">MMAC so far", ">cost alone", caption=caption)
    for number, one in enumerate(artifact.policy.exits):
        threshold = "always" if one.threshold is None else f"{one.threshold:.4f}"
        rate = f"{calibration.exit_rates[number]:.0%}" if calibration else "-"
        cost_alone = f"{calibration.costs[number]:.2f} {calibration.unit}" if calibration else "-"
        made.add_row(one.stage, threshold, rate, f"{manifest.exit_macs[number] / 1e6:.1f}", cost_alone)
    return made


def weights_of(sharing: Sharing) -> str:
    """In a sentence: do the networks share their weights?"""
    if not sharing.file:
        return f"weights are not shared: {sharing.reason}"
    saved = 1 - sharing.size_bytes / sharing.separate_bytes
    return (
        f"all networks in {sharing.file}, {sharing.size_bytes / 1e6:.2f} MB, equal weights once; separate files would "
        f"take {sharing.separate_bytes / 1e6:.2f} MB ({saved:.0%} saved)"
    )


def way(proof: WayProof) -> str:
    """In a sentence: does the artifact go the way of eager?"""
    if proof.verdict == "not executed":
        return f"The way was not proven: {proof.reason}"
    word = "✓" if proof.verdict == "passed" else "✗"
    crops = (
        f"; places within {proof.place_error_pixels:.3f} px (granted {proof.place_margin_pixels:.3f})"
        if proof.place_margin_pixels
        else ""
    )
    return (
        f"{word} same exit as eager on {proof.same_exit} of {proof.photos} photos, same crops on {proof.same_crops}, "
        f"{proof.within_margin} differ within the margin; confidences within {proof.confidence_error:.1e} "
        f"(granted {proof.confidence_margin:.1e}){crops}"
    )


def calibration_table(policy: Policy) -> Table:
    """The curve of a calibration, the chosen point marked."""
    calibration = policy.calibration
    assert calibration is not None
    made = table("", ">mean cost", ">accuracy", "thresholds", "exits", caption=f"costs in {calibration.unit}")
    for point in calibration.curve:
        chosen = "chosen" if point.thresholds == policy.thresholds else ""
        thresholds = ", ".join(f"{t:.4f}" for t in point.thresholds)
        rates = ", ".join(f"{rate:.0%}" for rate in point.exit_rates)
        made.add_row(chosen, f"{point.cost:.2f}", f"{point.accuracy:.1%}", thresholds, rates)
    cost, right = calibration.expected_cost, calibration.expected_accuracy
    made.add_row(
        "expected",
        f"{cost.mean:.2f} [{cost.low:.2f}, {cost.high:.2f}]",
        f"{right.mean:.1%} [{right.low:.1%}, {right.high:.1%}]",
        ", ".join(f"{t:.4f}" for t in policy.thresholds),
        ", ".join(f"{rate:.0%}" for rate in calibration.exit_rates),
    )
    return made


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _as_expected(found: bool | None) -> str:
    return {None: "-", True: "as expected", False: "NOT as expected"}[found]


def evaluation_table(result: AdaptiveEvaluation, stages: Sequence[str]) -> Table:
    """Accuracy and exits of an adaptive artifact on photos."""
    made = table("on photos", ">found", "calibration said")
    made.add_row("photos", str(result.photos), "")
    made.add_row("top-1", _percent(result.top1), _as_expected(result.accuracy_as_expected))
    made.add_row("top-5", _percent(result.top5), "")
    made.add_row("top-1 of the last stage", _percent(result.last_top1), "")
    for stage, rate in zip(stages, result.exit_rates, strict=True):
        made.add_row(f"ended at {stage}", f"{rate:.1%}", "")
    if result.expected_cost is not None:
        made.add_row("mean cost", f"{result.expected_cost:.2f} {result.unit}", _as_expected(result.cost_as_expected))
    made.add_row("mean MMAC", f"{result.mean_macs / 1e6:.1f}", "")
    return made


def latency_table(measurement: PhotoMeasurement, labels: Sequence[int] | None) -> Table:
    """Latency over photos, in ms, with the exits; ratios are of means, to the first model."""
    made = table(
        "artifact",
        ">mean ms",
        ">p50",
        ">p90",
        ">p99",
        ">ratio",
        ">networks ms",
        ">exit test us",
        ">MMAC",
        ">top-1",
        "exits",
        caption=f"{measurement.photos} photos, {measurement.rounds} rounds, from the decoded photo to the answer",
    )
    from acmix.toolkit.adaptive.measure import photo_summaries

    for row, t in zip(photo_summaries(measurement), measurement.timings, strict=True):
        made.add_row(
            t.artifact,
            f"{t.mean_ms:.2f}",
            *(f"{t.percentile_ms(p):.2f}" for p in (50, 90, 99)),
            f"{row['ratio']:.3f}",
            f"{t.mean_network_ms:.2f}",
            f"{row['exit_test_us']:.0f}",
            f"{t.mean_macs / 1e6:.1f}",
            _percent(t.accuracy(labels) if labels else None),
            ", ".join(f"{rate:.0%}" for rate in t.exit_rates),
        )
    return made
