"""tradeoff.json and its picture: read back, damaged, drawn."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acmix.calibration.tradeoff import (
    Rung,
    Tradeoff,
    digest,
    draw,
    encoded,
    file_name,
    read_tradeoff,
    require_picture,
    whole,
    write,
)
from acmix.toolkit.errors import UsageError


def rung(name: str, drop: float, kept: tuple[str, ...] = ()) -> Rung:
    return Rung(name, "mse", False, True, kept, 0.9 - drop / 100, 0.95, drop, 18.0, 4.8, 1.0 - 0.1 * len(kept), 2.0)


FOUND = Tradeoff(
    1.0,
    "eval",
    150,
    "abc",
    0.9,
    18.5,
    (rung("w8a8", 40.0), rung("equalized", 3.0), rung("2 in float", 0.5, ("a", "b"))),
    2,
)


def test_what_is_written_is_read_back_and_has_the_digest_that_is_said(tmp_path: Path) -> None:
    file = tmp_path / file_name(FOUND)
    write(file, FOUND)
    assert list(tmp_path.iterdir()) == [file]
    assert read_tradeoff(file) == FOUND
    assert digest(FOUND) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert json.loads(file.read_text())["schema_version"] == 2


def test_two_ladders_never_have_one_name() -> None:
    assert file_name(FOUND) == f"tradeoff-{hashlib.sha256(encoded(FOUND)).hexdigest()[:8]}.json"
    assert file_name(FOUND) != file_name(replace(FOUND, max_drop=2.0))


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"before")

    def fail() -> None:
        with whole(file) as part:
            part.write_bytes(b"half")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", b"before")]


@pytest.mark.parametrize(
    ("text", "sentence"), [("{", "is no tradeoff.json"), ("[1]", "is no tradeoff.json"), ("", "is no tradeoff.json")]
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "tradeoff.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=sentence):
        read_tradeoff(file)


def test_another_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tradeoff.json"
    file.write_bytes(encoded(replace(FOUND, schema_version=3)))
    with pytest.raises(UsageError, match="schema version 3"):
        read_tradeoff(file)


def test_the_best_is_the_one_taken_or_else_the_one_that_drops_least() -> None:
    assert FOUND.best.name == "2 in float"
    out_of_reach = replace(FOUND, rungs=FOUND.rungs[:2], chosen=None)
    assert out_of_reach.best.name == "equalized"
    assert (FOUND.measure, replace(FOUND, float_top1=None).measure) == ("top-1", "agreement with the float network")


def test_the_picture_shows_what_was_taken_in_green(tmp_path: Path) -> None:
    def green(file: Path) -> int:
        pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
        return int(((pixels[..., 1] > 120) & (pixels[..., 0] < 80) & (pixels[..., 2] < 80)).sum())

    taken, none = tmp_path / "taken.png", tmp_path / "none.png"
    draw(taken, FOUND)
    draw(none, replace(FOUND, chosen=None))
    assert green(taken) > 500
    assert green(none) == 0


def test_a_picture_of_no_known_kind_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--plot .*\.jpg has no known suffix"):
        require_picture(tmp_path / "a.jpg", "--plot")
    with pytest.raises(UsageError, match=r"--plot .*a.png cannot be written: there is no folder .*gone"):
        require_picture(tmp_path / "gone" / "a.png", "--plot")
