"""Which runner a device gets for an artifact: what is installed there first, else the native one that we build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acmix.apps.board import wheels
from acmix.apps.board.build import BUILDS, build_runner
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.device import Device, Transport, printable
from acmix.toolkit.errors import UsageError
from acmix.toolkit.joining import RUNNER, own_file
from acmix.toolkit.remote import RunnerBundle

ASK_TIMEOUT_S = 60.0
PYTHON_RUNNER = Path(__file__).with_name("python_runner.py")
PYTHON_PARTS = (PYTHON_RUNNER.with_name("onnx_profile.py"),)
"""What it imports, from beside it."""
ARM64 = frozenset({"aarch64", "arm64"})
PYTHON_MODULES = {"tflite": ("ai_edge_litert", "tflite_runtime"), "onnx": ("onnxruntime",)}
WITHOUT_PROFILER = frozenset({"tflite"})
"""Whose Python interpreters time no kernels: only the native runner does."""
# A module may come from a package of another name: onnxruntime from onnxruntime-gpu.
SEEK = (
    "import importlib.metadata as m, importlib.util as u, sys\n"
    "for n in sys.argv[1:]:\n"
    "    if u.find_spec(n) and u.find_spec('numpy'):\n"
    "        try:\n"
    "            v = m.version(n.replace('_', '-'))\n"
    "        except m.PackageNotFoundError:\n"
    "            v = 'unknown'\n"
    "        print(n, v)\n"
)


def choose_runners(transport: Transport, artifacts: Sequence[Artifact], profiled: bool = False) -> list[RunnerBundle]:
    """The runner for each artifact on a device. profiled: one that times every kernel.

    Raises UsageError when nothing can run one there, or when what it takes is not installed here.
    """
    for artifact in artifacts:
        _refuse(artifact, transport.device)
    asked = {
        name
        for target in {artifact.manifest.target.name for artifact in artifacts}
        for name in PYTHON_MODULES.get(target, ())
        if not (profiled and target in WITHOUT_PROFILER)
    }
    installed = _installed_there(transport, sorted(asked))
    return [_choose(transport, artifact, installed, profiled) for artifact in artifacts]


def _refuse(artifact: Artifact, device: Device) -> None:
    """UsageError for a file that no device of this kind can run, whatever is installed."""
    own_file(artifact, RUNNER)
    record = artifact.manifest.target
    if record.name == "executorch" and record.options.get("delegate", "xnnpack") != "xnnpack":
        raise UsageError(
            f"{artifact.name} is for the delegate {record.options['delegate']}, which our runner does not have.\n"
            "Export it for XNNPACK: leave --delegate out."
        )
    if record.name not in BUILDS and record.name not in PYTHON_MODULES:
        raise UsageError(
            f"{artifact.name} cannot run on {device.name}: {record.name} files run on Apple's devices only.\n"
            "docs/devices.md tells what a Mac does."
        )
    if record.name == "onnx" and device.transport == "adb":
        raise UsageError(
            f"{artifact.name} cannot run on {device.name}: there is no ONNX runner for phones, which have no Python.\n"
            "Export the model for tflite or executorch, or measure this file on a board over ssh."
        )


def _choose(transport: Transport, artifact: Artifact, installed: dict[str, str], profiled: bool) -> RunnerBundle:
    target, device = artifact.manifest.target.name, transport.device
    for module in PYTHON_MODULES.get(target, ()):
        if module in installed:
            return _python_runner(target, f"{module} {installed[module]}")
    if target not in BUILDS:
        raise UsageError(
            f"{artifact.name} cannot run on {device.name}: it has no onnxruntime for its python3.\n"
            "Install it there: pip install onnxruntime."
        )
    system, machine = _system_and_machine(transport)
    if system != "Linux" or machine not in ARM64:
        cure = "Install the runtime there: pip install ai-edge-litert." if target == "tflite" else "Use tflite there."
        if profiled:
            cure = "Export the model for onnx, and profile the layers of that file there."
        raise UsageError(
            f"{artifact.name} cannot run on {device.name}: native runners are built for arm64 Linux, "
            f"it is {system} {machine}.\n{cure}"
        )
    return build_runner(target)


def _installed_there(transport: Transport, modules: Sequence[str]) -> dict[str, str]:
    """The modules that the device's python3 has, and their versions; what it says is not trusted."""
    if not modules or transport.device.transport == "adb":
        return {}
    done = transport.run(["python3", "-c", SEEK, *modules], timeout_s=ASK_TIMEOUT_S)
    pairs = [printable(line, 80).split() for line in done.stdout.split(b"\n")[: len(modules)]]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[0] in modules} if done.code == 0 else {}


def _system_and_machine(transport: Transport) -> tuple[str, str]:
    """('Linux', 'aarch64') of `uname -s -m`; a Mac is arm64 too and starts no program of Linux."""
    done = transport.run(["uname", "-s", "-m"], timeout_s=ASK_TIMEOUT_S)
    words = printable(done.stdout, 80).split()
    return (words[0], words[1]) if len(words) == 2 else ("unknown", "unknown")


def _python_runner(target: str, found: str) -> RunnerBundle:
    """The scripts as a bundle of their own folder: only what it needs is pushed."""
    scripts = {script.name: script.read_bytes() for script in (PYTHON_RUNNER, *PYTHON_PARTS)}
    name = f"python-{wheels.digest_word(*scripts.values())}"
    folder = wheels.cache_folder() / "runners" / name
    folder.mkdir(parents=True, exist_ok=True)
    for script, data in scripts.items():
        copy = folder / script
        if not copy.is_file() or copy.read_bytes() != data:
            copy.write_bytes(data)
    command = ("python3", "-B", f"{{folder}}/{PYTHON_RUNNER.name}", target)
    return RunnerBundle(folder, name, command, f"{found}, Python runner")
