"""The compute floor: one large 1 x 1 convolution on a runtime, where nothing is in its way."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import platformdirs

from acmix.toolkit import catalog, machine
from acmix.toolkit.lower import LoweringRequest, start_lowering
from acmix.toolkit.spec import TensorSpec
from acmix.toolkit.target import Array, to_layout

CHANNELS, SIZE = 512, 28
MACS = (CHANNELS * SIZE) ** 2
INTERFACE = "interface.json"


@dataclass(frozen=True)
class FloorFile:
    """A saved file of the convolution, and what it is fed."""

    file: Path
    inputs: tuple[Array, ...]


def floor_file(target: str, log: Path) -> FloorFile:
    """The convolution in a target's format, exported now or found in the user's cache.

    Raises UsageError when the converter is not installed, GateError when it fails.
    """
    loaded = catalog.load_target(target)
    known = repr((target, CHANNELS, SIZE, machine.versions((*loaded.distributions, "acmix"))))
    word = hashlib.sha256(known.encode()).hexdigest()[:16]
    place = Path(platformdirs.user_cache_dir("acmix")) / "floor" / f"{target}-{word}"
    if not place.is_dir():
        _export(target, place, log)
    wanted = msgspec.json.decode((place / INTERFACE).read_bytes(), type=TensorSpec)
    noise = np.random.default_rng(0).standard_normal(_given().shape).astype(np.float32)
    return FloorFile(place / f"model{loaded.suffix}", (to_layout(noise, _given(), wanted),))


def _given() -> TensorSpec:
    return TensorSpec("x", (1, CHANNELS, SIZE, SIZE), "float32", "nchw")


def _export(target: str, place: Path, log: Path) -> None:
    """Make the file beside its place; it appears whole."""
    catalog.require_packages(target)
    import torch

    from acmix.toolkit.program import save_program

    loaded = catalog.load_target(target)
    torch.manual_seed(0)
    network = torch.nn.Conv2d(CHANNELS, CHANNELS, 1).eval()
    program = torch.export.export(network, (torch.zeros(_given().shape),))
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".export-") as made:
        stored, folder = Path(made) / "captured.pt2", Path(made) / "folder"
        folder.mkdir()
        save_program(program, stored)
        request = LoweringRequest(
            str(stored),
            str(folder / f"model{loaded.suffix}"),
            "floor",
            catalog.load_recipe("float32"),
            (_given(),),
            (TensorSpec("y", _given().shape, "float32", "nchw"),),
            msgspec.to_builtins(loaded.options()),
        )
        with start_lowering(target, log, len(machine.usable_cpus())) as lowering:
            lowered, _ = lowering.lower(request)
        (folder / INTERFACE).write_bytes(msgspec.json.encode(lowered.inputs[0]))
        try:
            folder.rename(place)
        except OSError:
            # Another process was faster, with the same convolution.
            if not place.is_dir():
                raise
