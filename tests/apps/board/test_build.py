"""What is missing for a runner is said in a sentence with its cure; nothing half made stays."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from acmix.apps.board import wheels
from acmix.apps.board.build import BUILDS, build_runner
from acmix.toolkit.errors import UsageError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and a pip that finds nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / "acmix"


def cross_compiler() -> None:
    """Skip without one."""
    if shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("there is no cross compiler: apt install g++-aarch64-linux-gnu")


def put_wheel(cache: Path, files: dict[str, bytes]) -> Path:
    """A wheel of ai-edge-litert, of the version that is installed, with these files."""
    version = wheels.installed_version("ai-edge-litert", "tflite")
    file = cache / "wheels" / f"ai_edge_litert-{version}-cp311-cp311-manylinux_2_27_aarch64.whl"
    file.parent.mkdir(parents=True)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file


@pytest.mark.parametrize("target", sorted(BUILDS))
def test_without_a_compiler_the_package_is_named(target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"no aarch64-linux-gnu-gcc here[\s\S]*apt install g\+\+-aarch64-linux-gnu"):
        build_runner(target)


def test_a_wheel_that_cannot_be_downloaded_is_told_with_its_place(empty_cache: Path) -> None:
    cross_compiler()
    with pytest.raises(UsageError, match=r"wheel of ai-edge-litert .* cannot be downloaded[\s\S]*put the wheel into"):
        build_runner("tflite")


def test_a_package_that_is_not_installed_names_its_extra() -> None:
    with pytest.raises(UsageError, match=r"pip install 'acmix\[tflite\]'"):
        wheels.installed_version("no-such-runtime", "tflite")


def test_a_wheel_without_the_library_leaves_nothing_behind(empty_cache: Path) -> None:
    cross_compiler()
    put_wheel(empty_cache, {"ai_edge_litert/other.so": b"x"})
    with pytest.raises(UsageError, match="does not know that version"):
        build_runner("tflite")
    assert list((empty_cache / "runners").iterdir()) == []


def test_a_library_that_does_not_link_shows_the_linkers_words(empty_cache: Path) -> None:
    cross_compiler()
    put_wheel(empty_cache, {"ai_edge_litert/libLiteRt.so": b"no library"})
    with pytest.raises(UsageError, match=r"aarch64-linux-gnu-gcc could not compile: .*libLiteRt"):
        build_runner("tflite")
    assert list((empty_cache / "runners").iterdir()) == []


@pytest.mark.parametrize("damage", ["../evil", "ai_edge_litert/../../evil"])
def test_a_wheel_cannot_write_outside_its_folder(empty_cache: Path, tmp_path: Path, damage: str) -> None:
    file = put_wheel(empty_cache, {damage: b"x"})
    with pytest.raises(UsageError):
        wheels.unpack(file, ("ai_edge_litert/", "../"), tmp_path / "unpacked")
    assert not list(tmp_path.glob("**/evil"))


def test_a_damaged_wheel_is_refused(empty_cache: Path) -> None:
    cross_compiler()
    put_wheel(empty_cache, {}).write_bytes(b"PK no archive")
    with pytest.raises(UsageError, match="cannot be unpacked"):
        build_runner("tflite")
