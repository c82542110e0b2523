"""Every target keeps the protocol, on the tiny network. Adding a target adds its tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from acmix.apps import tables
from acmix.toolkit import capture, catalog
from acmix.toolkit.artifact import Artifact, check_digests, open_artifact
from acmix.toolkit.errors import GateError, UsageError
from acmix.toolkit.execute import file_inputs, run_sample
from acmix.toolkit.joining import Function, JoinRequest, Part, open_runners
from acmix.toolkit.manifest import manifest_schema
from acmix.toolkit.profile import interface_of
from acmix.toolkit.recipe import Recipe, Tolerance
from acmix.toolkit.reproof import reprove, stored_references
from acmix.toolkit.session import SessionRequest, open_session
from acmix.toolkit.source import find_model, parse_input

Exported = Callable[[str], dict[str, Artifact]]
TARGETS = catalog.stems("targets")
# mixed is w8a8 with repairs, and wants labelled photos to choose them: tests/end_to_end/test_mixed.py.
PRECISIONS = [name for name in catalog.stems("calibration.recipes", ".toml") if name != "mixed"]
RUNNABLE = [n for n in TARGETS if catalog.load_target(n).cannot_run_here(catalog.load_target(n).options()) is None]


def _takes(name: str, precision: str) -> bool:
    target = catalog.load_target(name)
    return target.refuses(catalog.load_recipe(precision), target.options()) is None


MADE = [(name, precision) for name in TARGETS for precision in PRECISIONS if _takes(name, precision)]
INTEGERS = [(name, precision) for name, precision in MADE if catalog.load_recipe(precision).is_quantized]


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_named_like_its_file_and_has_defaults(name: str) -> None:
    target = catalog.load_target(name)
    assert target.name == name
    assert target.suffix.startswith(".")
    assert target.refuses(catalog.load_recipe("float32"), target.options()) is None


@pytest.mark.parametrize("name", TARGETS)
def test_a_precision_that_it_lacks_is_refused_with_the_nearest(name: str) -> None:
    recipe = Recipe("w3a3", "int3", "int3", Tolerance(10, 1))  # type: ignore[arg-type]
    target = catalog.load_target(name)
    reason = target.refuses(recipe, target.options())
    assert reason is not None
    assert "w3a3" in reason
    assert "use the recipe w8" in reason


@pytest.mark.parametrize(("name", "precision"), MADE)
def test_the_manifest_tells_the_whole_story(exported: Exported, name: str, precision: str) -> None:
    artifact = exported(precision)[name]
    check_digests(artifact)
    manifest = artifact.manifest
    assert artifact.name == f"make_net-{name}-{precision}"
    assert manifest.recipe.name == precision
    assert manifest.model.parameters == sum(p.numel() for p in _eager().module.parameters())
    assert [rule.name for rule in manifest.preparation.rewrites] == ["fold_batch_norm", "keep_mean_dims"]
    assert manifest.tools["torch"].startswith("2.13")
    assert set(manifest.timings_s) == {"capture", "lower", "verify"}
    jsonschema.validate(json.loads((artifact.folder / "manifest.json").read_bytes()), manifest_schema())


@pytest.mark.parametrize(("name", "precision"), MADE)
def test_every_operator_has_a_place_and_the_macs_add_up(exported: Exported, name: str, precision: str) -> None:
    manifest = exported(precision)[name].manifest
    operators = manifest.placement.operators
    assert operators
    assert all(op.kind and op.runs_on for op in operators)
    assert all(op.reason for op in operators if op.delegated is not True)
    assert sum(op.macs for op in operators) == pytest.approx(manifest.model.macs, rel=0.02)


def test_the_proof_says_who_executed_the_file(exported: Exported) -> None:
    for name, artifact in exported("float32").items():
        proof = artifact.manifest.proof
        assert proof.verdict == "passed"
        assert proof.executed_by == ("runtime" if name in RUNNABLE else "reference")
        assert bool(proof.reason) == (name not in RUNNABLE)
        assert ("reference" in tables.verdict(proof).plain) == (name not in RUNNABLE)


@pytest.mark.parametrize(("name", "precision"), [pair for pair in MADE if pair[0] in RUNNABLE])
def test_the_saved_file_gives_what_eager_float64_gives(
    exported: Exported, name: str, precision: str, tmp_path: Path
) -> None:
    artifact = exported(precision)[name]
    inputs = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = _eager().module.double()(inputs.double()).numpy()
    with open_session(artifact.session(), tmp_path / "log") as session:
        session.load()
        found = run_sample(session, [inputs.numpy()], interface_of(artifact))[0]
    tolerance = {"float32": 1e-5, "float16": 1e-2}.get(precision, 5e-2)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * abs(wanted).max())


@pytest.mark.parametrize("name", TARGETS)
def test_float16_weights_make_a_smaller_file(exported: Exported, name: str) -> None:
    sizes = [exported(precision)[name].size_bytes for precision in ("float16", "float32")]
    assert sizes[0] < 0.75 * sizes[1]


@pytest.mark.parametrize("name", TARGETS)
def test_verify_repeats_the_proof_from_the_artifact_alone(exported: Exported, name: str, tmp_path: Path) -> None:
    artifact = exported("float32")[name]
    proof = reprove(artifact, tmp_path / "log")
    assert proof.verdict == artifact.manifest.proof.verdict
    if proof.verdict == "passed":
        assert proof.agreements[0].snr_db == artifact.manifest.proof.agreements[0].snr_db


@pytest.mark.parametrize(("name", "precision"), INTEGERS)
def test_a_quantized_file_agrees_with_eager_and_with_its_simulation(
    exported: Exported, name: str, precision: str, tmp_path: Path
) -> None:
    artifact = exported(precision)[name]
    manifest = artifact.manifest
    assert manifest.proof.verdict == "passed"
    if manifest.recipe.weights == "int4":
        return
    assert manifest.proof.agreements[0].top1_agreement == 1.0
    assert manifest.quantization is not None
    assert manifest.quantization.layers == 5
    assert bool(manifest.quantization.calibration) == manifest.recipe.needs_ranges
    conversion = manifest.proof.conversion[0]
    assert conversion.samples == sum(one.count for one in manifest.proof.samples)
    assert conversion.snr_db is not None and conversion.snr_db >= 25
    again = reprove(artifact, tmp_path / "log")
    assert again.verdict == "passed"
    assert again.agreements == ()
    assert again.conversion[0].snr_db >= conversion.snr_db


@pytest.mark.parametrize("name", TARGETS)
def test_one_changed_byte_is_refused(exported: Exported, name: str, tmp_path: Path) -> None:
    original = exported("float32")[name]
    folder = tmp_path / original.name
    shutil.copytree(original.folder, folder)
    file = folder / original.manifest.files[0].path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UsageError, match="has changed since it was exported"):
        reprove(open_artifact(folder), tmp_path / "log")


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_truncated_file_fails_with_a_sentence(exported: Exported, name: str, tmp_path: Path) -> None:
    artifact = exported("float32")[name]
    broken = tmp_path / artifact.model_file.name
    broken.write_bytes(artifact.model_file.read_bytes()[: artifact.size_bytes // 2])
    with (
        open_session(SessionRequest(name, str(broken)), tmp_path / "log") as session,
        pytest.raises(GateError, match=name),
    ):
        session.load()
        session.run([np.zeros(s.shape, s.dtype) for s in artifact.manifest.file_inputs])


def _eager() -> capture.Network:
    path = Path(__file__).parent.parent / "tiny_net.py"
    return capture.build(find_model(f"{path}:make_net", (parse_input("1x3x32x32"),)), None)


@pytest.mark.parametrize("name", [name for name in TARGETS if catalog.load_target(name).joining is not None])
def test_joined_files_give_the_bits_of_each_alone_and_hold_equal_weights_once(
    exported: Exported, name: str, tmp_path: Path
) -> None:
    target = catalog.load_target(name)
    # Core ML's palettes join where they were lowered for it: tests/targets/test_joining.py.
    precisions = [precision for other, precision in MADE if other == name and precision != "w4"]
    made = {precision: exported(precision)[name] for precision in precisions}
    parts = {**made, "again": made["float32"]}
    joined = [Part(f, str(a.model_file), a.manifest.file_inputs, a.manifest.file_outputs) for f, a in parts.items()]
    file = tmp_path / f"model{target.suffix}"
    assert target.joining is not None
    target.joining.join(JoinRequest("tiny", str(file), tuple(joined)))
    for artifact in made.values():
        check_digests(artifact)
    size = sum(f.stat().st_size for f in (file, *file.rglob("*")) if f.is_file())
    assert size < sum(artifact.size_bytes for artifact in made.values()) + 0.2 * made["float32"].size_bytes
    reference = name not in RUNNABLE
    functions = [Function(f, tuple(s.name for s in p.inputs), tuple(s.name for s in p.outputs))
                 for f, p in zip(parts, joined, strict=True)]  # fmt: skip
    with open_runners(target, file, 1, functions, reference) as runners:
        for artifact, run in zip(parts.values(), runners, strict=True):
            with open_runners(target, artifact.model_file, 1, (), reference) as (alone,):
                for one in stored_references(artifact):
                    fed = file_inputs(one.inputs, interface_of(artifact))
                    np.testing.assert_array_equal(run(fed)[0], alone(fed)[0])
