"""Int8 that is slower than float on the device that was profiled, and the operators of the file that cause it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from acmix.toolkit.artifact import Artifact
from acmix.toolkit.manifest import Manifest
from acmix.toolkit.measurement import Measurement, Timings
from acmix.toolkit.ratio import Ratio, paired_ratio
from acmix.toolkit.target import Operator

MOST_REASONS = 6
"""Kinds of operators that are told; the rest is counted."""
MODULES_NAMED = 3
CHANGES = ("quantize", "dequantize")
"""How the names of operators begin that change between integers and float, in any format."""


@dataclass(frozen=True)
class SlowerInt8:
    """An int8 artifact that takes longer than the float one of the same model and target, in one measurement.

    ratio: int8 over float, its whole interval above 1. blame: what of the file runs in float or outside the delegate.
    """

    integer: str
    floating: str
    ratio: Ratio
    blame: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What was measured, what is to blame, and what to do."""
        known = f"{self.ratio.estimate:.2f} times as long ({self.ratio.low:.2f} to {self.ratio.high:.2f})"
        said = f"{self.integer} takes {known} as {self.floating}: int8 is slower than float here."
        causes = self.blame or ("every operator computes on integers inside the delegate: its int8 kernels are slow",)
        return "\n".join(
            [
                said,
                *(f"to blame: {cause}" for cause in causes),
                "-> Keep the float file for this device, or --precision w8 for a small one.",
            ]
        )


def slower_int8(artifacts: Sequence[Artifact], measurement: Measurement) -> tuple[SlowerInt8, ...]:
    """Every int8 artifact that is slower than a float one measured with it, beyond the interval of their ratio.

    artifacts: those of the measurement, in its order.  An emulated device says nothing about speed; nor do two
    artifacts of other models or targets about one another, or a ratio without an interval.
    """
    if measurement.is_emulated:
        return ()
    found = []
    timed = list(zip(artifacts, measurement.timings, strict=True))
    for integer, slow in timed:
        if not _is_int8(integer.manifest):
            continue
        for floating, base in timed:
            if floating.manifest.recipe.is_quantized or not _are_alike(integer.manifest, floating.manifest):
                continue
            ratio = _ratio(base, slow)
            if ratio is not None and ratio.low is not None and ratio.low > 1.0:
                found.append(SlowerInt8(integer.name, floating.name, ratio, blame(integer.manifest)))
    return tuple(found)


UNKNOWN_PLACES = "which operators leave the accelerator is known on the device alone"


def blame(manifest: Manifest) -> tuple[str, ...]:
    """What of a quantized file does not compute on integers inside its delegate, the weightiest first, in words."""
    outside = _outside(manifest.placement.operators)
    kept = manifest.quantization.kept_float if manifest.quantization else ()
    floating = []
    for one in sorted(kept, key=lambda k: -k.count):
        modules = ", ".join(name for name in one.modules[:MODULES_NAMED] if name)
        more = ", ..." if len(one.modules) > MODULES_NAMED else ""
        where = f" ({modules}{more})" if modules else ""
        floating.append(f"{one.count} x {one.operator}{where} in float: {one.reason}")
    found = [*outside, *floating]
    left = len(found) - MOST_REASONS
    changes = _changes(manifest)
    unknown = [UNKNOWN_PLACES] if any(op.delegated is None for op in manifest.placement.operators) else []
    rest = [f"{left} more kinds of operators"] if left > 0 else []
    return (*found[:MOST_REASONS], *rest, *changes, *unknown)


def _is_int8(manifest: Manifest) -> bool:
    return manifest.recipe.is_quantized and manifest.recipe.needs_ranges


def _are_alike(one: Manifest, other: Manifest) -> bool:
    """The same network in the same format, with the same options."""
    return (one.model.name, one.target.name, one.target.options) == (
        other.model.name,
        other.target.name,
        other.target.options,
    )


def _ratio(base: Timings, slow: Timings) -> Ratio | None:
    pairs = list(zip(base.processes, slow.processes, strict=False))
    return paired_ratio(pairs) if base.latency_ns and slow.latency_ns else None


def _outside(operators: Sequence[Operator]) -> list[str]:
    """The operators outside the delegate, a kind at a time: most multiply-accumulates first, then the most."""
    counts = Counter((op.kind, op.runs_on, op.reason) for op in operators if op.delegated is False)
    macs = Counter[tuple[str, str, str]]()
    for op in operators:
        macs[op.kind, op.runs_on, op.reason] += op.macs
    order = sorted(counts, key=lambda key: (-macs[key], -counts[key], key))
    return [
        f"{counts[key]} x {key[0]} outside the delegate ({key[1]})" + (f": {key[2]}" if key[2] else "") for key in order
    ]


def _changes(manifest: Manifest) -> list[str]:
    """Changes between integers and float, beyond those at the file's own inputs and outputs."""
    count = sum(op.kind.lower().rpartition("::")[2].startswith(CHANGES) for op in manifest.placement.operators)
    inside = count - len(manifest.file_inputs) - len(manifest.file_outputs)
    return [f"{inside} changes between integers and float inside the network"] if inside > 0 else []
