"""Files through a shell, where the other side's disk is full."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import IO

import pytest

from acmix.toolkit.device import Completed
from acmix.toolkit.devices import _transfer
from acmix.toolkit.devices._item import items
from acmix.toolkit.devices._process import Sink
from acmix.toolkit.errors import GateError


def shell(
    snippet: str,
    *,
    timeout_s: float,
    stdin: bytes | IO[bytes] = b"",
    limit_bytes: int = 0,
    sink: Sink | None = None,
) -> Completed:
    """This machine's sh, as the device's."""
    fed = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    done = subprocess.run(["sh", "-c", snippet], capture_output=True, timeout=timeout_s, check=False, **fed)  # type: ignore[call-overload]
    return Completed(done.returncode, done.stdout, done.stderr)


def test_a_full_disk_is_named_and_not_taken_for_damage(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    source, folder = tmp_path / "model.bin", tmp_path / "work"
    source.write_bytes(b"model" * 100_000)
    folder.mkdir()
    (item,) = items(source, str(folder), "model.bin")
    Path(item.part).symlink_to("/dev/full")
    with pytest.raises(GateError, match=r"could not write model\.bin: .*No space left") as raised:
        _transfer.push(shell, "board", str(folder), source, "model.bin")
    assert "damaged" not in str(raised.value)
    assert not (folder / "model.bin").exists()


def test_a_file_that_was_cut_is_continued_and_one_with_other_bytes_replaced(tmp_path: Path) -> None:
    source, folder = tmp_path / "model.bin", tmp_path / "work"
    source.write_bytes(bytes(range(256)) * 100)
    folder.mkdir()
    (item,) = items(source, str(folder), "model.bin")
    for held in (source.read_bytes()[:1000], b"x" * 1000):
        Path(item.part).write_bytes(held)
        _transfer.push(shell, "board", str(folder), source, "model.bin")
        assert (folder / "model.bin").read_bytes() == source.read_bytes()
        assert [file.name for file in folder.iterdir()] == ["model.bin"]
        (folder / "model.bin").unlink()
