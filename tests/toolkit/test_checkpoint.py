"""Checkpoints as users bring them: official, odd, broken and hostile ones."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acmix.toolkit import checkpoint
from acmix.toolkit.checkpoint import read_checkpoint
from acmix.toolkit.errors import UsageError


def tiny() -> nn.Module:
    """Three tensors to learn, two statistics and a counter."""
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 3, 1, bias=False), bn=nn.BatchNorm2d(3)))


def recognisable(offset: float = 0.0) -> dict[str, Tensor]:
    """A state dict of `tiny` in which no two values are equal."""
    state = tiny().state_dict()
    count = 0
    for key, value in state.items():
        state[key] = (torch.arange(value.numel()) + count + offset).reshape(value.shape).to(value.dtype)
        count += value.numel()
    return dict(state)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Files that load


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.pth.tar", "a.safetensors"])
def test_every_suffix_gives_back_what_was_saved(tmp_path: Path, name: str) -> None:
    if name.endswith(".safetensors"):
        save_file(recognisable(), tmp_path / name)
    else:
        torch.save(recognisable(), tmp_path / name)
    assert equal(read_checkpoint(tmp_path / name), recognisable())


def test_the_format_of_torch_before_1_6_is_read(tmp_path: Path) -> None:
    torch.save(recognisable(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "a.pth")
    assert equal(read_checkpoint(tmp_path / "a.pth"), recognisable())


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "state_dict_ema", "model_ema"])
def test_a_wrapped_state_dict_is_unwrapped(tmp_path: Path, wrapper: str) -> None:
    # PyTorch's own ImageNet script keeps its best accuracy as a tensor.
    torch.save({"epoch": 3, "best_acc1": torch.tensor(76.1), wrapper: recognisable()}, tmp_path / "a.pth")
    assert equal(read_checkpoint(tmp_path / "a.pth"), recognisable())


@pytest.mark.parametrize("plain", ["model", "state_dict"])
@pytest.mark.parametrize("average", ["model_ema", "state_dict_ema"])
def test_plain_weights_come_before_their_average(tmp_path: Path, plain: str, average: str) -> None:
    torch.save({average: recognisable(100), plain: recognisable()}, tmp_path / "a.pth")
    assert equal(read_checkpoint(tmp_path / "a.pth"), recognisable())


def test_an_official_lsnet_file_with_its_command_line_is_read(tmp_path: Path) -> None:
    content = {
        "model": recognisable(),
        "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 1e-3}]},
        "lr_scheduler": {"last_epoch": 299},
        "epoch": 299,
        "model_ema": recognisable(100),
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(model="lsnet_t", batch_size=256, distributed=True),
    }
    torch.save(content, tmp_path / "lsnet_t.pth")
    assert equal(read_checkpoint(tmp_path / "lsnet_t.pth"), recognisable())


def test_the_prefix_of_data_parallel_is_cut_off(tmp_path: Path) -> None:
    torch.save({f"module.{key}": value for key, value in recognisable().items()}, tmp_path / "a.pth")
    assert equal(read_checkpoint(tmp_path / "a.pth"), recognisable())


def test_a_prefix_that_only_some_keys_have_stays(tmp_path: Path) -> None:
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").keys() == state.keys()


# Files that are refused


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read_checkpoint(path)
    return str(caught.value)


def test_a_missing_file_is_refused_with_the_closest_name(tmp_path: Path) -> None:
    torch.save(recognisable(), tmp_path / "lsnet_t.pth")
    assert "Did you mean lsnet_t.pth" in refused(tmp_path / "lsnett.pth")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path)


def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"x")
    assert ".safetensors, .pth" in refused(tmp_path / "a.h5")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_empty_file_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").touch()
    assert "is empty" in refused(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_may_not_be_read_is_refused(suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(b"x" * 100)
        path.chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            assert "cannot read" in refused(path)
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float, form: str) -> None:
    path = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pth")
    state = {"weight": torch.randn(64, 64), "bias": torch.randn(64)}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert "cut off" in refused(path)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>404</html>", b"\x00" * 64, b"PK\x03\x04" + b"x" * 90])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_something_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    assert "no checkpoint at all" in refused(tmp_path / f"a{suffix}")


class Hostile:
    """Unpickles by running a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_hostile_pickle_does_not_run(tmp_path: Path, form: str) -> None:
    path, witness = tmp_path / "a.pth", tmp_path / "witness"
    content = {"weight": torch.ones(2), "x": Hostile(f"touch {witness}")}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = refused(path)
    assert not witness.exists()
    if form != "pickle":
        assert "posix.system" in message
    # The file is hostile indeed: an ordinary load does run it.
    if form == "zip":
        torch.load(path, weights_only=False)
        assert witness.exists()


def test_a_whole_pickled_network_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    torch.save(tiny(), tmp_path / "a.pth")
    message = refused(tmp_path / "a.pth")
    assert "torch.nn.modules.container.Sequential" in message
    assert "model.state_dict()" in message


def test_a_torchscript_program_is_refused_by_its_kind(tmp_path: Path) -> None:
    script = "import sys, torch; torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), sys.argv[1])"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, tmp_path / "a.pt"], check=True)
    assert "TorchScript" in refused(tmp_path / "a.pt")


def test_an_archive_that_unpacks_to_far_more_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(50_000_000))
    assert path.stat().st_size < 1_000_000
    assert "50,00" in refused(path)


@pytest.mark.parametrize("value", [3, "x", None, [torch.ones(1)], {"weight": torch.ones(1)}])
def test_an_entry_that_is_no_tensor_is_refused_by_its_key(tmp_path: Path, value: object) -> None:
    torch.save({"weight": torch.ones(1), "odd": value}, tmp_path / "a.pth")
    assert "'odd'" in refused(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [[torch.ones(1)], torch.ones(1), 5, "text"])
def test_content_that_is_no_dict_is_refused_by_its_type(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert type(content).__name__ in refused(tmp_path / "a.pth")


def test_a_dict_without_a_state_dict_is_refused_with_its_entries(tmp_path: Path) -> None:
    torch.save({"model_prime_state_dict": recognisable(), "epoch": 1}, tmp_path / "a.pth")
    assert "model_prime_state_dict, epoch" in refused(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [{}, {"model": {}}])
def test_an_empty_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert "holds" in refused(tmp_path / "a.pth")


def test_a_tensor_without_data_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.empty(3, device="meta")}, tmp_path / "a.pth")
    assert "meta" in refused(tmp_path / "a.pth")


def test_a_sparse_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.eye(3).to_sparse()}, tmp_path / "a.pth")
    assert "sparse" in refused(tmp_path / "a.pth")


def bundle() -> dict[str, Any]:
    """A file of two networks with numpy tables beside them, laid out as GFNet's."""
    wrapped = OrderedDict((f"module.{key}", value) for key, value in recognisable(50).items())
    return {
        "model_name": "tiny",
        "patch_size": 96,
        "glance": wrapped,
        "policy": recognisable(),
        "flops": [43.1, np.float64(88.1)],
        "dynamic_threshold": np.random.default_rng(0).random((39, 3)),
        "anytime_classification": [torch.tensor(70.0), 73.5],
    }


def test_a_file_of_several_networks_gives_all_of_them_and_no_table(tmp_path: Path) -> None:
    torch.save(bundle(), tmp_path / "a.pth.tar")
    wanted = {f"glance.module.{key}": value for key, value in recognisable(50).items()}
    wanted |= {f"policy.{key}": value for key, value in recognisable().items()}
    assert equal(read_checkpoint(tmp_path / "a.pth.tar"), wanted)


def test_a_table_of_tensors_beside_the_networks_is_left_out(tmp_path: Path) -> None:
    torch.save({**bundle(), "dynamic_threshold": torch.rand(39, 3)}, tmp_path / "a.pth")
    assert {key.split(".")[0] for key in read_checkpoint(tmp_path / "a.pth")} == {"glance", "policy"}


def test_no_numpy_value_is_ever_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(bundle(), tmp_path / "a.pth")
    content = checkpoint.read_pickled(tmp_path / "a.pth")
    assert type(content["dynamic_threshold"]) is type(content["flops"][1]) is checkpoint.IgnoredValue
    assert vars(content["dynamic_threshold"]) == {}


def test_an_array_in_place_of_a_weight_is_refused(tmp_path: Path) -> None:
    torch.save({**recognisable(), "conv.weight": np.ones((3, 2))}, tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"conv\.weight.*IgnoredValue, not a tensor"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_configuration_beside_the_weights_is_left_out(tmp_path: Path) -> None:
    """Swin's files hold a yacs CfgNode, a dict that keeps attributes."""
    (tmp_path / "yacs").mkdir()
    (tmp_path / "yacs" / "__init__.py").touch()
    (tmp_path / "yacs" / "config.py").write_text("class CfgNode(dict):\n    pass\n", encoding="utf-8")
    script = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); from yacs.config import CfgNode\n"
        "node = CfgNode(MODEL=CfgNode(DEPTHS=[2, 2])); node.frozen = True\n"
        "torch.save({'model': {'conv.weight': torch.ones(2)}, 'config': node, 'epoch': 3}, sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path), str(tmp_path / "a.pth")], check=True)
    assert set(read_checkpoint(tmp_path / "a.pth")) == {"conv.weight"}
