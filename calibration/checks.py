"""Whether samples are fit to calibrate on: before an export, from the samples alone, and from the ranges they give.

Every check is a function from what was measured to findings.  Thresholds come from measurements on 500 photos,
on documents, gradients and noise: docs/calibration.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from acmix.calibration.statistics import ImageStatistics, SampleStatistics, describe
from acmix.toolkit.errors import UsageError
from acmix.toolkit.samples import Samples
from acmix.toolkit.spec import Preprocess, TensorSpec

Kind = Literal["single", "constant", "noise", "rough", "duplicates", "value_range", "insufficient", "leak"]
RangesOf = Callable[[range], Mapping[str, tuple[float, float]]]
"""Of the samples at these positions."""

NOISE_CORRELATION, NOISE_SLOPE = 0.30, -0.75
"""Below this neighbour correlation and above this slope, an image is noise: photos reach 0.69 and -0.85."""
ROUGH_CORRELATION, ROUGH_SLOPE = 0.55, -0.50
"""The same for noise that was enlarged or compressed, which pages of tiny letters cannot be told from."""
SAME_PICTURE = 0.985
"""Correlation of two thumbnails from which they are one picture: copies keep 0.99, distinct photos reach 0.90."""
DUPLICATE_SHARE = 0.5
"""Of samples that repeat an earlier one, from which it is worth a word."""
RANGE_SLACK = 0.05
"""Of the preprocessing's range, by which values may leave it: rounding, and bicubic overshoot."""
NARROW_SHARE = 0.2
"""Of the preprocessing's range, under which all values together are suspiciously narrow."""
MEDIAN_DISAGREEMENT = 0.12
"""Of two halves' ranges, the median tensor: 2 photos give this, 16 or more gave at most 0.10."""
CLIPPED, CLIPPED_SHARE = 0.25, 0.10
"""More than this share of tensors losing more than CLIPPED of their width: 16 or more photos gave at most 0.07."""
LEAST_SAMPLES = 16
"""Halves of fewer can agree by chance."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with calibration samples, in a sentence, with the figures behind it."""

    kind: Kind
    severity: Literal["refuse", "warn"]
    sentence: str
    figures: dict[str, float] = field(default_factory=dict)


def check_samples(
    samples: Samples, inputs: tuple[TensorSpec, ...], preprocess: Preprocess | None
) -> tuple[Finding, ...]:
    """What is wrong with the samples themselves, most serious first; reads each once, and needs no network."""
    is_image = len(inputs) == 1 and len(inputs[0].shape) == 4 and inputs[0].shape[1] == 3
    described = [describe(sample, is_image) for sample in samples]
    found = [
        *single(described),
        *constant(described),
        *noise(described, samples.identifiers),
        *value_range(described, preprocess if is_image else None),
    ]
    return tuple(sorted(found, key=lambda finding: finding.severity != "refuse"))


def require_fit(findings: tuple[Finding, ...], name: str, accepted: bool) -> None:
    """Raise UsageError with every refusing finding, unless --accept-calibration was given."""
    refused = [finding.sentence for finding in findings if finding.severity == "refuse"]
    if refused and not accepted:
        raise UsageError(
            f"--calibration {name} is not fit to calibrate on: {' '.join(refused)}\n"
            "Give photos like those that the network will see, or --calibration builtin; "
            "--accept-calibration goes on all the same."
        )


def single(described: list[SampleStatistics]) -> list[Finding]:
    """One sample, or several that are all the same picture; duplicates among others."""
    pictures = _distinct(described)
    figures: dict[str, float] = {"samples": len(described), "distinct": pictures}
    if len(described) == 1:
        return [Finding("single", "refuse", "it holds a single sample, whose ranges fit that one alone.", figures)]
    if pictures == 1:
        sentence = f"its {len(described)} samples are all the same one, whose ranges fit that one alone."
        return [Finding("single", "refuse", sentence, figures)]
    if 1 - pictures / len(described) >= DUPLICATE_SHARE:
        sentence = f"only {pictures} of its {len(described)} samples are distinct pictures."
        return [Finding("duplicates", "warn", sentence, figures)]
    return []


def _distinct(described: list[SampleStatistics]) -> int:
    """How many samples are neither equal to an earlier one nor the same picture as it."""
    unique = list({sample.digest: sample for sample in described}.values())
    images = [s.image.thumbnail for s in unique if s.image is not None and not s.image.constant]
    if not images:
        return len(unique)
    alike = np.tril(np.stack(images) @ np.stack(images).T, -1) >= SAME_PICTURE
    return len(unique) - int(alike.any(axis=1).sum())


def constant(described: list[SampleStatistics]) -> list[Finding]:
    """Images of one value, of which nothing can be learnt."""
    empty = sum(sample.image is not None and sample.image.constant for sample in described)
    if not empty:
        return []
    sentence = f"{empty} of its {len(described)} images hold one value only."
    figures: dict[str, float] = {"samples": len(described), "constant": empty}
    return [Finding("constant", "refuse" if empty == len(described) else "warn", sentence, figures)]


def noise(described: list[SampleStatistics], identifiers: tuple[str, ...]) -> list[Finding]:
    """Images whose neighbouring pixels have nothing to do with each other, as those of photos do."""
    images = [(name, s.image) for name, s in zip(identifiers, described, strict=True) if s.image is not None]
    noisy = [name for name, image in images if _is_rough(image, NOISE_CORRELATION, NOISE_SLOPE)]
    rough = [name for name, image in images if _is_rough(image, ROUGH_CORRELATION, ROUGH_SLOPE)]
    correlations = [image.neighbour_correlation for _, image in images if image.neighbour_correlation is not None]
    slopes = [image.spectrum_slope for _, image in images if image.spectrum_slope is not None]
    if not noisy and len(rough) * 2 < max(1, len(images)):
        return []
    figures = {
        "samples": len(images),
        "noisy": len(noisy),
        "rough": len(rough),
        "neighbour_correlation": float(np.median(correlations)),
        "spectrum_slope": float(np.median(slopes)),
    }
    measured = (
        f"neighbouring pixels correlate by {figures['neighbour_correlation']:.2f} in the median, "
        "those of photos by 0.7 to 1"
    )
    if 2 * len(noisy) >= len(images):
        return [Finding("noise", "refuse", f"{len(noisy)} of its {len(images)} images are noise: {measured}.", figures)]
    if noisy:
        shown = ", ".join(noisy[:3]) + (", ..." if len(noisy) > 3 else "")
        return [Finding("noise", "warn", f"{len(noisy)} of its {len(images)} images are noise: {shown}.", figures)]
    sentence = f"{len(rough)} of its {len(images)} images are noise or very fine print: {measured}."
    return [Finding("rough", "warn", sentence, figures)]


def _is_rough(image: ImageStatistics, correlation: float, slope: float) -> bool:
    if image.neighbour_correlation is None or image.spectrum_slope is None:
        return False
    return image.neighbour_correlation < correlation and image.spectrum_slope > slope


def value_range(described: list[SampleStatistics], preprocess: Preprocess | None) -> list[Finding]:
    """Values that the preprocessing cannot have made: pixels where normalised values belong, or the reverse."""
    if preprocess is None or not described:
        return []
    limits = [((0 - mean) / std, (255 - mean) / std) for mean, std in zip(preprocess.mean, preprocess.std, strict=True)]
    least, most = min(low for low, _ in limits), max(high for _, high in limits)
    low, high = min(s.low[0] for s in described), max(s.high[0] for s in described)
    figures = {"low": low, "high": high, "least": least, "most": most}
    width = most - least
    said = f"its values go from {low:.4g} to {high:.4g}, and the preprocessing makes {least:.4g} to {most:.4g}"
    outside = max(least - low, high - most) > RANGE_SLACK * width
    narrow = high - low < NARROW_SHARE * width
    # Not one pixel of all samples darker than the mean: normalised photos do not do that.
    unit = low >= 0 and high <= 1 and (narrow or least < 0)
    if not (outside or narrow or unit):
        return []
    looks = ""
    if outside and low >= 0 and 1 < high <= 255:
        looks = ": they look like pixels of 0 to 255"
    elif unit:
        looks = ": they look like pixels divided by 255"
    elif narrow and low < 0:
        looks = ": they look like normalised values"
    return [Finding("value_range", "warn", f"{said}{looks}.", figures)]


@dataclass(frozen=True)
class HalvesAgreement:
    """How well the ranges of two halves agree.

    median_disagreement: of 1 - intersection / union, over the tensors, 0 to 1.
    clipped_share: of tensors where one half's range cuts off more than CLIPPED of the other's.
    """

    tensors: int
    median_disagreement: float
    clipped_share: float
    worst: str


def compare_ranges(
    first: Mapping[str, tuple[float, float]], second: Mapping[str, tuple[float, float]]
) -> HalvesAgreement:
    """The agreement of two sets of ranges, of the same tensors; a tensor without width in both counts as equal."""
    disagreements, clipped = {}, 0
    for name in sorted(first):
        (low, high), (other_low, other_high) = first[name], second[name]
        common = max(0.0, min(high, other_high) - max(low, other_low))
        union = max(high, other_high) - min(low, other_low)
        widest = max(high - low, other_high - other_low)
        disagreements[name] = 1 - common / union if union > 0 else 0.0
        clipped += widest > 0 and 1 - common / widest > CLIPPED
    if not disagreements:
        return HalvesAgreement(0, 0.0, 0.0, "")
    worst = max(disagreements, key=lambda name: disagreements[name])
    median = float(np.median(list(disagreements.values())))
    return HalvesAgreement(len(disagreements), median, clipped / len(disagreements), worst)


def sufficiency(count: int, ranges: RangesOf) -> tuple[Finding, ...]:
    """Whether the first half of the samples gives the ranges that the second half gives.

    Halves are cut in the samples' order, so that crops or frames of one scene do not stand on both sides.
    """
    if count < 2:
        return (Finding("insufficient", "warn", f"{count} sample cannot be halved to compare ranges.", {}),)
    half = count // 2
    agreement = compare_ranges(ranges(range(half)), ranges(range(half, count)))
    figures = {
        "samples": count,
        "tensors": agreement.tensors,
        "median_disagreement": agreement.median_disagreement,
        "clipped_share": agreement.clipped_share,
    }
    if agreement.median_disagreement > MEDIAN_DISAGREEMENT or agreement.clipped_share > CLIPPED_SHARE:
        sentence = (
            f"the ranges of its two halves disagree by {agreement.median_disagreement:.0%} in the median tensor, and "
            f"{agreement.clipped_share:.0%} of tensors lose more than {CLIPPED:.0%} of their width to the other half "
            f"(worst: {agreement.worst}): {count} samples are too few, or the halves show different things."
        )
        return (Finding("insufficient", "warn", sentence, figures),)
    if count < LEAST_SAMPLES:
        sentence = f"it holds {count} samples; below {LEAST_SAMPLES}, two halves can agree by chance."
        return (Finding("insufficient", "warn", sentence, figures),)
    return ()
