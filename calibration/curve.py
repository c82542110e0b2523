"""A picture of a calibration: accuracy against mean cost, with the one-model baselines on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from acmix.calibration.tradeoff import require_picture, whole
from acmix.toolkit.errors import UsageError
from acmix.toolkit.policy import Policy


@dataclass(frozen=True)
class Baseline:
    """A single model on the same photos: its mean cost in the calibration's unit, and its accuracy, 0 to 1."""

    name: str
    cost: float
    accuracy: float


def check_picture(file: Path) -> None:
    """Raise UsageError for a suffix that nobody draws, without matplotlib, and for a folder that is not there."""
    require_picture(file, "--picture")


def draw(file: Path, policy: Policy, baselines: Sequence[Baseline] = ()) -> None:
    """Write the picture; raises UsageError without a calibration, matplotlib or a known suffix."""
    calibration = policy.calibration
    if calibration is None:
        raise UsageError("there is no curve to draw: the thresholds were given, not calibrated.")
    check_picture(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure of its own: pyplot keeps figures and asks for a display.
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    costs = [point.cost for point in calibration.curve]
    shares = [100 * point.accuracy for point in calibration.curve]
    axes.plot(costs, shares, marker=".", label="operating points")
    cost, right = calibration.expected_cost, calibration.expected_accuracy
    axes.errorbar(
        cost.mean,
        100 * right.mean,
        xerr=[[max(0.0, cost.mean - cost.low)], [max(0.0, cost.high - cost.mean)]],
        yerr=[[100 * max(0.0, right.mean - right.low)], [100 * max(0.0, right.high - right.mean)]],
        fmt="o",
        capsize=3,
        label=f"{calibration.operating_point}, with 95 % intervals",
    )
    for baseline in baselines:
        axes.plot(baseline.cost, 100 * baseline.accuracy, "s", label=baseline.name)
    axes.set_xlabel(f"mean cost a photo in {calibration.unit}")
    right_word = "accuracy" if calibration.labelled else "agreement with the last stage"
    axes.set_ylabel(f"{right_word} on {calibration.photos} photos in %")
    axes.grid(alpha=0.3)
    # Below: inside it covers points, wherever it is.
    figure.legend(loc="outside lower center", fontsize="small", ncols=2)
    with whole(file) as part:
        figure.savefig(part, dpi=120, metadata={})
