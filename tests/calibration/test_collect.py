"""Ranges of a whole program: which tensors, under which names, and against hooks on the eager module."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.calibration.collect import Watched, collect, observe
from acmix.toolkit.errors import UsageError
from acmix.toolkit.program import copy_program, load_program, quiet, save_program
from acmix.toolkit.quantize import graph_module
from acmix.toolkit.ranges import OBSERVERS, Range, fingerprint, load_ranges, save_ranges
from acmix.toolkit.rewrite import rewrite
from acmix.toolkit.samples import digest_of
from acmix.toolkit.target import Array


@dataclass(frozen=True)
class Arrays:
    """Samples that are given."""

    arrays: tuple[tuple[Array, ...], ...]
    name: str = "arrays"
    labels: None = None

    @property
    def identifiers(self) -> tuple[str, ...]:
        return tuple(f"sample {i}" for i in range(len(self.arrays)))

    @property
    def digest(self) -> str:
        return digest_of(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        return iter(self.arrays)


def noise(count: int = 4, shape: tuple[int, ...] = (1, 3, 16, 16)) -> Arrays:
    rng = np.random.default_rng(0)
    return Arrays(tuple((rng.standard_normal(shape, dtype=np.float32) * (i + 1),) for i in range(count)))


def captured(module: nn.Module, *inputs: Tensor) -> ExportedProgram:
    with torch.no_grad(), quiet():
        return torch.export.export(module.eval(), inputs)


@pytest.fixture(scope="module")
def tiny_program() -> ExportedProgram:
    """tests/tiny_net.py, captured and rewritten like an export."""
    spec = importlib.util.spec_from_file_location("tiny_net", Path(__file__).parent.parent / "tiny_net.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    program = captured(module.make_net(), torch.zeros(1, 3, 16, 16))
    rewrite(program)
    return program


class Branches(nn.Module):
    """An integer input, a tuple of parts, an in-place call and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        a, b = self.conv(x).split(2, 1)
        return {"sum": a.relu_() + b, "picked": x.flatten()[index]}


def branches() -> tuple[Branches, ExportedProgram, Arrays]:
    module = Branches()
    x, index = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 1])
    return module, captured(module, x, index), Arrays(((x.numpy(), index.numpy()),))


def node_names(program: ExportedProgram) -> list[tuple[str, str]]:
    return [(node.op, node.name) for node in graph_module(program).graph.nodes]


def test_node_names_are_the_same_each_time_after_a_copy_and_after_save_and_load(
    tiny_program: ExportedProgram, tmp_path: Path
) -> None:
    wanted = node_names(tiny_program)
    save_program(tiny_program, tmp_path / "captured.pt2")
    assert node_names(tiny_program) == wanted
    assert node_names(copy_program(tiny_program)) == wanted
    assert node_names(load_program(tmp_path / "captured.pt2")) == wanted
    calls = [n.name for n in tiny_program.graph.nodes if n.op == "call_function"]
    assert [name for op, name in wanted if op == "call_function"] == calls


def test_every_floating_input_and_call_has_a_range_and_a_fingerprint(tiny_program: ExportedProgram) -> None:
    ranges = collect(tiny_program, noise(2), "minmax")
    inputs = set(tiny_program.graph_signature.user_inputs)
    wanted = {n.name for n in tiny_program.graph.nodes if n.op == "call_function" or n.name in inputs}
    assert set(ranges.tensors) == wanted
    assert set(ranges.fingerprints) == wanted
    assert (ranges.observer, ranges.samples_count, ranges.samples_digest) == ("minmax", 2, noise(2).digest)


def test_ranges_and_fingerprints_are_those_that_hooks_on_the_module_see() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 1)).eval()
    samples = noise()
    seen: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    for index, part in enumerate(module):
        part.register_forward_hook(lambda _m, _i, out, index=index: seen[index].append(out.detach().clone()))
    for (x,) in samples:
        module(torch.from_numpy(x))
    for part in module:
        part._forward_hooks.clear()
    program = captured(module, torch.zeros(1, 3, 16, 16))
    names = [n.name for n in program.graph.nodes if n.op == "call_function"]
    ranges = collect(program, samples, "minmax")
    for name, outputs in zip(names, seen.values(), strict=True):
        values = torch.stack(outputs)
        assert ranges.tensors[name].low == pytest.approx(min(float(values.min()), 0.0), rel=1e-5)
        assert ranges.tensors[name].high == pytest.approx(float(values.max()), rel=1e-5)
        assert ranges.fingerprints[name].rms == pytest.approx(fingerprint(outputs[0].numpy()).rms, rel=1e-5)
        assert ranges.fingerprints[name].count == outputs[0].numel()


def test_parts_of_a_tuple_have_ranges_and_integers_have_none() -> None:
    _, program, samples = branches()
    ranges = collect(program, samples, "minmax")
    parts = [n.name for n in program.graph.nodes if "getitem" in n.name]
    assert set(parts) <= set(ranges.tensors)
    assert {"x", "add", *parts} <= set(ranges.tensors)
    assert "index" not in ranges.tensors


def test_a_value_is_seen_before_a_later_call_changes_it_in_place() -> None:
    module, program, samples = branches()
    with torch.no_grad():
        first = module.conv(torch.from_numpy(samples.arrays[0][0]))[:, :2]
    found = collect(program, samples, "minmax").tensors["getitem"]
    assert found.low == pytest.approx(float(first.min()), rel=1e-5)
    assert found.low < 0.0


def test_the_samples_stay_as_they_are() -> None:
    program = captured(nn.ReLU(inplace=True), torch.zeros(1, 4))
    array = np.array([[-1.0, 2.0, -3.0, 4.0]], np.float32)
    array.setflags(write=False)
    ranges = collect(program, Arrays(((array,),)), "minmax")
    assert array.tolist() == [[-1.0, 2.0, -3.0, 4.0]]
    assert ranges.sample[0].tolist() == array.tolist()
    # Named anew in the module: `input` is a word of Python's.
    assert ranges.tensors["input_1"] == Range(-3.0, 4.0)


def test_all_observers_in_one_pass_find_what_each_finds_alone(tiny_program: ExportedProgram) -> None:
    together = observe(tiny_program, noise(), OBSERVERS)
    for observer in OBSERVERS:
        alone = collect(tiny_program, noise(), observer)
        assert alone.tensors == together.ranges(observer).tensors
        assert alone.fingerprints == together.fingerprints


def test_the_extremes_of_some_samples_are_those_of_a_pass_over_them(tiny_program: ExportedProgram) -> None:
    four, last = noise(4), noise(4).arrays[2:]
    found = observe(tiny_program, four, ("minmax",)).extremes_of(range(2, 4))
    alone = collect(tiny_program, Arrays(last), "minmax").tensors
    assert found == {node: (one.low, one.high) for node, one in alone.items()}


def test_ranges_go_through_a_file_as_they_are(tiny_program: ExportedProgram, tmp_path: Path) -> None:
    ranges = collect(tiny_program, noise(2), "mse")
    save_ranges(ranges, tmp_path / "ranges.npz")
    read = load_ranges(tmp_path / "ranges.npz")
    assert read.tensors == ranges.tensors
    assert read.fingerprints == ranges.fingerprints
    np.testing.assert_array_equal(read.sample[0], noise(2).arrays[0][0])


def test_a_watched_run_gives_the_programs_own_outputs() -> None:
    module, program, samples = branches()
    with torch.no_grad():
        wanted = module(*(torch.from_numpy(a.copy()) for a in samples.arrays[0]))
    found = Watched(program).outputs(samples.arrays[0], lambda node, value: None)
    for one, other in zip(found, wanted.values(), strict=True):
        torch.testing.assert_close(one, other)


def test_no_samples_are_refused(tiny_program: ExportedProgram) -> None:
    with pytest.raises(UsageError, match="no sample"):
        collect(tiny_program, Arrays(()), "minmax")


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 16, 16)])
def test_a_sample_of_another_shape_is_refused(tiny_program: ExportedProgram, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="the program takes 1x3x16x16 of float32"):
        collect(tiny_program, noise(1, shape), "minmax")


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_value_that_is_not_finite_is_named(tiny_program: ExportedProgram, observer: str) -> None:
    samples = noise(2)
    samples.arrays[1][0][0, 0, 0, 0] = np.nan
    with pytest.raises(UsageError, match="x takes on NaN or infinity on sample sample 1"):
        collect(tiny_program, samples, observer)  # type: ignore[arg-type]
