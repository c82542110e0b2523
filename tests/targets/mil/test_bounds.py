"""Loops that never end are stopped by the work that they do, and acmix's own packages tell a changed weight."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acmix.targets.coreml import TARGET
from acmix.targets.formats import coreml_package
from acmix.targets.mil import load_package, work
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.errors import UsageError

X = {"x": np.full((64, 64), 0.5, np.float32)}
Build = Callable[[Any, Any], Any]


def endless(mb: Any, x: Any) -> Any:
    """A condition that stays true: the identity leaves every value below its limit."""
    return mb.while_loop(
        _cond=lambda y: mb.less(x=mb.reduce_max(x=y, axes=[0, 1]), y=np.float32(1)),
        _body=lambda y: mb.matmul(x=y, y=np.eye(64, dtype=np.float32)),
        loop_vars=(x,),
    )


def nested(mb: Any, x: Any) -> Any:
    """Rounds inside rounds, each inner loop ending after many: no one loop does too much."""

    def inner(outer: Any) -> Any:
        count, _ = mb.while_loop(
            _cond=lambda i, y: mb.less(x=i, y=np.float32(100)),
            _body=lambda i, y: (mb.add(x=i, y=np.float32(1)), mb.identity(x=y)),
            loop_vars=(np.float32(0), outer),
        )
        return mb.sub(x=outer, y=mb.mul(x=count, y=np.float32(0)))

    return mb.while_loop(
        _cond=lambda y: mb.less(x=mb.reduce_max(x=y, axes=[0, 1]), y=np.float32(1)), _body=inner, loop_vars=(x,)
    )


@pytest.mark.parametrize("build", [endless, nested])
def test_a_loop_without_end_is_refused_by_the_work_that_it_does(
    build: Build, packages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_package(packages.build(build, X))
    monkeypatch.setattr(work, "LIMIT", 10**9)
    begin = time.process_time()
    with pytest.raises(UsageError, match="does not come to an end"):
        model(X)
    # Of the real limit, a minute's work, this is a thousandth.
    assert time.process_time() - begin < 5


def test_what_a_program_does_outside_of_loops_is_not_counted(packages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_package(packages.build(lambda mb, x: mb.matmul(x=x, y=np.eye(64, dtype=np.float32)), X))
    monkeypatch.setattr(work, "LIMIT", 0)
    np.testing.assert_array_equal(*model(X).values(), X["x"])


def test_a_product_is_charged_with_its_multiply_accumulates() -> None:
    import torch

    operands, result = (torch.zeros(100, 300), torch.zeros(300, 200)), torch.zeros(100, 200)
    moved = sum(one.numel() for one in (*operands, result))
    products = work.cost_of("matmul", operands, [result]) - work.OPERATION_COST - work.ELEMENT_COST * moved
    assert products == 100 * 300 * 200
    assert work.cost_of("add", operands, [result]) == work.OPERATION_COST + work.ELEMENT_COST * moved


@pytest.fixture
def package(exported: Callable[[str], dict[str, Artifact]], tmp_path: Path) -> Path:
    """A package of acmix's own, without its artifact."""
    return Path(shutil.copytree(exported("float16")["coreml"].model_file, tmp_path / "copy.mlpackage"))


def flip(package: Path, place: int, bit: int = 0) -> None:
    """Change one bit of the weights."""
    file = package / coreml_package.WEIGHTS
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)


def test_a_flipped_byte_anywhere_in_the_weights_of_our_own_package_is_refused(package: Path) -> None:
    load_package(package)
    size = (package / coreml_package.WEIGHTS).stat().st_size
    for place in {*range(0, size, max(1, size // 40)), size - 1}:
        flip(package, place)
        with pytest.raises(UsageError, match=r"weights/weight\.bin' are damaged"):
            load_package(package)
        flip(package, place)
    load_package(package)


def test_other_weights_can_be_evaluated_on_purpose_and_nan_is_a_result(package: Path) -> None:
    sound = load_package(package)
    feed = {one.name: np.ones((1, 3, 32, 32), np.float32) for one in sound.interface().inputs}
    expected = next(iter(sound(feed).values()))
    specification = coreml_package.read_specification(package)
    *_, offset = (
        operation.attributes["val"].blobFileValue.offset
        for operation in coreml_package.operations(specification, constants=True)
        if operation.attributes["val"].WhichOneof("value") == "blobFileValue"
    )
    file = package / coreml_package.WEIGHTS
    data = bytearray(file.read_bytes())
    start = coreml_package.BLOB_RECORD.unpack_from(data, offset)[3]
    data[start : start + 2] = np.float16(np.nan).tobytes()
    file.write_bytes(data)
    with pytest.raises(UsageError, match="a byte has changed"):
        load_package(package)
    found = next(iter(load_package(package, check_weights=False)(feed).values()))
    assert np.isfinite(expected).all()
    assert not np.isfinite(found).all()
    # Through an artifact its own digests have been checked before.
    with TARGET.reference(package) as run:
        assert run(list(feed.values()))[0].shape == found.shape


def test_a_package_that_was_compressed_afterwards_is_not_taken_for_damaged(package: Path) -> None:
    """coremltools keeps the metadata of a package whose weights it replaces by smaller ones."""
    file = package / coreml_package.WEIGHTS
    file.write_bytes(file.read_bytes() + bytes(64))
    load_package(package)
