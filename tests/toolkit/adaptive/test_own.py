"""Adaptive models of a user's own: file.py:NAME is found, checked, exported, and compared with eager on request."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from acmix.apps import adaptive
from acmix.apps.requests import ExportFlags
from acmix.toolkit.adaptive.artifact import open_adaptive
from acmix.toolkit.adaptive.export import export_adaptive
from acmix.toolkit.adaptive.find import find_adaptive, names_adaptive
from acmix.toolkit.adaptive.rebuild import rebuild_adaptive
from acmix.toolkit.errors import UsageError
from acmix.toolkit.source import find_model

OWN = """
import torch
from torch import nn

from acmix.toolkit.adaptive.spec import AdaptiveSpec, Crop, Photo, Run, Stage, Zeros, own
from acmix.toolkit.spec import ModelSpec, TensorSpec, imagenet_preprocess


class Early(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        maps = torch.relu(self.stem(x))
        return self.head(maps.mean((2, 3))), maps


class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.deep = nn.Conv2d(6, 8, 3, 2, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, maps):
        return self.head(torch.relu(self.deep(maps)).mean((2, 3)))


def trained(kind):
    torch.manual_seed(SEED)
    return kind()


SEED = 0
SEES = imagenet_preprocess(32)
EARLY = ModelSpec("own_early", lambda: trained(Early), (TensorSpec("image", (1, 3, 32, 32), layout="nchw"),),
                  ("logits", "maps"), SEES)
LATE = ModelSpec("own_late", lambda: trained(Late), (TensorSpec("maps_in", (1, 6, 16, 16), layout="nchw"),))
NET = AdaptiveSpec(
    name="own_net",
    reference="",
    networks={"early": own(EARLY), "late": own(LATE)},
    stages=(
        Stage("early", (Photo(SEES, "image"), Run("early", ("image",), ("logits_1", "maps"))), "logits_1"),
        Stage("late", (Run("late", ("maps",), ("logits_2",)),), "logits_2"),
    ),
)


def make():
    return trained(Early)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A user's file."""
    path = tmp_path / "nets.py"
    path.write_text(OWN, encoding="utf-8")
    return path


def changed(file: Path, before: str, after: str) -> str:
    """--model for a file beside it with one thing changed."""
    other = file.with_name("changed.py")
    assert OWN.count(before) == 1
    other.write_text(OWN.replace(before, after), encoding="utf-8")
    return f"{other}:NET"


def test_a_spec_in_a_file_is_adaptive_and_a_network_beside_it_is_not(file: Path) -> None:
    assert names_adaptive(f"{file}:NET")
    assert find_adaptive(f"{file}:NET").reference == f"{file}:NET"
    assert not names_adaptive(f"{file}:make")
    with pytest.raises(UsageError, match="make is no adaptive model"):
        find_adaptive(f"{file}:make")
    # An attribute that is not there is left to the message that single models have.
    assert not names_adaptive(f"{file}:NAT")
    with pytest.raises(UsageError, match=r"has no 'NAT'.*Did you mean NET"):
        find_model(f"{file}:NAT", ())


def test_a_file_that_is_not_there_or_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        names_adaptive(f"{tmp_path / 'none.py'}:NET")
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"importing .*broken.py' failed: ZeroDivisionError"):
        names_adaptive(f"{broken}:NET")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"maps"))', '"maps", "more"))', "network 'early' gives is 2 by its ModelSpec, 3 by the stages"),
        ('Run("late", ("maps",)', 'Run("late", ("maps", "image")', "network 'late' takes is 1 by its ModelSpec, 2"),
        ('Run("late", ("maps",)', 'Run("late", ("map",)', "reads 'map' before anything made it"),
        ('"late": own(LATE)', '"other": own(LATE)', "the stages run early, late; there are early, other"),
        (
            'networks={"early": own(EARLY), "late": own(LATE)}',
            'networks={"early": own(EARLY), "late.one": own(LATE)}',
            "a network of the stages is called 'late.one'; torch has no dots in names",
        ),
        ('("logits_1", "maps"))', '("logits_1", "maps", "a.b"))', "a value of the stages is called 'a.b'"),
        (
            'Run("late", ("maps",)',
            'Crop("maps", "logits_1", (8, 8), "patch"), Run("late", ("patch",)',
            "'late' crops 'maps', which is no image: a crop is cut from what 'photo', 'resize' or another 'crop' makes",
        ),
        (
            'Run("late", ("maps",)',
            'Zeros((1, 6, 16, 16), "none"), Crop("none", "logits_1", (8, 8), "patch"), Run("late", ("patch",)',
            "'late' crops 'none', which is no image",
        ),
        ('name="own_net"', 'name="../own"', r"is called '\.\./own'; folders are named after it"),
    ],
)
def test_stages_that_do_not_fit_are_refused(file: Path, before: str, after: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_adaptive(changed(file, before, after))


def test_it_is_exported_and_compared_with_eager_where_its_owner_says_so(
    file: Path, some_photos: Path, tmp_path: Path
) -> None:
    flags = ExportFlags(model=f"{file}:NET", target="onnx", out=tmp_path / "out", photos=some_photos)
    (outcome,) = export_adaptive(adaptive.adaptive_request(flags, {}, "rates=0.5,0.5"), lambda *_: None)
    assert outcome.error == ""
    assert outcome.artifact is not None
    artifact = open_adaptive(outcome.artifact.folder)
    assert artifact.manifest.proof.verdict == "passed"
    assert not artifact.manifest.random_weights
    assert "only its owner runs" in rebuild_adaptive(artifact)[1]
    eager, reason = rebuild_adaptive(artifact, f"{file}:NET")
    assert (eager is not None, reason) == (True, "")
    shutil.move(file, file.with_name("moved.py"))
    with pytest.raises(UsageError, match="there is no file"):
        rebuild_adaptive(artifact, f"{file}:NET")
    other = changed(file, "SEED = 0", "SEED = 1")
    assert rebuild_adaptive(artifact, other)[1].startswith("early of")
