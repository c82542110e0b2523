"""`acmix compare` as a user types it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import typer
from typer.testing import CliRunner

from acmix.apps import verbs
from acmix.apps.comparison import conclusion
from acmix.toolkit.artifact import Artifact, write_manifest
from acmix.toolkit.compare import Comparison, ModuleAgreement

APP = typer.Typer()
APP.command("compare")(verbs.compare)

CONV = ModuleAgreement("blocks.3.conv", "Conv2d", "net.py:12", "conv2d", ("blocks.3.act",), 12.3, 131.0, "noise", True)


def test_json_says_what_was_compared_and_the_exit_code_that_it_agrees(
    exported: Callable[[str], dict[str, Artifact]],
) -> None:
    files = exported("float32")
    result = CliRunner().invoke(APP, [str(files["onnx"].folder), str(files["tflite"].folder), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[0])
    assert told["verb"] == "compare" and told["schema_version"] == 1 and told["agrees"] is True
    comparison = told["comparison"]
    assert comparison["schema_version"] == 1
    assert (comparison["a"], comparison["b"]) == (files["onnx"].name, files["tflite"].name)
    assert comparison["outputs"][0]["snr_db"] > 100


def test_outputs_that_differ_are_exit_code_1(exported: Callable[[str], dict[str, Artifact]], tmp_path: Path) -> None:
    artifact = exported("float32")["onnx"]
    copy = tmp_path / artifact.name
    shutil.copytree(artifact.folder, copy)
    strict = tuple(replace(one, snr_db=200.0, margin_db=None) for one in artifact.manifest.tolerances)
    write_manifest(copy, replace(artifact.manifest, tolerances=strict))
    result = CliRunner().invoke(APP, [str(copy)])
    assert result.exit_code == 1, result.output
    assert "differs" in result.output


def test_the_conclusion_names_module_line_and_what_was_computed_with_it() -> None:
    found = conclusion(Comparison("a", "eager", ("runtime", "eager"), (), (CONV,), CONV, 70.0))
    assert found.startswith(
        "They part at blocks.3.conv (conv2d, net.py:12), computed together with blocks.3.act: SNR 12.3"
    )


def test_rounding_that_gathers_is_no_break() -> None:
    weary = replace(CONV, snr_db=65.0, inputs_snr_db=72.0, parts=False)
    assert "No module parts by a jump; below 70 dB from blocks.3.conv on" in conclusion(
        Comparison("a", "b", ("runtime", "runtime"), (), (weary,), None, 70.0)
    )
    assert "No module parts: all of 1 keep 60 dB" in conclusion(
        Comparison("a", "b", ("runtime", "runtime"), (), (weary,), None, 60.0)
    )
