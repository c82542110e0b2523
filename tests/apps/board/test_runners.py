"""The runners' protocol, spoken to real runners of this machine: the C one, built here, and the Python one."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from acmix.apps.board.build import BUILDS, COMMON, SOURCES
from acmix.apps.board.choose import PYTHON_RUNNER
from acmix.apps.board.onnx_profile import results_of
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.execute import file_inputs
from acmix.toolkit.kernels import Notes
from acmix.toolkit.profile import interface_of
from acmix.toolkit.samples import Probes
from acmix.toolkit.session import open_session

Exported = Callable[[str], dict[str, Artifact]]


class Runner:
    """A started runner, spoken to in lines."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.process, self.stdin, self.stdout = process, process.stdin, process.stdout

    def say(self, line: bytes) -> dict[str, Any]:
        """Send a line as it is; the answer."""
        self.stdin.write(line + b"\n")
        self.stdin.flush()
        answer: dict[str, Any] = json.loads(self.stdout.readline())
        return answer

    def ask(self, **command: object) -> dict[str, Any]:
        """One command."""
        return self.say(json.dumps(command, ensure_ascii=False).encode())


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[Runner]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield Runner(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The C runner for this machine, with the checks of the address sanitizer."""
    compiler = shutil.which("gcc")
    spec = importlib.util.find_spec("ai_edge_litert")
    if compiler is None or spec is None or spec.origin is None or sys.platform != "linux":
        pytest.skip("there is no gcc, no ai-edge-litert, or no Linux here")
    library, made = Path(spec.origin).parent, tmp_path_factory.mktemp("native") / "runner"
    sources = [str(SOURCES / name) for name in (*COMMON, "litert.c")]
    strict = ["-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    linked = [f"-L{library}", "-lLiteRt", f"-Wl,-rpath,{library}"]
    subprocess.run([compiler, "-std=gnu11", "-g", "-O1", *strict, "-o", str(made), *sources, *linked], check=True)
    return [str(made)]


@pytest.fixture(scope="module")
def native_executorch(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The C++ runner for this machine, on the libraries of the installed package."""
    compiler = shutil.which("g++")
    spec = importlib.util.find_spec("executorch")
    if compiler is None or spec is None or sys.platform != "linux":
        pytest.skip("there is no g++, no executorch, or no Linux here")
    package, made = (
        Path(next(iter(spec.submodule_search_locations or ()))),
        tmp_path_factory.mktemp("native_executorch"),
    )
    objects = [str(made / f"{name}.o") for name in COMMON]
    for name, file in zip(COMMON, objects, strict=True):
        subprocess.run(["gcc", "-std=gnu11", "-c", "-o", file, str(SOURCES / name)], check=True)
    build, libraries = BUILDS["executorch"], package / "lib"
    included = [f"-isystem{package.parent / path}" for path in build.includes]
    linked = [
        f"-L{libraries}",
        "-Wl,--no-as-needed",
        *(f"-l{name}" for name in build.linked),
        f"-Wl,-rpath,{libraries}",
    ]
    source = ["-DC10_USING_CUSTOM_GENERATED_MACROS", *included, *objects, str(SOURCES / build.source)]
    # Warnings of ours are errors; the package's own headers are the system's.
    strict = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wl,--allow-shlib-undefined"]
    subprocess.run([compiler, *strict, "-o", str(made / "runner"), *source, *linked], check=True)
    return [str(made / "runner")]


@pytest.fixture(params=["native", "python"])
def tflite_runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """Each runner of TFLite files."""
    native = request.getfixturevalue("native") if request.param == "native" else None
    with running(native or [sys.executable, str(PYTHON_RUNNER), "tflite"]) as runner:
        yield runner


def inputs_of(artifact: Artifact, folder: Path) -> tuple[list[np.ndarray[Any, Any]], list[str]]:
    """The noise probe as the file wants it, and the files that hold its bytes."""
    probes = Probes(artifact.manifest.inputs)
    arrays = file_inputs(list(probes)[probes.identifiers.index("noise")], interface_of(artifact))
    files = [folder / f"né {i}.bin" for i in range(len(arrays))]
    for file, array in zip(files, arrays, strict=True):
        file.write_bytes(array.tobytes())
    return arrays, [str(file) for file in files]


def check_against_session(runner: Runner, artifact: Artifact, folder: Path) -> None:
    """Load, run and time; the outputs are those of the runtime in its session, bit for bit."""
    arrays, files = inputs_of(artifact, folder)
    loaded = runner.ask(do="load", file=str(artifact.model_file), threads=1)
    assert loaded["load_ns"] > 0, loaded
    answer = runner.ask(do="run", inputs=files)
    with open_session(artifact.session(), folder / "log") as session:
        session.load()
        wanted = session.run(arrays)
    assert [base64.b64decode(text) for text in answer["outputs"]] == [array.tobytes() for array in wanted]
    assert len(answer["latency_ns"]) == 1 and answer["peak_memory_kb"] > 1000
    timed = runner.ask(do="time", count=5)
    assert len(timed["latency_ns"]) == 5 and min(timed["latency_ns"]) > 0


@pytest.mark.parametrize("precision", ["float32", "w8a8"])
def test_a_tflite_runner_gives_the_bytes_of_the_session(
    tflite_runner: Runner, exported: Exported, tmp_path: Path, precision: str
) -> None:
    check_against_session(tflite_runner, exported(precision)["tflite"], tmp_path)


def test_the_onnx_runner_gives_the_bytes_of_the_session(exported: Exported, tmp_path: Path) -> None:
    with running([sys.executable, str(PYTHON_RUNNER), "onnx"]) as runner:
        check_against_session(runner, exported("float32")["onnx"], tmp_path)


def test_a_timed_run_takes_inputs_and_sends_no_outputs_back(
    tflite_runner: Runner, exported: Exported, tmp_path: Path
) -> None:
    artifact = exported("float32")["tflite"]
    _, files = inputs_of(artifact, tmp_path)
    tflite_runner.ask(do="load", file=str(artifact.model_file))
    answer = tflite_runner.ask(do="time", count=1, inputs=files)
    assert set(answer) == {"latency_ns", "peak_memory_kb"} and len(answer["latency_ns"]) == 1
    assert len(tflite_runner.ask(do="time", count=2)["latency_ns"]) == 2


def test_every_mistake_is_an_answer_and_the_runner_goes_on(
    tflite_runner: Runner, exported: Exported, tmp_path: Path
) -> None:
    artifact = exported("float32")["tflite"]
    _, files = inputs_of(artifact, tmp_path)
    (tmp_path / "short").write_bytes(b"1234")
    assert "came before load" in tflite_runner.ask(do="run", inputs=files)["error"]
    assert "came before run" in tflite_runner.ask(do="time", count=1)["error"]
    assert "time came before load" in tflite_runner.ask(do="time", count=1, inputs=files)["error"]
    assert tflite_runner.ask(do="load", file=str(tmp_path / "missing.tflite"))["error"]
    assert "latency_ns" not in tflite_runner.ask(do="load", file=str(artifact.model_file))
    assert "loaded already" in tflite_runner.ask(do="load", file=str(artifact.model_file))["error"]
    assert "0 were given" in tflite_runner.ask(do="run", inputs=[])["error"]
    assert "were given" in tflite_runner.ask(do="run", inputs=[str(tmp_path / "short")])["error"]
    assert tflite_runner.ask(do="run", inputs=[str(tmp_path / "no such file")])["error"]
    assert "can load, run and time" in tflite_runner.ask(do="dance")["error"]
    assert "latency_ns" in tflite_runner.ask(do="run", inputs=files)
    assert "count is from 1" in tflite_runner.ask(do="time", count=0)["error"]
    assert "latency_ns" in tflite_runner.ask(do="time", count=1)
    assert "were given" in tflite_runner.ask(do="time", count=1, inputs=[str(tmp_path / "short")])["error"]
    assert tflite_runner.ask(do="time", count=1, inputs=[str(tmp_path / "no such file")])["error"]
    tflite_runner.stdin.close()
    assert tflite_runner.process.wait(10) == 0


def profile_of(command: list[str], artifact: Artifact, folder: Path) -> Notes:
    """What a runner notes of four runs."""
    _, files = inputs_of(artifact, folder)
    # What a runtime writes beside the file must not be written into the shared folder.
    file = shutil.copy(artifact.model_file, folder)
    with running(command) as runner:
        assert "no file is loaded with its kernels timed" in runner.ask(do="kernels")["error"]
        assert runner.ask(do="load", file=str(file), threads=1, profile=1)["load_ns"] > 0
        latencies = runner.ask(do="run", inputs=files)["latency_ns"] + runner.ask(do="time", count=3)["latency_ns"]
        answer = runner.ask(do="kernels")
    notes = msgspec.convert(answer, Notes)
    assert len(notes.runs) == 4
    for run, latency_ns in zip(notes.runs, latencies, strict=True):
        # Whole microseconds: each may be one too long.
        assert 0 < sum(ns for _, ns in run) <= latency_ns + 1000 * len(run)
    return notes


@pytest.mark.parametrize(
    ("target", "precision"),
    [("tflite", "float32"), ("tflite", "w8a8"), ("onnx", "float32"), ("executorch", "float32")],
)
def test_a_runner_notes_the_kernels_that_the_runtime_notes_here(
    request: pytest.FixtureRequest, exported: Exported, tmp_path: Path, target: str, precision: str
) -> None:
    artifact = exported(precision)[target]
    native = {"tflite": "native", "executorch": "native_executorch"}.get(target)
    python = [sys.executable, str(PYTHON_RUNNER), target]
    notes = profile_of(request.getfixturevalue(native) if native else python, artifact, tmp_path)
    arrays, _ = inputs_of(artifact, tmp_path)
    with open_session(replace(artifact.session(), profiled=True), tmp_path / "log") as session:
        found = session.name_kernels(notes, 4, "the runner's runtime")
        session.load()
        session.run(arrays)
        here = session.kernels()
    assert "the runner's runtime" in found.measured_by
    assert all(len(kernel.times_ns) == 4 for kernel in found.kernels)
    assert [replace(k, times_ns=()) for k in found.kernels] == [replace(k, times_ns=()) for k in here.kernels]
    assert sum(kernel.value != "" for kernel in found.kernels) > 5


def test_the_nodes_of_an_onnx_file_are_read_without_its_package(exported: Exported) -> None:
    file = exported("w8a8")["onnx"].model_file
    assert results_of(str(file)) == {node.name: node.output[0] for node in onnx.load(file).graph.node}


def test_a_runner_without_a_profiler_says_so(exported: Exported) -> None:
    with running([sys.executable, str(PYTHON_RUNNER), "tflite"]) as runner:
        answer = runner.ask(do="load", file=str(exported("float32")["tflite"].model_file), profile=1)
        assert "only the native runners count" in runner.ask(do="count", count=3)["error"]
    assert "its Python interpreter has no profiler" in answer["error"]


BROKEN = [
    *(b"", b"{", b"}", b"[]", b"null", b'{"do"', b'{"do":', b'{"do":"', b'{"do":"run', b'{"do":"run"', b'"do"'),
    *(b'{"do":"load","file":"\\', b'{"do":"load","file":"\\u12', b'{"do":"\\u0000"}', b'{"do":"run","inputs":['),
    *(b'{"do":"run","inputs":["a"', b'{"do":"run","inputs":["a",', b'{"do":"run","inputs":[1]}', b'{"do":1}'),
    *(b'{"do":"time","count":99999999999999999999999}', b'{"do":"time","count":-1}', b'{"do":"run"}x', b"\xff\xfe"),
    *(
        b'{"do":"run","inputs":[' + b",".join([b'"x"'] * 500) + b"]}",
        b'{"do":"' + b"x" * 100_000 + b'"}',
        b"[" * 10_000,
    ),
]


def test_the_native_runner_outlives_every_broken_line(native: list[str]) -> None:
    generator = np.random.default_rng(0)
    whole = b'{"do":"run","inputs":["a\\n\\u0041","b"],"file":"x","threads":2,"count":3}'
    torn = [whole[:cut] for cut in range(len(whole))]
    for _ in range(300):
        changed = bytearray(whole)
        for place in generator.integers(0, len(changed), 3):
            changed[place] = int(generator.integers(32, 256))
        torn.append(bytes(changed))
    with running(native) as runner:
        for line in (*BROKEN, *torn):
            answer = runner.say(line)
            assert set(answer) == {"error"}, line
        assert "came before load" in runner.ask(do="run", inputs=[])["error"]
        assert "count came before run" in runner.ask(do="count", count=3)["error"]


def test_without_a_runtime_the_python_runner_says_which_ones_it_knows() -> None:
    # -S: no site-packages, as on a board where nothing was installed.
    done = subprocess.run(
        [sys.executable, "-S", str(PYTHON_RUNNER), "onnx"], capture_output=True, input=b"", check=False
    )
    assert done.returncode != 0 and b"no runtime for onnx is installed: onnxruntime" in done.stderr
