"""The ExecuTorch target: five small files, each lowered once, run by ExecuTorch's own runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.targets.executorch import TARGET, ExecuTorchOptions, constant_methods
from acmix.toolkit.errors import UsageError
from acmix.toolkit.recipe import Precision, Recipe, Tolerance
from acmix.toolkit.spec import TensorSpec, imagenet_preprocess
from acmix.toolkit.target import Lowered, LoweringJob

pytest.importorskip("executorch")

SIZE = 32
LABELS = ("cat", "Käuzchen", "梟")
CONV_MACS = 16 * 16 * 16 * 3 * 9 + 8 * 8 * 16 * 9 + 8 * 8 * 24 * 16
SQUEEZE_EXCITE_MACS = 2 * 16 * 4
TINY_MACS = CONV_MACS + SQUEEZE_EXCITE_MACS + 24 * 10


class Tiny(nn.Module):
    """Convolution, depthwise stride 2, batch norm, hard swish, ReLU6, squeeze-and-excite, linear; two outputs."""

    def __init__(self, awkward: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.awkward = awkward
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.head = nn.Conv2d(16, 24, 1), nn.Linear(24, 10)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        self.eval()

    def forward(self, image: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        x = self.depthwise(self.stem(image))
        x = x * nn.functional.hardsigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = self.project(x)
        if self.awkward:
            x = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
            x = torch.softmax(x, 1) + x.cumsum(2)
        features = x.mean((2, 3), keepdim=True).flatten(1)
        return self.head(features) + offset, features


@dataclass(frozen=True)
class Made:
    file: Path
    lowered: Lowered
    network: Tiny
    inputs: list[np.ndarray[Any, Any]]

    def snr_db(self) -> list[float]:
        """Of each output of the saved file, against eager PyTorch in float64."""
        with TARGET.runner(self.file, 1) as run:
            ours = run(self.inputs)
        with torch.no_grad():
            exact = self.network.double()(*(torch.from_numpy(array).double() for array in self.inputs))
        return [_snr_db(output, wanted.numpy()) for output, wanted in zip(ours, exact, strict=True)]


def _snr_db(output: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    assert output.dtype == np.float32 and output.shape == wanted.shape
    return float(10 * np.log10((wanted**2).sum() / ((output - wanted) ** 2).sum()))


def _job(precision: Precision, options: ExecuTorchOptions) -> LoweringJob:
    return LoweringJob(
        "tiny",
        Recipe(precision, precision, precision, Tolerance(45, 1e-2)),
        (TensorSpec("image", (1, 3, SIZE, SIZE), layout="nchw"), TensorSpec("offset", (1, 10))),
        (TensorSpec("logits", (1, 10)), TensorSpec("features", (1, 24))),
        options,
        imagenet_preprocess(SIZE),
        LABELS,
    )


def _make(folder: Path, network: Tiny, precision: Precision, options: ExecuTorchOptions) -> Made:
    generator = torch.Generator().manual_seed(5)
    inputs = (torch.randn(1, 3, SIZE, SIZE, generator=generator), torch.randn(1, 10, generator=generator))
    program = torch.export.export(network, inputs)
    before = _contents(program)
    file = folder / "model.pte"
    lowered = TARGET.lower(program, _job(precision, options), file)
    assert _contents(program) == before, "lowering changed the captured program"
    return Made(file, lowered, network, [tensor.numpy() for tensor in inputs])


def _contents(program: ExportedProgram) -> tuple[str, dict[str, Any]]:
    tensors = {name: (t.dtype, t.double().sum().item()) for name, t in program.state_dict.items()}
    return program.graph_module.code, tensors


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return _make(tmp_path_factory.mktemp("awkward"), Tiny(awkward=True), "float32", ExecuTorchOptions())


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return _make(tmp_path_factory.mktemp("half"), Tiny(), "float16", ExecuTorchOptions())


@pytest.fixture(scope="module")
def half_arithmetic(tmp_path_factory: pytest.TempPathFactory) -> Made:
    options = ExecuTorchOptions(half_arithmetic=True)
    return _make(tmp_path_factory.mktemp("half_arithmetic"), Tiny(), "float16", options)


@pytest.fixture(scope="module")
def coreml(tmp_path_factory: pytest.TempPathFactory) -> Made:
    pytest.importorskip("coremltools")
    return _make(tmp_path_factory.mktemp("coreml"), Tiny(), "float16", ExecuTorchOptions("coreml"))


@pytest.fixture(scope="module")
def vulkan(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return _make(tmp_path_factory.mktemp("vulkan"), Tiny(), "float32", ExecuTorchOptions("vulkan"))


def test_importing_the_target_imports_no_torch() -> None:
    code = "import sys, acmix.targets.executorch; print('torch' in sys.modules, 'executorch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_float32_equals_eager_in_float64_at_both_outputs(awkward: Made) -> None:
    assert min(awkward.snr_db()) > 110


def test_the_runner_imports_the_runtime_and_not_the_converter(awkward: Made) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np; from acmix.targets.executorch import TARGET\n"
        f"with TARGET.runner(Path({str(awkward.file)!r}), 1) as run:\n"
        f"    run([np.zeros((1, 3, {SIZE}, {SIZE}), np.float32), np.zeros((1, 10), np.float32)])\n"
        "print('executorch.exir' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_results_are_not_overwritten_by_the_next_inference(awkward: Made) -> None:
    with TARGET.runner(awkward.file, 1) as run:
        first = run(awkward.inputs)
        kept = [array.copy() for array in first]
        run([array + 1 for array in awkward.inputs])
    for array, copied in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, copied)


def test_two_thread_counts_at_once_are_refused_and_one_after_the_other_work(awkward: Made) -> None:
    with (
        TARGET.runner(awkward.file, 1),
        pytest.raises(UsageError, match=r"cannot run with 2 threads"),
        TARGET.runner(awkward.file, 2),
    ):
        pass
    with TARGET.runner(awkward.file, 2) as run:
        two = run(awkward.inputs)
    with TARGET.runner(awkward.file, 1) as run:
        np.testing.assert_allclose(run(awkward.inputs)[0], two[0], rtol=1e-5, atol=1e-6)


def test_what_xnnpack_cannot_take_is_listed_with_the_partitioners_reason(awkward: Made) -> None:
    placement = awkward.lowered.placement
    assert placement is not None
    reasons = {operator.kind: operator.reason for operator in placement.fallbacks}
    assert reasons["aten._softmax.default"] == "dim must be the last dim, got dim = 1 for tensor of rank 4"
    assert reasons["aten.cumsum.default"] == "no XNNPACK kernel for this operator"
    assert {operator.runs_on for operator in placement.fallbacks} == {"portable"}


def test_what_depends_on_constants_alone_is_computed_while_lowering(awkward: Made) -> None:
    # A reflection pad is an index table made of arange, abs and sub.
    assert awkward.lowered.placement is not None
    kinds = {operator.kind for operator in awkward.lowered.placement.fallbacks}
    assert kinds == {"aten.index.Tensor", "aten._softmax.default", "aten.cumsum.default"}


@pytest.mark.parametrize("made", ["awkward", "half", "half_arithmetic", "vulkan", "coreml"])
def test_the_file_agrees_with_its_lowering(made: str, request: pytest.FixtureRequest) -> None:
    made_file: Made = request.getfixturevalue(made)
    lowered, read = made_file.lowered.placement, TARGET.placement(made_file.file)
    assert lowered is not None
    assert read.partitions == lowered.partitions
    assert len(read.fallbacks) == len(lowered.fallbacks)
    assert sum(operator.macs for operator in lowered.operators) == TINY_MACS
    if made not in ("vulkan", "coreml"):
        assert sum(operator.macs for operator in read.operators) == TINY_MACS


def test_float16_rounds_filters_but_depthwise_and_narrow_ones_and_computes_in_float32(half: Made) -> None:
    rounded = Tiny()
    with torch.no_grad():
        for module in (rounded.squeeze, rounded.project, rounded.head):
            module.weight.copy_(module.weight.half().float())
    assert min(Made(half.file, half.lowered, rounded, half.inputs).snr_db()) > 110
    assert 60 < min(half.snr_db()) < 105
    assert half.lowered.placement is not None
    assert half.lowered.placement.partitions == 1 and not half.lowered.placement.fallbacks


def test_half_arithmetic_computes_in_one_partition_between_casts(half_arithmetic: Made) -> None:
    assert min(half_arithmetic.snr_db()) > 50 and max(half_arithmetic.snr_db()) < 80
    placement = half_arithmetic.lowered.placement
    assert placement is not None and placement.partitions == 1
    assert {o.kind for o in placement.fallbacks} == {"dim_order_ops._to_dim_order_copy.default"}
    assert "arithmetic and activations are float16" in half_arithmetic.lowered.notes[0]


@pytest.mark.parametrize("made", ["half", "half_arithmetic"])
def test_float16_stores_filters_as_float16(made: str, request: pytest.FixtureRequest) -> None:
    made_file: Made = request.getfixturevalue(made)
    data = made_file.file.read_bytes()
    assert _bytes(made_file.network.head.weight.half()) in data
    filters = made_file.network.project.weight.permute(0, 2, 3, 1).contiguous()
    assert _bytes(filters.half()) in data
    assert _bytes(filters.float()) not in data


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().numpy().tobytes())


def test_the_file_describes_itself_through_methods_of_the_runtime(awkward: Made) -> None:
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(awkward.file)

    def call(name: str) -> list[Any]:
        return list(program.load_method(name).execute([]))

    preprocess = imagenet_preprocess(SIZE)
    assert json.loads(call("acmix_labels")[0]) == list(LABELS)
    assert json.loads(call("acmix_preprocess")[0])["interpolation"] == "bicubic"
    assert call("acmix_inputs") == ["image", "offset"]
    assert call("acmix_outputs") == ["logits", "features"]
    assert call("acmix_mean") == pytest.approx(preprocess.mean)
    assert call("acmix_crop") == [SIZE, SIZE]
    expected = set(constant_methods(_job("float32", ExecuTorchOptions())))
    assert program.method_names == {"forward", *expected}


@pytest.mark.parametrize("kept_share", [0.0, 0.02, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_refused(awkward: Made, tmp_path: Path, kept_share: float) -> None:
    data = awkward.file.read_bytes()
    broken = tmp_path / "broken.pte"
    broken.write_bytes(data[: int(len(data) * kept_share)])
    with pytest.raises(UsageError, match=r"cannot load broken\.pte"), TARGET.runner(broken, 1):
        pass


@pytest.mark.parametrize("kept_share", [0.0, 0.02, 0.3, 0.5])
def test_placement_refuses_a_truncated_file(awkward: Made, tmp_path: Path, kept_share: float) -> None:
    data = awkward.file.read_bytes()
    broken = tmp_path / "broken.pte"
    broken.write_bytes(data[: int(len(data) * kept_share)])
    with pytest.raises(ValueError, match=r"broken\.pte"):
        TARGET.placement(broken)


def test_coreml_takes_the_whole_network_and_says_where_it_runs(coreml: Made) -> None:
    placement = coreml.lowered.placement
    assert placement is not None and placement.partitions == 1 and not placement.fallbacks
    assert coreml.lowered.nondeterminism
    reason = TARGET.cannot_run_here(ExecuTorchOptions("coreml"))
    assert (reason is None) == (sys.platform == "darwin")


def test_vulkan_lowers_and_says_where_it_runs(vulkan: Made) -> None:
    assert vulkan.lowered.placement is not None
    assert {o.runs_on for o in vulkan.lowered.placement.operators if o.delegated} == {"Vulkan"}
    assert "Vulkan" in (TARGET.cannot_run_here(ExecuTorchOptions("vulkan")) or "")
    assert TARGET.cannot_run_here(ExecuTorchOptions()) is None


def test_a_recipe_of_two_precisions_is_refused_with_what_works() -> None:
    mixed = Recipe("w16", "float16", "float32", Tolerance(45, 1e-2))
    single = Recipe("float32", "float32", "float32", Tolerance(45, 1e-2))
    assert "leave it out" in (TARGET.refuses(single, ExecuTorchOptions(half_arithmetic=True)) or "")
    assert "use the recipe float32 or float16" in (TARGET.refuses(mixed, ExecuTorchOptions()) or "")
    assert TARGET.refuses(Recipe("f", "float16", "float16", Tolerance(45, 1e-2)), ExecuTorchOptions()) is None
