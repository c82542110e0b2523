"""The arithmetic of int8 kernels: against integers counted by hand, int64 sums, and the runtimes themselves."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.apps.requests import ExportFlags, export_request
from acmix.toolkit import catalog, pipeline
from acmix.toolkit import int8_kernels as kernels
from acmix.toolkit.artifact import Artifact
from acmix.toolkit.quantized import simulate
from acmix.toolkit.target import Int8Kernels
from acmix.toolkit.verify import SNR_LIMIT_DB

aten = torch.ops.aten
ALL = (0, -128, 127)
PairsOf = Callable[[nn.Module, Tensor], ExportedProgram]
DEEP_INPUT = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))


class Deep(nn.Module):
    """Residual blocks in which one value beside a rounding edge goes through many later roundings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, 1, 1)) for _ in range(8)
        )
        self.wide = nn.Conv2d(16, 640, 1)
        self.head = nn.Linear(640, 40)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(torch.relu(self.wide(x)).mean((2, 3)))


def make_deep() -> nn.Module:
    """With seeded weights of full size: a rounding is not damped on its way."""
    torch.manual_seed(0)
    net = Deep()
    for parameter in net.blocks.parameters():
        parameter.data *= 1.7
    return net.eval()


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The deep network as int8, on the three targets whose runtimes are here."""
    flags = ExportFlags(
        model=f"{Path(__file__)}:make_deep", target="onnx,executorch,tflite", precision="w8a8", inputs=("1x3x64x64",),
        preprocess="imagenet", calibration="builtin", out=tmp_path_factory.mktemp("deep"),
    )  # fmt: skip
    outcomes = pipeline.export(export_request(flags, {}), lambda target, stage, seconds: None)
    assert [one.error for one in outcomes] == [""] * 3
    return {one.target: one.artifact for one in outcomes if one.artifact is not None}


@pytest.mark.parametrize("target", ["onnx", "executorch", "tflite"])
def test_a_deep_file_gives_every_bit_of_its_simulation(deep: dict[str, Artifact], target: str) -> None:
    (agreement,) = deep[target].manifest.proof.conversion
    assert agreement.samples >= 15
    assert agreement.snr_db == SNR_LIMIT_DB


def test_float_arithmetic_on_the_same_integers_parts_from_them(pairs_of: PairsOf) -> None:
    """What the kernels are for: else the test above would hold without them."""
    program = pairs_of(make_deep(), DEEP_INPUT)
    exact, plain = (simulate(program, kernels=one) for one in ("onnxruntime", None))
    turned = [np.roll(DEEP_INPUT.numpy(), shift, axis=3) for shift in range(12)]
    assert not all(np.array_equal(exact([one])[0], plain([one])[0]) for one in turned)


@pytest.mark.parametrize("kind", ["onnxruntime", "xnnpack"])
def test_every_layer_sum_and_pool_of_the_deep_network_is_a_kernel(kind: Int8Kernels, pairs_of: PairsOf) -> None:
    module = kernels.with_kernels(pairs_of(make_deep(), DEEP_INPUT), kind)
    left = [n.target for n in module.graph.nodes if n.op == "call_function"]
    # The input's own rounding, by the runtime's way, and the scores as floats.
    first = kernels.quantize if kind == "onnxruntime" else kernels.QUANTIZE
    assert left == [first, kernels.DEQUANTIZE]
    assert sum(n.op == "call_module" for n in module.graph.nodes) == 1 + 2 * 8 + 8 + 1 + 1 + 1


@pytest.mark.parametrize("kind", ["onnxruntime", "xnnpack"])
def test_a_pool_that_leaves_more_than_one_value_is_no_mean_of_the_map(kind: Int8Kernels, pairs_of: PairsOf) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)).eval()
    x = torch.randn(1, 3, 16, 16)
    pairs = pairs_of(net, x)
    found, eager = simulate(pairs, kernels=kind)([x.numpy()])[0], net(x).detach().numpy()
    assert found.shape == (1, 5)
    assert float(np.abs(found - eager).max()) < 0.05 * float(np.abs(eager).max())


def test_scales_too_far_apart_for_xnnpack_are_added_in_float(pairs_of: PairsOf) -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            nn.init.constant_(self.left.weight, 1e-6)
            nn.init.zeros_(self.left.bias)  # type: ignore[arg-type]

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) + self.right(x)

    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8)
    pairs = pairs_of(Silent(), x)
    module = kernels.with_kernels(pairs, "xnnpack")
    assert aten.add.Tensor in [n.target for n in module.graph.nodes]
    assert np.isfinite(simulate(pairs, kernels="xnnpack")([x.numpy()])[0]).all()


@pytest.mark.parametrize(
    ("shape", "weight", "rest"),
    [
        ((1, 8, 6, 6), (4, 8, 3, 3), ([1, 1], [1, 1])),
        ((1, 8, 6, 6), (8, 1, 5, 5), ([2, 2], [2, 2], [1, 1], 8)),
        ((1, 2048, 3, 3), (5, 2048, 3, 3), ([1, 1], [1, 1])),
        ((1, 1536, 2, 2), (4, 768, 2, 2), ([1, 1], [0, 0], [1, 1], 2)),
    ],
)
def test_sums_are_those_of_int64_however_many_products_they_have(
    shape: tuple[int, ...], weight: tuple[int, ...], rest: tuple[object, ...]
) -> None:
    random = torch.Generator().manual_seed(0)
    # Large and of one sign: float32 alone would lose the last digits.
    values = torch.randint(200, 256, shape, generator=random)
    weights = torch.randint(100, 128, weight, generator=random)
    exact = aten.conv2d.default(values.double(), weights.double(), None, *rest)
    found = kernels.exact_sums(aten.conv2d.default, values.float(), weights.float(), rest)
    assert found.dtype == torch.float64
    assert torch.equal(found, exact)


def test_a_linear_layer_of_many_inputs_sums_exactly() -> None:
    values, weights = torch.full((1, 4096), 255), torch.full((3, 4096), 127)
    values[0, 7], weights[1, 9] = 254, 126
    found = kernels.exact_sums(aten.linear.default, values.float(), weights.float())
    assert found.long().tolist() == [(values @ weights.T)[0].tolist()]


def layer(integers: list[int], multiplier: float, ends: tuple[int, int, int] = ALL) -> list[int]:
    """A layer of one weight, 1, so that its sums are its inputs."""
    values = torch.tensor(integers, dtype=torch.int8).reshape(-1, 1)
    found = kernels.layer(values, aten.linear.default, 0, torch.ones(1, 1), None, torch.tensor([multiplier]), (), ends)
    return found.flatten().tolist()


def test_onnx_runtime_divides_by_the_scale() -> None:
    scale = float(np.float32(0.01865844801068306))
    found = kernels.quantize(torch.tensor([0.5 * scale, 2.5 * scale, -400.0]), scale, -14, -128, 127, torch.int8)
    assert found.tolist() == [-14, -12, -128]


def test_halves_go_to_the_even_integer_and_ends_hold() -> None:
    assert layer([1, 3, 5, -1, -3], 0.5) == [0, 2, 2, 0, -2]
    assert layer([100, -100], 2.0) == [127, -128]
    assert layer([1, 3, -9], 1.0, (-128, -128, 100)) == [-127, -125, -128]
    assert layer([50, -50], 1.0, (10, 10, 40)) == [40, 10]


def test_a_bias_is_added_before_the_product_is_rounded() -> None:
    found = kernels.layer(
        torch.tensor([[3]], dtype=torch.int8), aten.linear.default, 1, torch.full((1, 1), 2.0),
        torch.tensor([3.0], dtype=torch.float64), torch.tensor([0.5]), (), ALL,
    )  # fmt: skip
    assert found.tolist() == [[4]]  # ((3 - 1) * 2 + 3) / 2 = 3.5


@pytest.mark.parametrize("ratios", [(1.0, 1.0), (0.3, 0.7), (2.5, 0.01), (0.125, 0.9)])
def test_both_sums_are_within_a_step_of_the_real_one_and_mostly_equal(ratios: tuple[float, float]) -> None:
    steps = torch.arange(-128, 128)
    one, other = (t.flatten().to(torch.int8) for t in torch.meshgrid(steps, steps, indexing="ij"))
    ratios = tuple(float(np.float32(r)) for r in ratios)
    real = (one.double() - 3) * ratios[0] + (other.double() + 5) * ratios[1] - 7
    for function in (kernels.add_fixed_point, kernels.add_float):
        found = function(one, other, (3, -5), ratios, (-7, -128, 127)).double()
        wanted = real.clamp(-128, 127)
        # A half may go either way: XNNPACK rounds it up, ONNX Runtime to the even integer.
        assert float((found - wanted).abs().max()) <= 0.5 + 1e-3


def test_halves_of_a_sum_go_up_in_xnnpack_and_to_even_in_onnx_runtime() -> None:
    one, other = torch.tensor([1, 2, 3, -1], dtype=torch.int8), torch.tensor([0, 1, 0, 0], dtype=torch.int8)
    assert kernels.add_fixed_point(one, other, (0, 0), (0.5, 0.5), ALL).tolist() == [1, 2, 2, 0]
    assert kernels.add_float(one, other, (0, 0), (0.5, 0.5), ALL).tolist() == [0, 2, 2, 0]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other kernels of ONNX Runtime")
def test_a_float_sum_is_onnx_runtimes_for_every_pair_of_integers() -> None:
    one, other = np.meshgrid(*2 * [np.arange(-128, 128, dtype=np.int8)])
    rng = np.random.default_rng(0)
    # The first ones were found in a MobileNetV3: one pair of 65,536 there is a half, but for 1e-6.
    grids = [(np.array([1.9460806, 1.7751561, 2.3630383], np.float32), np.array([2, 5, 5]))]
    grids += [(rng.uniform(0.01, 3, 3).astype(np.float32), rng.integers(-128, 128, 3)) for _ in range(20)]
    for scales, zeros in grids:
        session = qlinear_add(scales, zeros + kernels.UNSIGNED)
        feed = {
            name: (x.astype(np.int16) + kernels.UNSIGNED).astype(np.uint8) for name, x in (("a", one), ("b", other))
        }
        wanted = session.run(None, feed)[0].astype(np.int16) - kernels.UNSIGNED
        ratios = [float(scale / scales[2]) for scale in scales[:2]]
        ends = (int(zeros[2]), -128, 127)
        found = kernels.add_float(torch.from_numpy(one), torch.from_numpy(other), zeros[:2].tolist(), ratios, ends)
        np.testing.assert_array_equal(found.numpy(), wanted)


def qlinear_add(scales: np.ndarray[Any, Any], zeros: np.ndarray[Any, Any]) -> onnxruntime.InferenceSession:
    """ONNX Runtime's own sum of two uint8 maps a and b. scales, zeros: of a, b and the sum."""
    names = [("a_scale", "a_zero"), ("b_scale", "b_zero"), ("scale", "zero")]
    stored = [
        numpy_helper.from_array(np.asarray(value), name)
        for (first, second), scale, zero in zip(names, scales, zeros, strict=True)
        for name, value in ((first, np.float32(scale)), (second, np.uint8(zero)))
    ]
    node = helper.make_node("QLinearAdd", ["a", *names[0], "b", *names[1], *names[2]], ["c"], domain="com.microsoft")
    values = [helper.make_tensor_value_info(name, TensorProto.UINT8, (256, 256)) for name in "abc"]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "sum", values[:2], values[2:], stored)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString())


def test_an_average_is_one_product_of_the_exact_sum() -> None:
    values = torch.full((1, 2, 7, 7), 100, dtype=torch.int8)
    values[0, 1] = -128
    assert kernels.mean(values, -28, (2, 3), False, 0.5, ALL).tolist() == [[64, -50]]


def test_a_target_says_whose_arithmetic_its_integers_have() -> None:
    known: dict[str, Callable[[], object]] = {
        name: catalog.load_target(name).int8_kernels for name in catalog.stems("targets")
    }
    assert known == {"coreml": "coreml", "executorch": "xnnpack", "onnx": "onnxruntime", "tflite": "xnnpack"}
