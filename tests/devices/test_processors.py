"""The native runners on several models of arm64 processors: other kernels of XNNPACK run on each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acmix.apps.board.build import build_runner
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.device import Device
from acmix.toolkit.devices import connect
from acmix.toolkit.execute import file_inputs
from acmix.toolkit.profile import interface_of
from acmix.toolkit.remote import outputs_on_device
from acmix.toolkit.reproof import stored_references
from acmix.toolkit.session import open_session

Exported = Callable[[str], dict[str, Artifact]]
EMULATOR = "qemu-aarch64-static"
MODELS = ("cortex-a53", "cortex-a76", "neoverse-v1", "max")
"""Without dot products, with them, with i8mm and SVE, with all that qemu knows."""


@pytest.mark.parametrize("target", ["tflite", "executorch"])
@pytest.mark.parametrize("precision", ["float32", "w8a8"])
def test_integers_are_those_of_this_machine_on_every_model_and_floats_are_close(
    target: str,
    precision: str,
    arm64_runtimes: Path,
    exported: Exported,
    tmp_path: Path,
    lacking: Callable[[str], None],
) -> None:
    if shutil.which(EMULATOR) is None:
        lacking(f"there is no {EMULATOR}")
    artifact, bundle = exported(precision)[target], build_runner(target)
    with open_session(artifact.session(), tmp_path / "log") as session:
        session.load()
        fed = {r.identifier: file_inputs(r.inputs, interface_of(artifact)) for r in stored_references(artifact)}
        wanted = {probe: session.run(inputs) for probe, inputs in fed.items()}
    with connect(Device("here", "local")) as transport:
        for model in MODELS:
            emulated = replace(bundle, command=(EMULATOR, "-cpu", model, *bundle.command))
            found = outputs_on_device(transport, artifact, emulated)
            assert found.keys() == wanted.keys()
            for probe, arrays in found.items():
                for one, other in zip(arrays, wanted[probe], strict=True):
                    assert one.dtype == other.dtype and one.size > 100
                    if precision == "w8a8":
                        assert np.array_equal(one, other), (model, probe)
                    else:
                        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=f"{model} {probe}")
