"""The TFLite target against eager float64, torch's own operation counter and the file's bytes."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flatbuffers import encode, packer  # type: ignore[import-untyped]
from flatbuffers.table import Table  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from acmix.targets.formats import tflite_flatbuffer, tflite_metadata, tflite_placement
from acmix.targets.tflite import TARGET, Layout, TFLiteOptions
from acmix.toolkit.recipe import Precision, Recipe, Tolerance
from acmix.toolkit.spec import Preprocess, TensorSpec
from acmix.toolkit.target import Array, Lowered, LoweringJob, Placement, to_layout

PREPROCESS = Preprocess(36, (32, 32), (120.0, 110.0, 100.0), (60.0, 50.0, 40.0))
LABELS = (*(f"class {n}" for n in range(9)), "žába")


class Tiny(nn.Module):
    """A photo and a vector to a map and logits; the running sum is what XNNPACK has no operator for.

    The names sort against their order, so that anything sorted by name is found out.
    """

    # Tensors are named after their modules' classes: the same name, however this file is imported.
    __module__ = "tiny"

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1, groups=16), nn.BatchNorm2d(16), nn.Hardswish())
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.summed, self.head = nn.Conv2d(16, 8, 1), nn.Linear(16 + 5, 10)
        self.enlarge = nn.ConvTranspose2d(8, 6, 2, 2)

    def forward(self, photo: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        x = self.depthwise(self.stem(F.pad(photo, (0, 1, 0, 1))))
        x = x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        z_map = F.relu(self.enlarge(torch.cumsum(self.summed(x), 1)))
        return z_map, self.head(torch.cat([x.mean((2, 3)), vector], 1))


@dataclass(frozen=True)
class Captured:
    program: torch.export.ExportedProgram
    inputs: list[Array]
    eager: list[Array]
    macs: int


@dataclass(frozen=True)
class Exported:
    file: Path
    job: LoweringJob
    lowered: Lowered

    def run(self, inputs: list[Array]) -> list[Array]:
        """Outputs in the captured layout."""
        wanted = zip(inputs, self.job.inputs, self.lowered.inputs, strict=True)
        with TARGET.runner(self.file, threads=1) as infer:
            outputs = infer([to_layout(a, s, w) for a, s, w in wanted])
        stored = zip(outputs, self.lowered.outputs, self.job.outputs, strict=True)
        return [to_layout(a, s, w) for a, s, w in stored]


def recipe(weights: Precision, activations: Precision | None = None) -> Recipe:
    return Recipe(weights, weights, activations or weights, Tolerance(80.0, 1e-5))


def job(precision: Precision, layout: Layout) -> LoweringJob:
    return LoweringJob(
        model="tiny",
        recipe=recipe(precision),
        inputs=(TensorSpec("photo", (1, 3, 32, 32), layout="nchw"), TensorSpec("a_vector", (1, 5))),
        outputs=(TensorSpec("z_map", (1, 6, 16, 16), layout="nchw"), TensorSpec("logits", (1, 10))),
        options=TFLiteOptions(layout),
        preprocess=PREPROCESS,
        labels=LABELS if layout == "nhwc" else (),
    )


def capture() -> Captured:
    torch.manual_seed(0)
    net = Tiny().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean, layer.running_var = torch.randn(16) / 5, torch.rand(16) + 0.5
    inputs = (torch.randn(1, 3, 32, 32), torch.randn(1, 5))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*inputs)
    exact = copy.deepcopy(net).double()
    with torch.no_grad():
        eager = [y.numpy() for y in exact(*(x.double() for x in inputs))]
    program = torch.export.export(net, inputs)
    return Captured(program, [x.numpy() for x in inputs], eager, counter.get_total_flops() // 2)


def export(captured: Captured, folder: Path, precision: Precision = "float32", layout: Layout = "nhwc") -> Exported:
    file = folder / f"{precision}_{layout}.tflite"
    wanted = job(precision, layout)
    return Exported(file, wanted, TARGET.lower(captured.program, wanted, file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tflite")


@pytest.fixture(scope="module")
def captured() -> Captured:
    return capture()


@pytest.fixture(scope="module")
def nhwc(captured: Captured, folder: Path) -> Exported:
    return export(captured, folder)


@pytest.fixture(scope="module")
def nchw(captured: Captured, folder: Path) -> Exported:
    return export(captured, folder, layout="nchw")


@pytest.fixture(scope="module")
def half(captured: Captured, folder: Path) -> Exported:
    return export(captured, folder, "float16")


@pytest.fixture(scope="module")
def placed(nhwc: Exported) -> Placement:
    return TARGET.placement(nhwc.file)


def snr_db(reference: Array, actual: Array) -> float:
    noise = np.square(reference - actual.astype(np.float64)).sum()
    return float(10 * np.log10(np.square(reference).sum() / max(noise, 1e-30)))


def agreement_db(exported: Exported, captured: Captured) -> float:
    """The worst of both outputs."""
    outputs = exported.run(captured.inputs)
    return min(snr_db(e, o) for e, o in zip(captured.eager, outputs, strict=True))


def test_both_outputs_agree_with_eager_float64(nhwc: Exported, captured: Captured) -> None:
    assert agreement_db(nhwc, captured) > 110


def test_the_nchw_layout_agrees_as_well(nchw: Exported, captured: Captured) -> None:
    assert agreement_db(nchw, captured) > 110


def test_float16_weights_cost_some_precision_and_not_much(half: Exported, captured: Captured) -> None:
    assert 50 < agreement_db(half, captured) < 90


def test_images_and_maps_are_channel_last_and_vectors_are_left_alone(nhwc: Exported) -> None:
    assert [(s.name, s.shape, s.layout) for s in (*nhwc.lowered.inputs, *nhwc.lowered.outputs)] == [
        ("photo", (1, 32, 32, 3), "nhwc"),
        ("a_vector", (1, 5), "any"),
        ("z_map", (1, 16, 16, 6), "nhwc"),
        ("logits", (1, 10), "any"),
    ]


def test_the_nchw_layout_is_the_captured_one(nchw: Exported) -> None:
    assert (nchw.lowered.inputs, nchw.lowered.outputs) == (nchw.job.inputs, nchw.job.outputs)


def test_the_signature_has_the_names_of_the_job(nhwc: Exported, captured: Captured) -> None:
    from ai_edge_litert.interpreter import Interpreter

    photo, vector = captured.inputs
    signature = Interpreter(str(nhwc.file)).get_signature_runner("serving_default")
    named = signature(photo=np.ascontiguousarray(photo.transpose(0, 2, 3, 1)), a_vector=vector)
    assert snr_db(captured.eager[0], named["z_map"].transpose(0, 3, 1, 2)) > 110
    assert snr_db(captured.eager[1], named["logits"]) > 110


def test_lowering_leaves_the_program_as_it_was(nhwc: Exported, captured: Captured) -> None:
    outputs = captured.program.module()(*(torch.from_numpy(a) for a in captured.inputs))
    assert captured.program.example_inputs[0][0].shape == (1, 3, 32, 32)
    assert min(snr_db(e, o.detach().numpy()) for e, o in zip(captured.eager, outputs, strict=True)) > 110


def test_another_process_writes_the_same_bytes(nhwc: Exported, folder: Path) -> None:
    program = "import sys, test_tflite as t; t.export(t.capture(), t.Path(sys.argv[1]))"
    again = folder / "again"
    again.mkdir()
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", program, str(again)], env=environment, check=True, capture_output=True)
    assert nhwc.lowered.nondeterminism == ""
    assert (again / nhwc.file.name).read_bytes() == nhwc.file.read_bytes()


def test_every_operator_is_placed_and_only_the_running_sum_is_left_out(placed: Placement) -> None:
    assert [op.kind for op in placed.fallbacks] == ["CUMSUM"]
    assert placed.fallbacks[0].reason == "CUMSUM is not in the XNNPACK delegate's operator list"
    assert {op.runs_on for op in placed.operators if op.delegated} == {"XNNPACK"}


def test_the_running_sum_splits_the_graph_into_two_partitions(placed: Placement) -> None:
    assert placed.partitions == 2


def test_the_multiply_accumulates_are_those_that_torch_counts(placed: Placement, captured: Captured) -> None:
    assert sum(op.macs for op in placed.operators) == captured.macs
    assert placed.macs_outside_share == 0


def test_an_asymmetric_pad_before_a_stride_of_two_is_fused_in_nhwc(placed: Placement, nchw: Exported) -> None:
    # The depthwise convolution's symmetric pad cannot be: SAME starts at the first pixel.
    assert [op.kind for op in placed.operators].count("PAD") == 1
    assert [op.kind for op in TARGET.placement(nchw.file).operators].count("PAD") == 2


def test_transposes_are_marked_as_changing_the_layout(placed: Placement, nchw: Exported) -> None:
    def changes(placement: Placement) -> int:
        assert all(op.changes_layout == (op.kind == "TRANSPOSE") for op in placement.operators)
        return sum(op.changes_layout for op in placement.operators)

    assert changes(TARGET.placement(nchw.file)) > 0 < changes(placed)


def test_float16_halves_the_weights_and_stays_delegated(half: Exported, nhwc: Exported) -> None:
    placement = TARGET.placement(half.file)
    assert [op.kind for op in placement.fallbacks] == ["CUMSUM"]
    weights = {
        name: sum(t.nbytes for t in stored_weights(tflite_flatbuffer.read_model(e.file)))
        for name, e in (("float16", half), ("float32", nhwc))
    }
    assert 0.5 < weights["float16"] / weights["float32"] < 0.8
    assert "stay float32" in half.lowered.notes[0]


def stored_weights(model: Any) -> list[Array]:
    """Constant tensors of more than one axis, as they are stored."""
    dtypes = {0: np.float32, 1: np.float16}
    return [
        np.frombuffer(model.buffers[t.buffer].data, dtypes[t.type])
        for t in model.subgraphs[0].tensors
        if t.type in dtypes and model.buffers[t.buffer].data is not None and np.prod(t.shape) > max([1, *t.shape])
    ]


def test_weights_beyond_float16_stay_float32(nhwc: Exported) -> None:
    model = tflite_flatbuffer.read_model(nhwc.file)
    graph = model.subgraphs[0]
    heaviest = next(t for t in graph.tensors if t.shape and list(t.shape) == [10, 21])
    values = np.frombuffer(model.buffers[heaviest.buffer].data, np.float32).copy()
    values[0] = 1e6
    model.buffers[heaviest.buffer].data = values.view(np.uint8)
    castable, none_beyond = tflite_flatbuffer.cast_weights(tflite_flatbuffer.read_model(nhwc.file))
    assert none_beyond == 0
    assert tflite_flatbuffer.cast_weights(model) == (castable - 1, 1)
    assert np.frombuffer(model.buffers[heaviest.buffer].data, np.float32)[0] == 1e6


def test_a_constant_shared_with_a_vector_is_not_reinterpreted(nhwc: Exported) -> None:
    model = tflite_flatbuffer.read_model(nhwc.file)
    graph = model.subgraphs[0]
    matrix = next(t for t in graph.tensors if t.shape and list(t.shape) == [10, 21])
    vector = copy.copy(matrix)
    vector.shape, vector.name = [210], b"shared"
    graph.tensors.append(vector)
    before = bytes(model.buffers[matrix.buffer].data)
    tflite_flatbuffer.cast_weights(model)
    assert bytes(model.buffers[vector.buffer].data) == before


def test_every_constant_is_aligned_as_the_schema_asks(half: Exported) -> None:
    from ai_edge_litert import schema_py_generated as schema

    content = half.file.read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    buffers = [model.Buffers(i) for i in range(model.BuffersLength())]
    starts = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if b.DataLength()]
    assert len(starts) > 10
    assert {start % 16 for start in starts} == {0}


def field(table: Any, number: int) -> int:
    """Where a field of a flatbuffer table is, 0 when it is absent."""
    offset = table.Offset(4 + 2 * number)
    return int(offset and offset + table.Pos)


def child(table: Any, number: int) -> Any:
    return Table(table.Bytes, table.Indirect(field(table, number)))


def element(table: Any, number: int, index: int) -> Any:
    start = table.Vector(table.Offset(4 + 2 * number))
    return Table(table.Bytes, table.Indirect(start + 4 * index))


def floats(table: Any, number: int) -> list[float]:
    offset = table.Offset(4 + 2 * number)
    start, length = table.Vector(offset), table.VectorLen(offset)
    return [float(v) for v in np.frombuffer(table.Bytes, np.float32, length, start)]


def main_graph(file: Path) -> Any:
    """SubGraphMetadata of the file's TFLITE_METADATA entry."""
    content = tflite_flatbuffer.metadata_of(tflite_flatbuffer.read_model(file))["TFLITE_METADATA"]
    assert content[4:8] == b"M001"
    root = Table(content, encode.Get(packer.uoffset, content, 0))
    assert root.String(field(root, 0)) == b"tiny"
    return element(root, 3, 0)


def test_androids_metadata_has_the_normalisation_and_the_size(nhwc: Exported) -> None:
    # Field numbers of the published metadata_schema.fbs; its own generated reader was tried once by hand.
    photo, vector = (element(main_graph(nhwc.file), 2, i) for i in range(2))
    assert (photo.String(field(photo, 0)), vector.String(field(vector, 0))) == (b"photo", b"a_vector")
    normalization = child(element(photo, 4, 0), 1)
    assert floats(normalization, 0) == list(PREPROCESS.mean)
    assert floats(normalization, 1) == list(PREPROCESS.std)
    image = child(child(photo, 3), 1)
    size = child(image, 1)
    assert [image.Bytes[field(image, 0)], image.Bytes[field(child(photo, 3), 0)]] == [1, 2]
    assert [image.Bytes[field(size, n)] for n in (0, 1)] == [32, 32]
    assert field(vector, 3) == field(vector, 4) == 0


def test_the_labels_are_a_file_inside_the_model(nhwc: Exported, nchw: Exported) -> None:
    with zipfile.ZipFile(nhwc.file) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(LABELS)
    z_map, logits = (element(main_graph(nhwc.file), 3, i) for i in range(2))
    assert field(z_map, 6) == 0, "the labels belong to the output of one value for each label"
    labels = element(logits, 6, 0)
    assert labels.String(field(labels, 0)) == b"labels.txt"
    assert labels.Bytes[field(labels, 2)] == 2
    assert not zipfile.is_zipfile(nchw.file)


def test_what_the_metadata_cannot_say_is_json(nhwc: Exported) -> None:
    entries = tflite_flatbuffer.metadata_of(tflite_flatbuffer.read_model(nhwc.file))
    texts = json.loads(entries[tflite_metadata.EXTRA_ENTRY])
    preprocess = json.loads(texts["acmix.preprocess"])
    assert (preprocess["resize_short"], preprocess["interpolation"]) == (36, "bicubic")
    assert "acmix.labels" not in texts


def test_the_file_says_which_runtime_it_needs(nhwc: Exported) -> None:
    major, minor = map(int, nhwc.lowered.details["oldest_runtime"].split(".")[:2])
    assert (major, minor) <= (2, 14), "tflite-runtime 2.14 is the last one for old boards"
    assert "DEPTHWISE_CONV_2D v1" in nhwc.lowered.details["operator_versions"]


@pytest.mark.parametrize("kept", [0, 7, 1000, 0.5, 0.95])
def test_a_truncated_file_is_refused(nhwc: Exported, tmp_path: Path, kept: float) -> None:
    content = tflite_flatbuffer.write_model(tflite_flatbuffer.read_model(nhwc.file))
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(content[: int(kept if kept == 0 or kept >= 1 else kept * len(content))])
    with pytest.raises(ValueError), TARGET.runner(broken, threads=1):
        pass
    with pytest.raises(ValueError):
        TARGET.placement(broken)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "model.tflite"
    other.write_bytes(b"PK\x03\x04 no flatbuffer at all" * 100)
    with pytest.raises(ValueError, match="not a TFLite model"):
        TARGET.placement(other)


def graph_of(kind: str, tensors: list[tuple[str, list[int]]], constants: set[int]) -> tflite_placement.Graph:
    """One operator that reads all tensors but the last and writes the last."""
    from ai_edge_litert import schema_py_generated as schema

    made = []
    for dtype, shape in tensors:
        tensor = schema.TensorT()
        tensor.type, tensor.shape = getattr(schema.TensorType, dtype), shape
        made.append(tensor)
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = list(range(len(tensors) - 1)), [len(tensors) - 1]
    return tflite_placement.Graph((kind,), [operator], made, frozenset(constants))


@pytest.mark.parametrize(
    ("kind", "tensors", "reason"),
    [
        ("ADD", [("INT32", [1, 4])] * 3, "int32"),
        ("RESHAPE", [("FLOAT32", [1] * 7)] * 2, "7 axes"),
        ("CONV_2D", [("FLOAT32", [1, 8, 8, 3])] * 4, "computed at run time"),
        ("CUSTOM_THING", [("FLOAT32", [1])] * 2, "not in the XNNPACK delegate's operator list"),
        ("MEAN", [("FLOAT32", [1, 8, 8, 3])] * 2, "not with these shapes or parameters"),
    ],
)
def test_a_refusal_has_its_reason(kind: str, tensors: list[tuple[str, list[int]]], reason: str) -> None:
    assert reason in tflite_placement.refusal(graph_of(kind, tensors, set()), 0, set())


def test_floats_are_taken_and_mixtures_are_refused_with_a_way_out() -> None:
    for precision in ("float32", "float16"):
        assert TARGET.refuses(recipe(precision), TFLiteOptions()) is None
    reason = TARGET.refuses(dataclasses.replace(recipe("float16", "float32"), name="w16"), TFLiteOptions())
    assert reason is not None
    assert "'w16'" in reason and "use the recipe float32 or float16" in reason


def test_importing_the_target_imports_no_converter_and_no_runtime() -> None:
    program = (
        "import sys, acmix.targets.tflite as t; assert t.TARGET.cannot_run_here(t.TFLiteOptions()) is None; "
        "print([m for m in ('torch', 'litert_torch', 'ai_edge_litert', 'flatbuffers') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert printed.stdout.strip() == "[]"


def test_running_a_file_imports_no_converter(nhwc: Exported) -> None:
    program = (
        "import sys, pathlib; from acmix.targets.tflite import TARGET\n"
        "with TARGET.runner(pathlib.Path(sys.argv[1]), 1): pass\n"
        "print([m for m in ('torch', 'litert_torch', 'jax') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(nhwc.file)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True)
    assert printed.stdout.strip() == "[]"
