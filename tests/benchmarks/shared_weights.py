"""One file with all networks of a cascade against a file each: size, time to load, memory, latency.

    .venv/bin/python tests/benchmarks/shared_weights.py
    .venv/bin/python tests/benchmarks/shared_weights.py --precision w8a8 --photos ../shared/data/imagenet_sample

A load is what an app waits for before its first answer: both networks loaded and run once, in a fresh process whose
runtime is imported already. Loads take turns, and so do single inferences of both forms inside one process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from acmix.calibration.calibrate import SampleCalibrator
from acmix.calibration.photos import read_photo_folder
from acmix.toolkit import catalog, pipeline
from acmix.toolkit.adaptive.artifact import Sharing
from acmix.toolkit.adaptive.cascade import cascade
from acmix.toolkit.adaptive.engine import Network
from acmix.toolkit.adaptive.export import RANGE_PHOTOS
from acmix.toolkit.adaptive.runner import load_networks
from acmix.toolkit.adaptive.sharing import Shelf, share_weights
from acmix.toolkit.artifact import Artifact, executed_by, open_artifact
from acmix.toolkit.execute import file_inputs
from acmix.toolkit.profile import interface_of
from acmix.toolkit.request import ExportRequest, TargetRequest
from acmix.toolkit.samples import Probes
from acmix.toolkit.target import Array

CASCADE = "cascade:efficientnet_lite0@128,efficientnet_lite0@224"
ROUNDS, WARM_UP = 100, 5
FORMS = ("separate", "shared")


def main() -> None:
    """Export once, join a copy, then measure both forms of every target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=CASCADE)
    parser.add_argument("--target", default="tflite,executorch,coreml")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--processes", type=int, default=7)
    parser.add_argument("--photos", type=Path, help="to find the ranges of integer activations on")
    parser.add_argument("--child", nargs=2, metavar=("FORM", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        form, folder = given.child
        return print(json.dumps(latencies(Path(folder)) if form == "both" else load(Path(folder, form))))
    with tempfile.TemporaryDirectory(prefix="acmix-") as scratch:
        for target in given.target.split(","):
            report(target, given, Path(scratch, target))
    return None


def report(target: str, given: argparse.Namespace, folder: Path) -> None:
    """Print one target's row of each measure."""
    networks, sharing = made(target, given, folder)
    print(f"{target} {given.precision}: {sharing.separate_bytes:,} bytes in {len(networks)} files", end="; ")
    if not sharing.file:
        return print(sharing.reason)
    print(f"{sharing.size_bytes:,} in one ({1 - sharing.size_bytes / sharing.separate_bytes:.1%} saved)")
    if executed_by(next(iter(networks.values())))[0] != "runtime":
        return print("  no runtime here: neither load nor latency")
    loads: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
    runs = []
    for turn in range(given.processes):
        for form in FORMS if turn % 2 else reversed(FORMS):
            loads[form].append(child(form, folder))
        runs.append(child("both", folder))
    for what, unit in (("load", "ms"), ("memory", "MB")):
        found = [[one[what] for one in loads[form]] for form in FORMS]
        print(f"  {what}: separate {spread(found[0])}, shared {spread(found[1])} {unit}")
    for network in networks:
        found = [[run[f"{form} {network}"] for run in runs] for form in FORMS]
        ratios = [shared / separate for separate, shared in zip(*found, strict=True)]
        print(f"  {network}: separate {spread(found[0])}, shared {spread(found[1])} ms, ratio {spread(ratios)}")
    return None


def spread(values: list[float]) -> str:
    """Median, and the range over processes."""
    return f"{np.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def made(target: str, given: argparse.Namespace, folder: Path) -> tuple[dict[str, Artifact], Sharing]:
    """The networks exported to one folder, and joined in another."""
    spec = cascade(given.model, imagenet=True)
    asked = (TargetRequest(target, catalog.load_target(target).options()),)
    networks = {}
    for name, source in spec.networks.items():
        request = ExportRequest(source, catalog.load_recipe(given.precision), asked, folder / "separate")
        if request.recipe.needs_ranges:
            photos = read_photo_folder(given.photos, source.spec.preprocess).first(RANGE_PHOTOS)
            request = replace(request, calibrator=SampleCalibrator(photos))
        (outcome,) = pipeline.export(request, lambda *_: None)
        if outcome.artifact is None:
            sys.exit(outcome.error)
        networks[name] = outcome.artifact
    shutil.copytree(folder / "separate", folder / "shared")
    copies = {name: open_artifact(folder / "shared" / one.name) for name, one in networks.items()}
    return networks, share_weights(copies, Shelf(folder / "shared", spec.name, folder / "log"))[1]


def child(form: str, folder: Path) -> dict[str, float]:
    """What a fresh process measures."""
    command = [sys.executable, __file__, "--child", form, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def opened(folder: Path) -> dict[str, Artifact]:
    """The networks of one form."""
    found = [open_artifact(place) for place in sorted(folder.iterdir()) if (place / "manifest.json").is_file()]
    catalog.load_target(found[0].manifest.target.name).preload_runtime()
    return {one.manifest.model.name: one for one in found}


def noise(artifact: Artifact) -> list[Array]:
    """One input of noise as the file takes it."""
    probes = Probes(artifact.manifest.inputs)
    return file_inputs(dict(zip(probes.identifiers, probes, strict=True))["noise"], interface_of(artifact))


def load(folder: Path) -> dict[str, float]:
    """Milliseconds until every network has answered once, and by how much the process has grown."""
    artifacts = opened(folder)
    inputs = {name: noise(one) for name, one in artifacts.items()}
    process = psutil.Process()
    before = process.memory_info().rss
    begin = time.perf_counter_ns()
    with load_networks(artifacts, 1) as networks:
        for name, network in networks.items():
            network.run(inputs[name])
        elapsed = time.perf_counter_ns() - begin
        return {"load": elapsed / 1e6, "memory": (process.memory_info().rss - before) / 1e6}


def latencies(folder: Path) -> dict[str, float]:
    """Median milliseconds of each network of each form, one inference at a time in turn."""
    artifacts = {form: opened(folder / form) for form in FORMS}
    with load_networks(artifacts["separate"], 1) as separate, load_networks(artifacts["shared"], 1) as shared:
        lanes: list[tuple[str, Network, list[Array]]] = [
            (f"{form} {name}", network, noise(artifacts[form][name]))
            for form, networks in zip(FORMS, (separate, shared), strict=True)
            for name, network in networks.items()
        ]
        taken: dict[str, list[int]] = {name: [] for name, _, _ in lanes}
        for turn in range(WARM_UP + ROUNDS):
            for name, network, inputs in lanes if turn % 2 else reversed(lanes):
                begin = time.perf_counter_ns()
                network.run(inputs)
                taken[name].append(time.perf_counter_ns() - begin)
    return {name: float(np.median(ns[WARM_UP:])) / 1e6 for name, ns in taken.items()}


if __name__ == "__main__":
    main()
