"""What --model and --input mean."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from acmix.toolkit.errors import UsageError
from acmix.toolkit.program import save_program
from acmix.toolkit.source import find_model, parse_input
from acmix.toolkit.spec import TensorSpec


def test_an_input_has_a_name_a_shape_and_a_type() -> None:
    assert parse_input("1x3x160x96") == TensorSpec("image", (1, 3, 160, 96), "float32", "nchw")
    assert parse_input("ids=1x7:int64") == TensorSpec("ids", (1, 7), "int64", "any")
    assert parse_input("1x7", position=2).name == "input_2"


def test_a_zoo_model_takes_another_size_and_scales_its_preprocessing() -> None:
    spec = find_model("mobilenet_v2", (parse_input("1x3x112x160"),)).spec
    assert spec.inputs[0].shape == (1, 3, 112, 160)
    assert spec.preprocess is not None
    assert spec.preprocess.crop == (112, 160)
    assert spec.preprocess.resize_short == 128


@pytest.mark.parametrize("text", ["1x1x224x224", "1x3x224", "1x3x224x224x2"])
def test_a_zoo_model_refuses_another_kind_of_input(text: str) -> None:
    with pytest.raises(UsageError, match="mobilenet_v2 takes one input 1x3xHxW"):
        find_model("mobilenet_v2", (parse_input(text),))


def test_a_model_spec_of_the_users_own_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "from acmix.toolkit.spec import ModelSpec, TensorSpec\n"
        "SPEC = ModelSpec('mine', lambda: nn.Flatten(), (TensorSpec('x', (1, 4)),), classifies=False)\n",
        encoding="utf-8",
    )
    assert find_model(f"{tmp_path / 'mine.py'}:SPEC", ()).spec.name == "mine"


def test_an_import_that_fails_shows_the_users_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import torch\nx = 1 / 0\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"(?s)ZeroDivisionError.*broken\.py:2: x = 1 / 0"):
        find_model(f"{tmp_path / 'broken.py'}:net", (parse_input("1x3"),))


def test_a_factory_that_fails_shows_the_users_line(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text("def net():\n    raise ValueError('no width')\n", encoding="utf-8")
    source = find_model(f"{tmp_path / 'failing.py'}:net", (parse_input("1x3"),))
    with pytest.raises(UsageError, match=r"(?s)no width.*failing\.py:2"):
        source.spec.build()


def saved_program(folder: Path, **options: object) -> Path:
    program = torch.export.export(nn.Conv2d(3, 2, 1).eval(), (torch.zeros(2, 3, 4, 4),), **options)  # type: ignore[arg-type]
    save_program(program, folder / "my-net.pt2")
    return folder / "my-net.pt2"


def test_a_saved_program_of_another_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has batch 2"):
        find_model(str(saved_program(tmp_path)), ())


def test_a_saved_program_with_dynamic_sizes_is_refused(tmp_path: Path) -> None:
    path = saved_program(tmp_path, dynamic_shapes=({0: torch.export.Dim("batch")},))
    with pytest.raises(UsageError, match="dynamic shape"):
        find_model(str(path), ())


def test_a_saved_program_is_named_like_its_file(tmp_path: Path) -> None:
    program = torch.export.export(nn.Conv2d(3, 2, 1).eval(), (torch.zeros(1, 3, 4, 4),))
    save_program(program, tmp_path / "my-net.pt2")
    spec = find_model(str(tmp_path / "my-net.pt2"), ()).spec
    assert spec.name == "my_net"
    assert [s.shape for s in spec.inputs] == [(1, 3, 4, 4)]
    with pytest.raises(UsageError, match="leave --input out"):
        find_model(str(tmp_path / "my-net.pt2"), (parse_input("1x3x4x4"),))


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for folder, width in (("a", 2), ("b", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets.py").write_text(
            f"from torch import nn\nclass Net(nn.Linear):\n    pass\ndef make():\n    return Net(3, {width})\n",
            encoding="utf-8",
        )
    built = [find_model(f"{tmp_path / f / 'nets.py'}:make", (parse_input("1x3"),)).spec.build() for f in "ab"]
    assert [net.out_features for net in built] == [2, 5]
    assert sys.modules[type(built[0]).__module__] is not sys.modules[type(built[1]).__module__]


def test_a_network_of_the_users_own_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "ready.py").write_text("from torch import nn\nNET = nn.Linear(3, 2)\n", encoding="utf-8")
    spec = find_model(f"{tmp_path / 'ready.py'}:NET", (parse_input("1x3"),)).spec
    first, second = spec.build(), spec.build()
    nn.init.zeros_(first.weight)
    assert second.weight.abs().sum() > 0


def test_a_network_that_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked.py").write_text(
        "import threading\nfrom torch import nn\nNET = nn.Linear(3, 2)\nNET.lock = threading.Lock()\n", encoding="utf-8"
    )
    source = find_model(f"{tmp_path / 'locked.py'}:NET", (parse_input("1x3"),))
    with pytest.raises(UsageError, match=r"(?s)NET is a network that cannot be copied: TypeError.*function that makes"):
        source.spec.build()
