"""The rooms and what they may import, held on the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("toolkit", "calibration", "targets", "apps")
MAY_IMPORT = {
    "toolkit": {"toolkit"},
    "calibration": {"toolkit", "calibration"},
    "targets": {"toolkit", "targets"},
    "apps": {"toolkit", "calibration", "targets", "apps"},
}
OWNERS = {
    "litert_torch": "tflite",
    "ai_edge_litert": "tflite",
    "ai_edge_quantizer": "tflite",
    "executorch": "executorch",
    "coremltools": "coreml",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxsim": "onnx",
    "onnxruntime": "onnx",
}
FILES = sorted(f for room in ROOMS for f in (ROOT / room).rglob("*.py"))


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_room_imports_only_the_rooms_below_it(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0]
    rooms = {name.split(".")[1] for name in imports(file) if name.startswith("acmix.")}
    assert rooms <= MAY_IMPORT[room]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_converter_is_imported_only_by_its_own_target(file: Path) -> None:
    owners = {OWNERS[name.split(".")[0]] for name in imports(file) if name.split(".")[0] in OWNERS}
    path = file.relative_to(ROOT)
    allowed = {path.stem, path.stem.split("_")[0]} if path.parts[0] == "targets" else set()
    # ExecuTorch's float16 of Core ML goes through executorch's own partitioner, which wraps coremltools.
    assert owners <= allowed


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_file_stays_under_300_lines(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300


def test_every_folder_with_code_ships_in_the_wheel() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {f.parent.relative_to(ROOT).as_posix() for f in FILES} | {"calibration/recipes"}
    assert set(setuptools["package-dir"].values()) == folders
    assert {f"acmix.{folder.replace('/', '.')}" for folder in folders} == set(setuptools["packages"])


def test_the_catalog_lists_everything_without_torch_or_a_converter() -> None:
    heavy = ["torch", *OWNERS]
    program = (
        "import sys\n"
        "from acmix.toolkit import catalog\n"
        "catalog.model_cards()\n"
        "[catalog.load_target(n) for n in catalog.stems('targets')]\n"
        "[catalog.load_recipe(n) for n in catalog.stems('calibration.recipes', '.toml')]\n"
        f"print([m for m in {heavy!r} if m in sys.modules])\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_no_file_names_a_machine_or_a_registry() -> None:
    words = ("/work" + "/", "/root" + "/", "pypi." + "org", "files.python" + "hosted")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in tracked if (ROOT / name).is_file()}
    assert [(name, word) for name, text in texts.items() for word in words if word in text] == []
