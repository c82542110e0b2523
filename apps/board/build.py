"""Native runners for arm64, built when they are first needed: our source, the runtime's libraries, and a glibc.

The bundle brings its own loader and C library, so that it starts on a phone, which has none, and on a board
whose system is older than the runtime asks for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from acmix.apps.board import wheels
from acmix.toolkit.device import printable
from acmix.toolkit.devices._guard import guarded_folder
from acmix.toolkit.errors import UsageError
from acmix.toolkit.remote import RunnerBundle

SOURCES = Path(__file__).parent
HEADERS = ("runtime.h", "notes.h", "instructions.h")
COMMON = ("runner.c", "notes.c", "instructions.c")
"""Of every native runner, whatever its runtime."""
PREFIX = "aarch64-linux-gnu-"
LOADER = "ld-linux-aarch64.so.1"
BUILD_TIMEOUT_S = 300.0
NEEDED = re.compile(r"\(NEEDED\)\s+Shared library: \[([A-Za-z0-9_.+-]+)\]")
INSTALL_COMPILER = "Install the cross compiler (Debian: apt install g++-aarch64-linux-gnu)."


@dataclass(frozen=True)
class Build:
    """How one native runner is made. versions: of the package whose interface the source is written for."""

    package: str
    extra: str
    versions: str
    source: str
    unpacked: tuple[str, ...]
    libraries: str
    includes: tuple[str, ...]
    linked: tuple[str, ...]
    title: str


BUILDS = {
    "tflite": Build(
        "ai-edge-litert", "tflite", "2.3.", "litert.c", ("ai_edge_litert/libLiteRt.so",), "ai_edge_litert", (),
        ("LiteRt",), "LiteRT",
    ),
    "executorch": Build(
        "executorch", "executorch", "1.5.", "executorch.cpp", ("executorch/lib/", "executorch/include/"),
        "executorch/lib", ("executorch/include", "executorch/include/executorch/runtime/core/portable_type/c10"),
        ("executorch", "executorch_kernels_optimized", "executorch_kernels_quantized", "executorch_backend_xnnpack",
         "executorch_threadpool"), "ExecuTorch",
    ),
}  # fmt: skip


def build_runner(target: str) -> RunnerBundle:
    """The bundle of a target's native runner, built now or found in the cache.

    Raises UsageError with what to install when the compiler or the runtime's package is missing.
    """
    build = BUILDS[target]
    version = wheels.installed_version(build.package, build.extra)
    if not version.startswith(build.versions):
        raise UsageError(
            f"the runner is written for {build.package} {build.versions}x, and {version} is installed.\n"
            f"Install that one: pip install '{build.package}=={build.versions}*'."
        )
    compilers = {word: _compiler(word) for word in ("gcc", "g++", "readelf")}
    wheel = wheels.find_wheel(build.package, version)
    said = _call([compilers["gcc"], "--version"], "ask the compiler's version")
    sources = [(SOURCES / name).read_bytes() for name in (*HEADERS, *COMMON, build.source)]
    word = wheels.digest_word(*sources, wheel.name.encode(), said.encode(), Path(__file__).read_bytes())
    name = f"{target}-{version}-{word}"
    place = wheels.cache_folder() / "runners" / name
    if not place.is_dir():
        _build(build, wheel, compilers, place)
    command = (f"{{folder}}/{LOADER}", "--library-path", "{folder}", "{folder}/runner")
    return RunnerBundle(place, name, command, f"{build.title} {version}, native runner")


def _compiler(word: str) -> str:
    if found := shutil.which(f"{PREFIX}{word}"):
        return found
    raise UsageError(f"there is no {PREFIX}{word} here, which builds the runner for the device.\n{INSTALL_COMPILER}")


def _build(build: Build, wheel: Path, compilers: dict[str, str], place: Path) -> None:
    """Make the bundle beside its place; it appears whole."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with guarded_folder(".build-", place.parent) as made:
        unpacked, bundle = made / "wheel", made / "bundle"
        bundle.mkdir()
        wheels.unpack(wheel, build.unpacked, unpacked)
        libraries = unpacked / build.libraries
        runner = bundle / "runner"
        _compile(build, unpacked, libraries, compilers, made, runner)
        for file in _closure(runner, libraries, compilers):
            shutil.copy(file, bundle / file.name)
        (bundle / LOADER).chmod(0o755)
        try:
            bundle.rename(place)
        except OSError:
            # Another process was faster, with the same bytes.
            if not place.is_dir():
                raise


def _compile(
    build: Build, unpacked: Path, libraries: Path, compilers: dict[str, str], made: Path, runner: Path
) -> None:
    objects = [str(made / f"{name}.o") for name in COMMON]
    wanted = ["-O2", "-Wall", f"-I{SOURCES}"]
    for name, file in zip(COMMON, objects, strict=True):
        _call([compilers["gcc"], "-std=gnu11", *wanted, "-c", "-o", file, str(SOURCES / name)], "compile")
    is_cpp = build.source.endswith(".cpp")
    command = [compilers["g++" if is_cpp else "gcc"], "-std=c++17" if is_cpp else "-std=gnu11", *wanted]
    # Kernels and delegates register themselves when they are loaded: nothing refers to them by name.
    command += ["-DC10_USING_CUSTOM_GENERATED_MACROS", *(f"-isystem{unpacked / path}" for path in build.includes)]
    command += ["-o", str(runner), *objects, str(SOURCES / build.source), f"-L{libraries}", "-Wl,--no-as-needed"]
    _call([*command, *(f"-l{name}" for name in build.linked), "-Wl,--allow-shlib-undefined"], "compile")


def _closure(runner: Path, libraries: Path, compilers: dict[str, str]) -> list[Path]:
    """The loader and every library that the runner needs, the runtime's own and the compiler's."""
    found: dict[str, Path] = {}
    waiting = [LOADER, *_needed(runner, compilers)]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        own = libraries / name
        found[name] = own if own.is_file() else _of_compiler(name, compilers)
        waiting += _needed(found[name], compilers)
    return [found[name] for name in sorted(found)]


def _of_compiler(name: str, compilers: dict[str, str]) -> Path:
    # Without a folder in it the answer is the question: not found.
    told = _call([compilers["g++"], f"-print-file-name={name}"], "look for a library").strip()
    if os.sep not in told or not Path(told).is_file():
        raise UsageError(f"the cross compiler has no {name}, which the runner needs.\n{INSTALL_COMPILER}")
    return Path(told)


def _needed(file: Path, compilers: dict[str, str]) -> list[str]:
    return NEEDED.findall(_call([compilers["readelf"], "--dynamic", "--wide", str(file)], "read a library"))


def _call(command: Sequence[str], what: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=BUILD_TIMEOUT_S, env=wheels.environment(), check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{Path(command[0]).name} could not {what}: {error}\n{INSTALL_COMPILER}") from error
    if done.returncode != 0:
        said = printable(done.stderr[:1500], 600)
        raise UsageError(f"{Path(command[0]).name} could not {what}: {said}\n{INSTALL_COMPILER}")
    return done.stdout.decode("utf-8", "replace")
