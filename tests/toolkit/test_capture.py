"""Capture: one program, equal to eager; files that must not run code; modules that cannot be captured."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from acmix.toolkit import capture
from acmix.toolkit.errors import UsageError
from acmix.toolkit.layers.acmix import ACmix
from acmix.toolkit.program import copy_program, load_program, save_program
from acmix.toolkit.rewrite import rewrite
from acmix.toolkit.source import ModelSource, find_model, parse_input
from acmix.toolkit.spec import ModelSpec, TensorSpec


def network(module: nn.Module, *shapes: tuple[int, ...], **fields: object) -> capture.Network:
    inputs = tuple(TensorSpec(f"x{i}", shape, layout="nchw") for i, shape in enumerate(shapes or ((1, 3, 8, 8),)))
    spec = ModelSpec("net", lambda: module, inputs, classifies=False, **fields)  # type: ignore[arg-type]
    return capture.build(ModelSource("net", "module", spec), None)


def test_the_captured_program_gives_what_eager_gives(tiny: str) -> None:
    built = capture.build(find_model(tiny, (parse_input("1x3x32x32"),)), None)
    captured = capture.capture(built, ["onnx"])
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(captured.programs["onnx"].program.module()(x), torch.from_numpy(built([x.numpy()])[0]))
    assert [spec.name for spec in captured.outputs] == ["output"]
    assert captured.classifies


def test_macs_are_counted_by_hand() -> None:
    built = network(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Flatten(), nn.Linear(8 * 16, 5)))
    assert capture.capture(built, ["onnx"]).macs == 8 * 4 * 4 * 3 * 9 + 8 * 16 * 5


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"twice": x * 2, "half": x / 2}


def test_outputs_in_a_dict_keep_their_order_and_names() -> None:
    built = network(Named())
    outputs = built([np.ones((1, 3, 8, 8), np.float32)])
    assert [float(o.max()) for o in outputs] == [2.0, 0.5]
    assert [spec.name for spec in capture.capture(built, ["onnx"]).outputs] == ["twice", "half"]


def test_an_output_with_an_inputs_name_is_refused() -> None:
    class Echo(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"x0": x * 2}

    with pytest.raises(UsageError, match="'x0' is the name of an input and of an output"):
        capture.capture(network(Echo()), ["onnx"])


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        (lambda x: {0: x + 1, 1: x * 2}, ["output_0", "output_1"]),
        (lambda x: {"a b": x + 1, "a_b": x * 2}, ["output_0", "output_1"]),
        (lambda x: {"p3": x + 1, "p 4": x * 2}, ["p3", "p_4"]),
        (lambda x: {"maps": {"fine": x + 1, "coarse": x * 2}, "none": []}, ["output_0", "output_1"]),
    ],
    ids=["numbers", "keys that fall together", "words", "a dict in a dict"],
)
def test_every_output_gets_one_name_that_formats_take(outputs: Callable[[Tensor], object], names: list[str]) -> None:
    captured = capture.capture(network(Wrong(outputs)), ["onnx"])
    assert [spec.name for spec in captured.outputs] == names


class Wrong(nn.Module):
    def __init__(self, value: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> object:
        return self.value(x)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [(lambda x: "text", "returns a str"), (lambda x: x.sum(), "rank 1 or more"), (lambda x: (x, 3), "returns a int")],
    ids=["text", "rank 0", "number"],
)
def test_outputs_that_are_no_tensors_are_refused(value: Callable[[Tensor], object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        capture.capture(network(Wrong(value)), ["onnx"])


def test_an_inference_form_that_differs_is_refused() -> None:
    def wrong(module: nn.Module, target: str) -> nn.Module:
        return nn.Sequential(module, nn.Hardtanh(-1e-3, 1e-3))

    with pytest.raises(UsageError, match="differs from the published network"):
        capture.capture(network(nn.Conv2d(3, 4, 1), for_inference=wrong), ["onnx"])


def test_a_users_network_with_our_layers_gets_their_inference_forms() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), ACmix(8, heads=2)).eval()
    captured = capture.capture(network(module), ["executorch", "onnx"])
    for made in captured.programs.values():
        assert made.preparation.forms
        assert made.preparation.error_float64 is not None
        assert not [n for n in made.program.graph.nodes if "im2col" in n.name]
        x = torch.randn(1, 3, 8, 8)
        torch.testing.assert_close(made.program.module()(x), module(x), rtol=1e-4, atol=1e-5)


def test_weights_that_are_views_are_laid_out_in_order() -> None:
    conv = nn.Conv2d(4, 6, 1)
    conv.weight = nn.Parameter(conv.weight.detach().transpose(0, 1).contiguous().transpose(0, 1))
    assert not conv.weight.is_contiguous()
    captured = capture.capture(network(conv, (1, 4, 8, 8)), ["tflite"])
    program = captured.programs["tflite"].program
    assert all(value.is_contiguous() for value in program.state_dict.values())
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(program.module()(x), conv(x))


class Table(nn.Module):
    """A matrix product with a table that no checkpoint holds."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(32.0).view(8, 4).t(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table


def test_tables_that_are_views_are_laid_out_in_order() -> None:
    module = Table()
    assert not module.table.is_contiguous()
    program = capture.capture(network(module, (1, 3, 8, 4)), ["tflite"]).programs["tflite"].program
    tables = [*program.constants.values(), *program.state_dict.values()]
    assert len(tables) == 1
    assert all(isinstance(table, Tensor) and table.is_contiguous() for table in tables)
    x = torch.randn(1, 3, 8, 4)
    torch.testing.assert_close(program.module()(x), module(x))
    assert not module.table.is_contiguous()


def test_a_copied_program_can_be_rewritten_without_its_source(tmp_path: Path) -> None:
    class Shadow(nn.Module):
        """Its input has the name of a Python function, which a copy spells otherwise."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

        def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
            return torch.roll(self.conv(input), 1, 3), input

    x = torch.randn(1, 3, 8, 8)
    module = Shadow().eval()
    program = torch.export.export(module, (x,))
    before, weights_before = str(program.graph), program.state_dict["conv.0.weight"].clone()
    copied = copy_program(program)
    assert {rule.name for rule in rewrite(copied)} >= {"fold_batch_norm", "roll"}
    copied.validate()
    save_program(copied, tmp_path / "copied.pt2")
    for made in (program, copied, load_program(tmp_path / "copied.pt2")):
        torch.testing.assert_close(made.module()(x), module(x))
    assert str(program.graph) == before
    assert torch.equal(program.state_dict["conv.0.weight"], weights_before)


def test_a_random_seed_gives_the_same_network() -> None:
    source = find_model("mobilenet_v3_small_100", ())
    digests = [capture.build(source, "random", seed).weights.digest for seed in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]


def test_weights_for_a_saved_program_are_refused(tmp_path: Path) -> None:
    program = torch.export.export(nn.Conv2d(3, 2, 1).eval(), (torch.zeros(1, 3, 4, 4),))
    save_program(program, tmp_path / "a.pt2")
    with pytest.raises(UsageError, match="leave --weights out"):
        capture.build(find_model(str(tmp_path / "a.pt2"), ()), "random")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_program(torch.export.export(nn.Conv2d(3, 2, 1).eval(), (torch.zeros(1, 3, 4, 4),)), tmp_path / "a.pt2")
    return tmp_path / "a.pt2"


def test_a_truncated_program_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-200])
    with pytest.raises(UsageError, match="truncated"):
        load_program(saved)


def test_a_program_with_a_pickled_object_is_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("a/data/constants/opaque_obj_0", b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(UsageError, match="could run code: refused"):
        load_program(saved)


@pytest.mark.parametrize(
    "entry", ["a/data/constants/opaque_obj_0/x", "a/data/aotinductor/model/wrapper.so", "a/data/custom_obj_1"]
)
def test_whatever_loading_would_execute_is_refused(saved: Path, entry: str) -> None:
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr(entry, b"")
    with pytest.raises(UsageError, match="could run code: refused"):
        load_program(saved)


def test_a_constant_that_points_at_a_pickled_object_is_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("a/data/constants/extra_config.json", '{"config": {"x": {"path_name": "opaque_obj_0/x"}}}')
    with pytest.raises(UsageError, match="could run code: refused"):
        load_program(saved)


def test_an_evaluated_size_expression_is_refused(saved: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(saved) as good, zipfile.ZipFile(tmp_path / "b.pt2", "w") as bad:
        for name in good.namelist():
            text = good.read(name)
            bad.writestr(name, text.replace(b'{"as_int"', b'{"as_expr": "1", "as_int"') if "/models/" in name else text)
    with pytest.raises(UsageError, match="dynamic shape"):
        load_program(tmp_path / "b.pt2")


def test_a_damaged_archive_is_refused(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[data.rindex(b"PK\x01\x02") : data.rindex(b"PK\x01\x02") + 4] = b"XXXX"
    saved.write_bytes(data)
    with pytest.raises(UsageError, match="is not a saved ExportedProgram"):
        load_program(saved)


class Hostile:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch owned",)


def test_pickled_sample_inputs_run_no_code(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = tmp_path / "hostile.pt2"
    torch.save(Hostile(), tmp_path / "payload")
    with zipfile.ZipFile(saved) as good, zipfile.ZipFile(hostile, "w") as bad:
        for name in good.namelist():
            inputs = "sample_inputs" in name and name.endswith(".pt")
            bad.writestr(name, (tmp_path / "payload").read_bytes() if inputs else good.read(name))
    with pytest.raises(UsageError, match="cannot be read as an ExportedProgram"):
        load_program(hostile)
    assert not (tmp_path / "owned").exists()


def test_a_source_can_be_built_twice(tiny: str) -> None:
    source = find_model(tiny, (parse_input("1x3x32x32"),))
    first, second = (capture.build(source, None) for _ in range(2))
    assert first.weights == second.weights
    assert dataclasses.replace(first.weights, kind="random").is_random
