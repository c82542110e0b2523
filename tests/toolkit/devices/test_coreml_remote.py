"""The Mac's path to an iPhone cannot run here: that it is refused, and that what it calls exists, can be held."""

from __future__ import annotations

import inspect
import platform
from pathlib import Path

import pytest

from acmix.targets.formats import coreml_remote
from acmix.targets.formats.coreml_converter import coremltools
from acmix.toolkit.device import Device
from acmix.toolkit.errors import UsageError

IPHONE = Device("iphone", "ios", "00008030-001122334455667E")


@pytest.mark.skipif(platform.system() == "Darwin", reason="a Mac can")
def test_without_a_mac_it_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="only a Mac"):
        coreml_remote.benchmark(IPHONE, Path("x.mlpackage"), coreml_remote.Signing("T", "com.example.x"), 10)


def test_coremltools_still_has_what_the_mac_calls() -> None:
    coremltools()
    from coremltools.models.ml_program.experimental import perf_utils, remote_device

    wanted = {
        remote_device.AppSigningCredentials: {"development_team", "provisioning_profile_uuid", "bundle_identifier"},
        remote_device.Device.get_connected_devices: {"device_type"},
        remote_device.Device.prepare_for_model_debugging: {"credentials"},
        perf_utils.MLModelBenchmarker: {"model", "device"},
        perf_utils.MLModelBenchmarker.benchmark_load: {"iterations"},
        perf_utils.MLModelBenchmarker.benchmark_predict: {"iterations", "warmup"},
    }
    for called, names in wanted.items():
        assert names <= set(inspect.signature(called).parameters)
    assert "udid" in inspect.signature(remote_device.Device).parameters
