"""Comparing saved files with eager and with each other: a broken weight is found by its module's name and line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from acmix.toolkit._compare_match import aligned, match_values
from acmix.toolkit._compare_program import Step, steps_of, values_of
from acmix.toolkit._compare_rows import last_of_each_run, modules_of
from acmix.toolkit.artifact import Artifact, open_artifact
from acmix.toolkit.compare import CompareRequest, compare
from acmix.toolkit.errors import UsageError
from acmix.toolkit.source import find_model, parse_input

TINY = f"{Path(__file__).parents[1] / 'tiny_net.py'}:make_net"
Exported = Callable[[str], dict[str, Artifact]]


def make_net() -> nn.Module:
    """The tiny network, its weights seeded as an export seeds them."""
    torch.manual_seed(0)
    return find_model(TINY, (parse_input("1x3x32x32"),)).spec.build().eval()


def damaged(artifact: Artifact, folder: Path, path: str = "gate.1.weight") -> Artifact:
    """A copy whose file holds one weight of the tiny network half as large again.

    A 1 x 1 filter lies in every format in PyTorch's own order, so its bytes are found without reading the format.
    """
    copy = folder / artifact.name
    shutil.copytree(artifact.folder, copy)
    weight = make_net().get_parameter(path).detach().numpy()
    old, new = weight.tobytes(), (weight * np.float32(1.5)).tobytes()
    holders = [file for file in sorted(copy.rglob("*")) if file.is_file() and old in file.read_bytes()]
    assert len(holders) == 1 and holders[0].read_bytes().count(old) == 1
    holders[0].write_bytes(holders[0].read_bytes().replace(old, new))
    return open_artifact(copy)


@pytest.mark.parametrize("target", ["coreml", "executorch", "onnx", "tflite"])
def test_a_scaled_weight_is_found_by_its_module_and_line(
    exported: Exported, tiny: str, tmp_path: Path, target: str
) -> None:
    broken = damaged(exported("float32")[target], tmp_path)
    (tmp_path / "scratch").mkdir()
    result = compare(CompareRequest(broken, layers=True, model=tiny), tmp_path / "scratch", tmp_path / "compare.log")
    assert result.first is not None
    assert result.first.module == "gate.1"
    assert result.first.operator == "conv2d"
    assert result.first.line.rpartition("/")[2] == "tiny_net.py:21"
    assert result.first.snr_db is not None and result.first.snr_db < 20
    assert not result.agrees
    # What comes before the break, and the branch beside it, is as close as a healthy file's.
    before = {module.module: module.snr_db for module in result.modules}
    for module in ("stem.0", "depthwise.0"):
        assert (before[module] or 0) > 90, module
    assert "has changed since it was exported" in result.remarks[0]
    assert len(result.remarks) == 1, result.remarks


def test_two_healthy_files_part_nowhere_and_have_their_modules_in_common(
    exported: Exported, tiny: str, tmp_path: Path
) -> None:
    files = exported("float32")
    request = CompareRequest(files["tflite"], files["coreml"], layers=True, model=tiny)
    result = compare(request, tmp_path, tmp_path / "compare.log")
    assert result.first is None and result.agrees
    assert result.remarks == ()
    assert result.executed_by == ("runtime", "reference")
    found = [module.module for module in result.modules]
    assert [name for name in found if name.endswith((".0", ".1")) or name == "head"] == [
        "stem.0",
        "depthwise.0",
        "gate.0",
        "gate.1",
        "point.0",
        "head",
    ]


def test_the_outputs_of_two_files_are_compared_on_every_probe_without_torch(exported: Exported, tmp_path: Path) -> None:
    files = exported("float32")
    result = compare(CompareRequest(files["onnx"], files["tflite"]), tmp_path, tmp_path / "compare.log")
    assert result.agrees and result.modules == ()
    (scores,) = result.outputs
    assert scores.samples == 7 and scores.top1_agreement == 1
    assert scores.snr_db is not None and 100 < scores.snr_db < 300


def test_a_changed_file_is_refused_where_no_layers_are_asked_for(exported: Exported, tmp_path: Path) -> None:
    broken = damaged(exported("float32")["onnx"], tmp_path)
    with pytest.raises(UsageError, match=r"has changed since it was exported[\s\S]*--layers"):
        compare(CompareRequest(broken), tmp_path, tmp_path / "compare.log")


def test_a_network_of_ones_own_is_asked_for_by_name(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--model"):
        compare(CompareRequest(exported("float32")["onnx"], layers=True), tmp_path, tmp_path / "compare.log")


def test_values_are_matched_through_any_order_of_axes_and_the_closest_node_wins() -> None:
    rng = np.random.default_rng(0)
    nodes = [rng.standard_normal((2, 1, 6, 4, 4)).astype(np.float32) for _ in range(2)]
    near = nodes[0] + 1e-3 * rng.standard_normal(nodes[0].shape).astype(np.float32)
    named = {"near": list(near), "conv": list(nodes[0]), "again": list(nodes[0]), "other": list(nodes[1])}
    values = {
        "last": [one.transpose(0, 2, 3, 1) for one in nodes[0]],
        "pad": list(rng.standard_normal((2, 1, 6, 4, 4))),
    }
    found = match_values(values, named, 50.0)
    # The same numbers twice: the first in order of execution. A square map: H and W are not swapped.
    assert {name: match.node for name, match in found.items()} == {"last": "conv"}
    assert np.array_equal(aligned(values["last"][1], found["last"]), nodes[0][1].ravel())


def test_steps_have_module_paths_lines_and_no_weights_among_their_inputs() -> None:
    program = torch.export.export(make_net(), (torch.zeros(1, 3, 32, 32),))
    steps = steps_of(program)
    head = next(step for step in steps.values() if step.module == "head")
    assert head.operator == "linear" and head.kind == "Linear" and head.weighted
    assert head.line.endswith("tests/tiny_net.py:22") and len(head.inputs) == 1
    gates = [step for step in steps.values() if step.operator == "mul"]
    assert [(g.module, g.kind, len(g.inputs), g.weighted) for g in gates] == [("", "TinyNet", 2, False)]


def test_eager_values_are_the_modules_own_outputs() -> None:
    net = make_net()
    seen: dict[str, torch.Tensor] = {}
    net.get_submodule("gate.1").register_forward_hook(lambda m, i, out: seen.update(gate=out.detach()))
    image = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        net(torch.from_numpy(image))
    program = torch.export.export(make_net(), (torch.zeros(1, 3, 32, 32),))
    name = next(step.node for step in steps_of(program).values() if step.module == "gate.1")
    np.testing.assert_allclose(values_of(program, [image])[name], seen["gate"].numpy(), rtol=1e-6)


def test_several_values_of_one_line_in_a_row_are_shown_once_by_their_last() -> None:
    lines = {"q": "a.py:1", "k": "a.py:1", "norm": "a.py:2", "out": "a.py:1"}
    steps = {name: Step(name, "mul", "block", "Block", line, (), False) for name, line in lines.items()}
    assert last_of_each_run(steps, list(lines)) == ["k", "norm", "out"]
    assert last_of_each_run(steps, []) == []


STEPS = {
    "conv": Step("conv", "conv2d", "a.conv", "Conv2d", "a.py:1", ("image",), True),
    "act": Step("act", "relu", "a.act", "ReLU", "a.py:2", ("conv",), False),
    "head": Step("head", "linear", "head", "Linear", "a.py:3", ("act",), True),
}


def test_a_module_parts_by_a_jump_on_one_sample_below_what_is_asked() -> None:
    ratios = {"act": [130.0, 40.0], "head": [120.0, 35.0]}
    act, head = modules_of(STEPS, ["act", "head"], ratios, ["ramp", "noise"], 70.0)
    # The files have no value of the convolution alone: it is named, because the weights are its own.
    assert (act.module, act.operator, act.line, act.covers) == ("a.conv", "conv2d", "a.py:1", ("a.act",))
    assert (act.parts, act.snr_db, act.inputs_snr_db, act.worst_sample) == (True, 40.0, 300.0, "noise")
    # What comes after carries the break on; it is none of its own.
    assert not head.parts and head.inputs_snr_db == 40.0


def test_rounding_that_gathers_and_values_of_zeros_do_not_part() -> None:
    slow = modules_of(STEPS, ["conv", "act", "head"], {"conv": [76.0], "act": [71.0], "head": [66.0]}, ["ramp"], 70.0)
    assert [one.parts for one in slow] == [False, False, False]
    (silent,) = modules_of(STEPS, ["act"], {"act": [None]}, ["zeros"], 70.0)
    assert (silent.snr_db, silent.parts) == (None, False)


def test_an_int8_file_is_held_to_its_own_simulation_and_says_so(exported: Exported, tmp_path: Path) -> None:
    result = compare(CompareRequest(exported("w8a8")["onnx"]), tmp_path, tmp_path / "compare.log")
    assert result.b == "its simulation"
    assert result.agrees
    assert result.outputs[0].tolerance == exported("w8a8")["onnx"].manifest.quantization.conversion  # type: ignore[union-attr]


def test_a_healthy_int8_file_agrees_with_a_float_one_within_its_tolerance(exported: Exported, tmp_path: Path) -> None:
    request = CompareRequest(exported("w8a8")["onnx"], exported("float32")["onnx"])
    result = compare(request, tmp_path, tmp_path / "compare.log")
    assert result.agrees
    assert result.outputs[0].snr_db is not None and 20 < result.outputs[0].snr_db < 60
