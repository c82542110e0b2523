"""TFLite int8 against a fake-quantized program in float64, written apart here, and against the file's own bytes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node
from torch.nn import functional as F

from acmix.targets.formats import tflite_flatbuffer, tflite_quant_rules, tflite_quantization
from acmix.targets.formats.tflite_placement import Graph, read_graph
from acmix.targets.formats.tflite_quant_values import Watch, activated, read_samples, recognise
from acmix.targets.tflite import TARGET, TFLiteOptions
from acmix.toolkit.errors import UsageError
from acmix.toolkit.quantize import graph_module
from acmix.toolkit.ranges import QuantizedTensor, Range, Ranges, fingerprint
from acmix.toolkit.recipe import Precision, Recipe, Tolerance
from acmix.toolkit.spec import TensorSpec
from acmix.toolkit.target import Array, Lowered, LoweringJob, to_layout

SAMPLES = 6
BIAS_OF_DEAD_CHANNEL = 0.75


class Blocks(nn.Module):
    """Every operator that the rule takes, and in the middle a softmax, a hard swish and a product that it leaves."""

    __module__ = "blocks"

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.enlarge, self.first, self.second = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1)
        self.mixed, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, photo: Tensor) -> Tensor:
        x = F.hardswish(self.depthwise(F.relu6(self.stem(photo))))
        x = F.max_pool2d(self.left(x), 2)
        x = torch.cat([x, self.right(x)], 1)
        x = x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        part, rest = self.enlarge(x).split(4, 1)
        x = self.first(part) + self.second(torch.cat([rest, part], 1))
        x = self.mixed(x * torch.softmax(x, 1))
        return self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class Prepared:
    """A network with its ranges, its float file and its int8 file."""

    program: ExportedProgram
    samples: list[Array]
    float_content: bytes
    job: LoweringJob
    file: Path
    lowered: Lowered

    def variant(self, **changes: Any) -> tflite_quantization.Quantized:
        """The float file quantized again under another job, without another conversion."""
        job = dataclasses.replace(self.job, **changes)
        watch = Watch(self.float_content, self.job.inputs, self.lowered.inputs)
        return tflite_quantization.quantize(self.float_content, job, watch, graph_module(self.program).graph)

    def run(self, file: Path, sample: Array) -> Array:
        with TARGET.runner(file, threads=1) as infer:
            return infer([to_layout(sample, self.job.inputs[0], self.lowered.inputs[0])])[0]


class Recorder(Interpreter):
    """Keeps every float value of a run, and changes it on the way where `change` says so."""

    def __init__(self, program: ExportedProgram, change: Callable[[Node, Tensor], Tensor] | None = None) -> None:
        super().__init__(copy.deepcopy(graph_module(program)).double())
        self.values: dict[str, Tensor] = {}
        self.change = change

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value if self.change is None else self.change(n, value)
            self.values.update({n.name: value} if n.op != "get_attr" else {})
        return value


def min_max(program: ExportedProgram, samples: Sequence[Array]) -> Ranges:
    """Ranges by the simplest observer there is."""
    seen = []
    with torch.no_grad():
        for sample in samples:
            recorder = Recorder(program)
            recorder.run(torch.from_numpy(sample).double())
            seen.append({name: value.numpy() for name, value in recorder.values.items()})
    tensors = {
        name: Range(min(0.0, *(float(s[name].min()) for s in seen)), max(0.0, *(float(s[name].max()) for s in seen)))
        for name in seen[0]
    }
    prints = {name: fingerprint(value) for name, value in seen[0].items()}
    return Ranges(tensors, prints, (samples[0],), "minmax", "noise", len(samples), "")


def fake_quantized(program: ExportedProgram, placed: Sequence[QuantizedTensor], sample: Array) -> Array:
    """The program in float64, rounded where the file says, and its weights to int8 for each output channel."""
    grid = {q.node: q for q in placed}

    def change(node: Node, value: Tensor) -> Tensor:
        if node.op == "get_attr" and value.dim() > 1:
            transposed = any("conv_transpose" in str(user.target) for user in node.users)
            axes = [a for a in range(value.dim()) if a != (1 if transposed else 0)]
            scale = (value.abs().amax(axes, keepdim=True) / 127).clamp_min(1e-30)
            return torch.round(value / scale) * scale
        if (q := grid.get(node.name)) is None:
            return value
        return (torch.clamp(torch.round(value / q.scale) + q.zero_point, -128, 127) - q.zero_point) * q.scale

    with torch.no_grad():
        output: Tensor = Recorder(program, change).run(torch.from_numpy(sample).double())
    return output.numpy()


def snr_db(wanted: Array, found: Array) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()))


def recipe(weights: Precision, activations: Precision, name: str = "w8a8") -> Recipe:
    return Recipe(name, weights, activations, Tolerance(20.0, 1e-1))


def make_job(size: int) -> LoweringJob:
    return LoweringJob(
        model="blocks",
        recipe=recipe("float32", "float32"),
        inputs=(TensorSpec("photo", (1, 3, size, size), layout="nchw"),),
        outputs=(TensorSpec("logits", (1, 10)),),
        options=TFLiteOptions(),
    )


def prepare(net: nn.Module, folder: Path, size: int = 32) -> Prepared:
    generator = np.random.default_rng(3)
    samples = [generator.standard_normal((1, 3, size, size)).astype(np.float32) for _ in range(SAMPLES)]
    program = torch.export.export(net.eval(), (torch.from_numpy(samples[0]),))
    TARGET.lower(program, make_job(size), folder / "float.tflite")
    np.savez(folder / "samples.npz", photo=np.concatenate(samples))
    job = dataclasses.replace(
        make_job(size),
        recipe=recipe("int8", "int8"),
        ranges=min_max(program, samples),
        samples_file=str(folder / "samples.npz"),
    )
    lowered = TARGET.lower(program, job, folder / "w8a8.tflite")
    return Prepared(program, samples, (folder / "float.tflite").read_bytes(), job, folder / "w8a8.tflite", lowered)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    torch.manual_seed(0)
    net = Blocks()
    with torch.no_grad():
        net.left.weight[2] = 0.0
        net.left.bias[2] = BIAS_OF_DEAD_CHANNEL
    return prepare(net, tmp_path_factory.mktemp("blocks"))


def kinds(file: Path) -> list[str]:
    return [operator.kind for operator in TARGET.placement(file).operators]


def dtypes(graph: Graph, index: int) -> set[str]:
    operator = graph.operators[index]
    moving = [t for t in (*operator.inputs, *operator.outputs) if t >= 0 and t not in graph.constants]
    return {tflite_flatbuffer.tensor_dtype(graph.tensors[t]) for t in moving}


def test_the_file_agrees_with_the_fake_quantized_program(blocks: Prepared) -> None:
    # 153 dB where no tie rounds the other way, 47 dB where one does; scales that are 5 % off give 41 to 44 dB.
    found = sorted(
        snr_db(fake_quantized(blocks.program, blocks.lowered.quantized, sample), blocks.run(blocks.file, sample))
        for sample in blocks.samples
    )
    assert found[0] > 35
    assert found[SAMPLES // 2] > 100


def test_rounding_at_other_scales_does_not_agree_as_well(blocks: Prepared) -> None:
    wrong = [dataclasses.replace(q, scale=q.scale * 1.05) for q in blocks.lowered.quantized]
    wanted = fake_quantized(blocks.program, wrong, blocks.samples[0])
    assert snr_db(wanted, blocks.run(blocks.file, blocks.samples[0])) < 60


def test_integers_run_in_one_partition_and_the_interface_stays_float32(blocks: Prepared) -> None:
    placement = TARGET.placement(blocks.file)
    assert placement.partitions == 1
    assert not placement.fallbacks
    assert {s.dtype for s in (*blocks.lowered.inputs, *blocks.lowered.outputs)} == {"float32"}
    assert [s.name for s in (*blocks.lowered.inputs, *blocks.lowered.outputs)] == ["photo", "logits"]


def test_convolutions_and_what_carries_their_results_are_integers_and_the_rest_is_not(blocks: Prepared) -> None:
    graph = read_graph(blocks.file)
    found: dict[str, list[set[str]]] = {}
    for index, kind in enumerate(graph.kinds):
        found.setdefault(kind, []).append(dtypes(graph, index))
    for kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "CONCATENATION", "MAX_POOL_2D"):
        assert found[kind] == [{"int8"}] * len(found[kind]), kind
    assert found["LOGISTIC"] == [{"int8"}]
    assert found["HARD_SWISH"] == found["SOFTMAX"] == [{"float32"}]
    # The gate, one number a channel; the product of two maps.
    assert found["MUL"] == [{"int8"}, {"float32"}]


def test_every_operator_that_stays_float_is_noted_with_the_reason(blocks: Prepared) -> None:
    notes = "\n".join(blocks.lowered.notes)
    assert f"1 HARD_SWISH, 1 SOFTMAX: {tflite_quant_rules.NO_KERNEL}" in notes
    assert "1 MUL: something that it reads is float" in notes
    graph = read_graph(blocks.float_content)
    left = sum(dtypes(read_graph(blocks.file), i) == {"float32"} for i in range(len(read_graph(blocks.file).kinds)))
    assert f"{len(graph.kinds) - left} of {len(graph.kinds)} operators compute on int8" in notes


def test_parts_of_a_concatenation_have_its_scale(blocks: Prepared) -> None:
    placed = {q.node: q for q in blocks.lowered.quantized}
    assert placed["cat"].scale == placed["max_pool2d"].scale == placed["conv2d_2"].scale == placed["conv2d_3"].scale
    assert placed["cat"].zero_point == placed["conv2d_3"].zero_point
    assert placed["sigmoid"] == QuantizedTensor("sigmoid", 1 / 256, -128)
    assert "QUANTIZE" not in kinds(blocks.file)[kinds(blocks.file).index("CONCATENATION") - 1]


def test_a_channel_of_zeros_keeps_its_bias(blocks: Prepared) -> None:
    graph, model = read_graph(blocks.file), tflite_flatbuffer.read_model(blocks.file)
    found = []
    for index, kind in enumerate(graph.kinds):
        if kind != "CONV_2D":
            continue
        tensor = graph.tensors[graph.operators[index].inputs[2]]
        stored = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int32)
        found.append(stored * np.asarray(tensor.quantization.scale))
    assert any(len(b) > 2 and abs(b[2] - BIAS_OF_DEAD_CHANNEL) < 1e-6 for b in found)


def test_a_kept_layer_reads_and_makes_floats(blocks: Prepared, tmp_path: Path) -> None:
    # Its activation is fused: the file has no tensor for the node of the convolution itself.
    made = blocks.variant(kept_float=("conv2d", "linear"))
    (tmp_path / "mixed.tflite").write_bytes(made.content)
    graph = read_graph(made.content)
    float_layers = [
        kind
        for index, kind in enumerate(graph.kinds)
        if kind in tflite_quant_rules.COMPUTE and dtypes(graph, index) == {"float32"}
    ]
    assert float_layers == ["CONV_2D", "FULLY_CONNECTED"]
    assert any(note.endswith(tflite_quant_rules.KEPT) for note in made.notes)
    assert TARGET.placement(tmp_path / "mixed.tflite").partitions == 1
    exact = graph_module(blocks.program)(torch.from_numpy(blocks.samples[0])).detach().numpy()
    found = blocks.run(tmp_path / "mixed.tflite", blocks.samples[0])
    assert snr_db(exact, found) > snr_db(exact, blocks.run(blocks.file, blocks.samples[0]))


def test_a_kept_node_that_the_program_does_not_have_is_refused(blocks: Prepared) -> None:
    with pytest.raises(UsageError, match="'conv2d_99'"):
        blocks.variant(kept_float=("conv2d_99",))


def test_a_recipe_that_leaves_nothing_as_integers_is_refused(blocks: Prepared) -> None:
    layers = [n.name for n in graph_module(blocks.program).graph.nodes if "conv" in n.name or n.name == "linear"]
    with pytest.raises(UsageError, match="leaves no layer as int8"):
        blocks.variant(kept_float=tuple(layers))


def test_integers_without_ranges_are_refused(blocks: Prepared) -> None:
    with pytest.raises(UsageError, match="needs ranges"):
        blocks.variant(ranges=None)


def test_tensors_that_are_no_node_of_the_program_are_watched_on_the_samples(blocks: Prepared) -> None:
    ranges = blocks.job.ranges
    assert ranges is not None
    hidden = {name: known for name, known in ranges.fingerprints.items() if name != "mul"}
    forgetful = dataclasses.replace(ranges, fingerprints=hidden)
    watched, guessed = blocks.variant(ranges=forgetful), blocks.variant(ranges=forgetful, samples_file="")
    assert any(f"from {SAMPLES} calibration samples" in note for note in watched.notes)
    assert any("from one sample, widened" in note for note in guessed.notes)
    wanted = next(q for q in blocks.lowered.quantized if q.node == "mul")
    scales = [q.scale for q in watched.tensors if q.node == ""]
    assert any(abs(scale - wanted.scale) < 1e-5 * wanted.scale for scale in scales)


def test_samples_without_an_input_of_the_model_are_refused(blocks: Prepared, tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", picture=np.zeros((2, 3, 32, 32), np.float32))
    with pytest.raises(UsageError, match="no array called 'photo'"):
        next(read_samples(str(tmp_path / "samples.npz"), blocks.job.inputs))


def test_a_tensor_is_recognised_in_another_layout_and_not_by_its_size_alone() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.standard_normal((2, 1, 4, 6, 6))
    prints = {"one": fingerprint(one), "other": fingerprint(other)}
    ranges = Ranges({}, prints, (one,), "minmax", "", 1, "")
    stored = {5: other.transpose(0, 2, 3, 1), 7: (one * (1 + 1e-6)).reshape(144), 9: one * 1.01, 11: one[:, :2]}
    assert recognise(stored, ranges) == {5: "other", 7: "one"}


class Clipped(nn.Module):
    """A layer with an activation behind it, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu6(self.first(x)))


def test_a_fused_activation_names_the_tensor_even_where_a_sample_shows_no_difference() -> None:
    """What stays between 0 and 6 has one fingerprint before and after relu6, and two ranges over all samples."""
    program = torch.export.export(Clipped().eval(), (torch.zeros(1, 3, 4, 4),))
    operators = []
    for output, fused in ((7, schema.ActivationFunctionType.RELU6), (9, schema.ActivationFunctionType.NONE)):
        operator = schema.OperatorT()
        operator.outputs, operator.builtinOptions = [output], schema.Conv2DOptionsT()
        operator.builtinOptions.fusedActivationFunction = fused
        operators.append(operator)
    graph = Graph(("CONV_2D", "CONV_2D"), operators, (), frozenset())
    nodes = {7: "conv2d", 9: "conv2d_1"}
    assert activated(graph, graph_module(program).graph, nodes) == {7: "relu6", 9: "conv2d_1"}
    operators[0].builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.NONE
    assert activated(graph, graph_module(program).graph, nodes) == nodes


def test_weights_alone_are_exact_int8_and_stay_in_one_partition(blocks: Prepared, tmp_path: Path) -> None:
    job = dataclasses.replace(blocks.job, recipe=recipe("int8", "float32", "w8"), ranges=None, samples_file="")
    lowered = TARGET.lower(blocks.program, job, tmp_path / "w8.tflite")
    placement = TARGET.placement(tmp_path / "w8.tflite")
    assert placement.partitions == 1
    assert not placement.fallbacks
    assert lowered.quantized == ()
    graph = read_graph(tmp_path / "w8.tflite")
    stored = [graph.tensors[o.inputs[0]] for o, k in zip(graph.operators, graph.kinds, strict=True) if k[:5] == "DEQUA"]
    assert len(stored) == 11
    assert {tflite_flatbuffer.tensor_dtype(t) for t in stored} == {"int8"}
    for sample in blocks.samples[:3]:
        wanted = fake_quantized(blocks.program, (), sample)
        assert snr_db(wanted, blocks.run(tmp_path / "w8.tflite", sample)) > 100


@pytest.mark.parametrize(
    ("weights", "activations", "instead"),
    [("int8", "int16", "w8a8"), ("int4", "float32", "w8"), ("int16", "int8", "w8")],
)
def test_what_the_delegate_does_not_run_is_refused_with_the_nearest(
    weights: Precision, activations: Precision, instead: str
) -> None:
    reason = TARGET.refuses(recipe(weights, activations, "other"), TFLiteOptions())
    assert reason is not None
    assert reason.endswith(f"use the recipe {instead}.")


def test_integer_recipes_are_taken() -> None:
    assert TARGET.refuses(recipe("int8", "int8"), TFLiteOptions()) is None
    assert TARGET.refuses(recipe("int8", "float32"), TFLiteOptions()) is None
