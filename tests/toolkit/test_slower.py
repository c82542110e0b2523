"""The warning that int8 is slower than float: when it comes, when it must not, and whom it blames."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from acmix.apps import profiles
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.conditions import Conditions, Gate, Identity
from acmix.toolkit.measure import Plan
from acmix.toolkit.measurement import Measurement, Timings
from acmix.toolkit.slower import blame, slower_int8
from acmix.toolkit.verdict import judge

Exported = Callable[[str], dict[str, Artifact]]
ACMIX = Path(sys.executable).with_name("acmix")


def measured(artifacts: list[Artifact], medians_ms: list[float], spread: float = 0.01) -> Measurement:
    """What `acmix profile` would give for latencies around some medians, in three processes of each."""
    timings = []
    for artifact, median in zip(artifacts, medians_ms, strict=True):
        runs = tuple(round(1e6 * median * (1 + spread * ((i * 7) % 5 - 2) / 2)) for i in range(96))
        m = artifact.manifest
        timings.append(
            Timings(artifact.name, m.target.name, m.recipe.name, "", 1, 1, (), runs, 1.0, process_starts=(0, 32, 64))
        )
    conditions = Conditions(1, (0,), "performance", {}, Identity(), Gate(0.0, ()))
    return Measurement(tuple(timings), conditions, Plan(32, 0.0, 3, 1.0), "noise", judge(conditions, [], ""))


def pair(exported: Exported, target: str) -> list[Artifact]:
    return [exported("float32")[target], exported("w8a8")[target]]


def test_an_int8_file_that_is_slower_beyond_the_interval_is_warned_of_with_the_ratio(exported: Exported) -> None:
    artifacts = pair(exported, "executorch")
    (found,) = slower_int8(artifacts, measured(artifacts, [2.0, 3.0]))
    assert (found.integer, found.floating) == (artifacts[1].name, artifacts[0].name)
    assert found.ratio.estimate == pytest.approx(1.5, rel=1e-3)
    assert "1.50 times as long" in found.sentence and "to blame: " in found.sentence
    assert "--precision w8" in found.sentence


def test_the_order_of_the_artifacts_does_not_matter(exported: Exported) -> None:
    artifacts = pair(exported, "executorch")[::-1]
    (found,) = slower_int8(artifacts, measured(artifacts, [3.0, 2.0]))
    assert found.integer == artifacts[0].name


def test_a_faster_int8_file_and_one_within_the_interval_are_not_warned_of(exported: Exported) -> None:
    artifacts = pair(exported, "executorch")
    assert not slower_int8(artifacts, measured(artifacts, [3.0, 2.0]))
    noisy = measured(artifacts, [2.0, 2.002])
    second = noisy.timings[1]
    swapped = replace(second, latency_ns=(*second.latency_ns[48:], *[round(n * 0.97) for n in second.latency_ns[:48]]))
    assert not slower_int8(artifacts, replace(noisy, timings=(noisy.timings[0], swapped)))


def test_files_of_two_targets_and_an_emulator_say_nothing(exported: Exported) -> None:
    artifacts = [exported("float32")["onnx"], exported("w8a8")["executorch"]]
    assert not slower_int8(artifacts, measured(artifacts, [2.0, 3.0]))
    artifacts = pair(exported, "onnx")
    emulated = measured(artifacts, [2.0, 3.0])
    conditions = replace(emulated.conditions, identity=Identity(emulation=("the device tree says QEMU",)))
    assert not slower_int8(artifacts, replace(emulated, conditions=conditions))


def test_int8_weights_alone_are_no_int8_arithmetic(exported: Exported) -> None:
    artifacts = [exported("float32")["onnx"], exported("w8")["onnx"]]
    assert not slower_int8(artifacts, measured(artifacts, [2.0, 3.0]))


@pytest.mark.parametrize("target", ["executorch", "onnx", "tflite"])
def test_the_blame_names_what_the_manifest_says_is_float(exported: Exported, target: str) -> None:
    manifest = exported("w8a8")[target].manifest
    said = "\n".join(blame(manifest))
    assert manifest.quantization is not None and manifest.quantization.kept_float
    for kept in manifest.quantization.kept_float:
        assert f"{kept.count} x {kept.operator}" in said and kept.reason in said
    for operator in manifest.placement.fallbacks:
        assert f"x {operator.kind} outside the delegate ({operator.runs_on})" in said
    assert not [op for op in manifest.placement.operators if op.delegated and f"x {op.kind} outside" in said]


def test_of_a_file_whose_places_are_unknown_here_that_is_said(exported: Exported) -> None:
    manifest = exported("w8a8")["coreml"].manifest
    if all(operator.delegated is not None for operator in manifest.placement.operators):
        pytest.skip("Core ML tells its placement here")
    assert blame(manifest)[-1] == "which operators leave the accelerator is known on the device alone"
    assert "known on the device alone" not in "".join(blame(exported("w8a8")["onnx"].manifest))


def test_the_warning_prints_no_escape_sequence_of_a_foreign_manifest(exported: Exported) -> None:
    artifacts = pair(exported, "onnx")
    (found,) = slower_int8(artifacts, measured(artifacts, [2.0, 3.0]))
    screen = Console(width=200, markup=False, highlight=False)
    with screen.capture() as capture:
        screen.print(profiles.warning(replace(found, integer="a\x1b[2Jb\u202e")))
    assert not set(capture.get()) & {"\x1b", "\x07", "\u202e"}
