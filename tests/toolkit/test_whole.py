"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from acmix.toolkit.whole import write_whole


def test_a_file_is_there_whole_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    assert write_whole(file, b"one") == file
    write_whole(file, b"two")
    assert file.read_bytes() == b"two" and file.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_put_in_its_place_leaves_nothing(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(OSError):
        write_whole(taken, b"data")
    assert list(tmp_path.iterdir()) == [taken]
