"""Core ML on an attached iPhone, measured from a Mac by coremltools' own app. Written; never run: no Mac here.

coremltools builds Apple's ModelRunner (in its macOS wheels only) with Xcode, signs it with the user's team, installs
it by devicectl, and talks to it. The device is in Developer Mode.
"""

from __future__ import annotations

import asyncio
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from acmix.targets.formats.coreml_converter import coremltools
from acmix.toolkit.device import Device, printable
from acmix.toolkit.errors import GateError, UsageError


@dataclass(frozen=True)
class Signing:
    """Who signs the app: an Apple team, and a provisioning profile where Xcode does not manage one."""

    team: str
    bundle: str
    profile: str | None = None


@dataclass(frozen=True)
class RemoteLatencies:
    """Raw latencies as the device took them."""

    load_ms: tuple[float, ...]
    predict_ms: tuple[float, ...]


def cannot_measure_here() -> str | None:
    """Why no iPhone can be measured from this machine; None when it can."""
    if platform.system() != "Darwin":
        return "only a Mac can install an app on an iPhone"
    missing = [name for name in ("xcrun", "xcodebuild") if shutil.which(name) is None]
    return f"{', '.join(missing)} not found: install Xcode and its command line tools" if missing else None


def benchmark(device: Device, package: Path, signing: Signing, runs: int) -> RemoteLatencies:
    """Load and predict latencies of a saved .mlpackage on the iPhone of the device's UDID."""
    if reason := cannot_measure_here():
        raise UsageError(f"device {device.name!r} cannot be measured here: {reason}.")
    return asyncio.run(_benchmark(device, package, signing, runs))


async def _benchmark(device: Device, package: Path, signing: Signing, runs: int) -> RemoteLatencies:
    tools = coremltools()
    from coremltools.models.ml_program.experimental import perf_utils as perf
    from coremltools.models.ml_program.experimental import remote_device as remote

    attached = [
        found
        for kind in (remote.DeviceType.IPHONE, remote.DeviceType.IPAD)
        for found in remote.Device.get_connected_devices(device_type=kind)
        if found.udid.replace("-", "").upper() == device.address.replace("-", "").upper()
    ]
    if not attached:
        raise GateError(
            f"{device.name}: Xcode lists no device {device.address}.\nUnlock it, and turn on Developer Mode."
        )
    credentials = remote.AppSigningCredentials(
        development_team=signing.team,
        provisioning_profile_uuid=signing.profile,
        bundle_identifier=signing.bundle,
    )
    try:
        prepared = await attached[0].prepare_for_model_debugging(credentials=credentials)
        model = tools.models.MLModel(str(package), skip_model_load=True)
        benchmarker = perf.MLModelBenchmarker(model=model, device=prepared)
        load = await benchmarker.benchmark_load(iterations=runs)
        predict = await benchmarker.benchmark_predict(iterations=runs, warmup=True)
    except Exception as error:
        # Xcode, devicectl and the app each fail in their own way; their words are all there is.
        raise GateError(f"{device.name}: {printable(str(error))}") from error
    return RemoteLatencies(tuple(load.samples), tuple(predict.samples))
