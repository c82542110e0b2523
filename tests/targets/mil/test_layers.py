"""Convolutions, pooling, normalisations, matrix products and recurrent layers, against torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

torch.manual_seed(0)
X1, X2, X3 = torch.randn(2, 4, 9), torch.randn(2, 4, 7, 10), torch.randn(1, 4, 5, 4, 6)
W1, W2, W3 = torch.randn(6, 4, 3), torch.randn(6, 2, 3, 4), torch.randn(5, 4, 2, 3, 2)
WT = torch.randn(4, 3, 3, 4)
B6, SMALL = torch.randn(6), torch.randn(2, 3, 5)
PLANES = torch.tensor([[[1.0, -7.0], [5.0, -6.0], [-3.0, -5.0]]])
SEQUENCE, HIDDEN, CELL = torch.randn(3, 2, 4), torch.randn(2, 5), torch.randn(2, 5)
G4, V4 = torch.rand(4) + 0.5, torch.rand(4) + 0.5
Q, K, V = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 6)
W65, EIN, EIN2 = torch.randn(6, 5), torch.randn(1, 4, 3, 5), torch.randn(2, 5, 3, 6)
KEEP = torch.rand(4, 5) > 0.3
KEEP[:, 0] = True


def _op(name: str, **fixed: Any) -> Callable[..., Any]:
    arrays = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in fixed.items()}
    return lambda mb, **values: getattr(mb, name)(**values, **arrays)


CONV = {"weight": W2, "groups": 2, "strides": [2, 3]}
CASES: dict[str, tuple[Mapping[str, Tensor], Callable[..., Any], Tensor]] = {
    "conv_1d": ({"x": X1}, _op("conv", weight=W1, bias=B6, dilations=[2]), F.conv1d(X1, W1, B6, dilation=2)),
    "conv_2d": ({"x": X2}, _op("conv", bias=B6, **CONV), F.conv2d(X2, W2, B6, (2, 3), groups=2)),
    "conv_3d": ({"x": X3}, _op("conv", weight=W3), F.conv3d(X3, W3)),
    "conv_custom": (
        {"x": X2},
        _op("conv", pad_type="custom", pad=[0, 1, 2, 0], **CONV),
        F.conv2d(F.pad(X2, (2, 0, 0, 1)), W2, None, (2, 3), groups=2),
    ),
    # 7 rows at stride 2 need two more for a kernel of 3, 10 columns at stride 3 three: the odd one after, or before.
    "conv_same": (
        {"x": X2},
        _op("conv", pad_type="same", **CONV),
        F.conv2d(F.pad(X2, (1, 2, 1, 1)), W2, None, (2, 3), groups=2),
    ),
    "conv_same_lower": (
        {"x": X2},
        _op("conv", pad_type="same_lower", **CONV),
        F.conv2d(F.pad(X2, (2, 1, 1, 1)), W2, None, (2, 3), groups=2),
    ),
    "conv_transpose": (
        {"x": X2},
        _op("conv_transpose", weight=WT, groups=2, strides=[2, 1], dilations=[1, 2], bias=B6),
        F.conv_transpose2d(X2, WT, B6, (2, 1), groups=2, dilation=(1, 2)),
    ),
    "conv_transpose_custom": (
        {"x": X2},
        _op("conv_transpose", weight=WT, pad_type="custom", pad=[1, 0, 2, 1], strides=[2, 3]),
        F.conv_transpose2d(X2, WT, None, (2, 3))[:, :, 1:, 2:-1],
    ),
    "conv_transpose_same": (
        {"x": X2},
        _op("conv_transpose", weight=WT, pad_type="same", strides=[2, 2]),
        F.conv_transpose2d(X2, WT, None, 2)[:, :, :14, 1:21],
    ),
    "conv_transpose_output_shape": (
        {"x": X2},
        _op("conv_transpose", weight=WT, pad_type="same", strides=[2, 2], output_shape=[2, 3, 13, 19]),
        F.conv_transpose2d(X2, WT, None, 2)[:, :, 1:14, 1:20],
    ),
    "max_pool": (
        {"x": X2},
        _op("max_pool", kernel_sizes=[3, 2], strides=[2, 2], pad_type="custom", pad=[1, 1, 0, 0]),
        F.max_pool2d(X2, (3, 2), 2, (1, 0)),
    ),
    "max_pool_ceil": (
        {"x": X2},
        _op("max_pool", kernel_sizes=[2, 3], strides=[2, 3], pad_type="valid", ceil_mode=True),
        F.max_pool2d(X2, (2, 3), (2, 3), ceil_mode=True),
    ),
    "avg_pool": (
        {"x": X2},
        _op("avg_pool", kernel_sizes=[3, 4], strides=[2, 2], pad_type="custom", pad=[1, 1, 2, 2]),
        F.avg_pool2d(X2, (3, 4), 2, (1, 2)),
    ),
    "avg_pool_ceil_without_padding": (
        {"x": X2},
        _op(
            "avg_pool",
            kernel_sizes=[3, 4],
            strides=[2, 3],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            ceil_mode=True,
            exclude_padding_from_average=True,
        ),
        F.avg_pool2d(X2, (3, 4), (2, 3), 1, ceil_mode=True, count_include_pad=False),
    ),
    "avg_pool_ceil": (
        {"x": X2},
        _op("avg_pool", kernel_sizes=[3, 4], strides=[2, 3], pad_type="custom", pad=[1, 1, 1, 1], ceil_mode=True),
        F.avg_pool2d(X2, (3, 4), (2, 3), 1, ceil_mode=True),
    ),
    "avg_pool_3d": (
        {"x": X3},
        _op("avg_pool", kernel_sizes=[2, 2, 3], pad_type="valid"),
        F.avg_pool3d(X3, (2, 2, 3), 1),
    ),
    "avg_pool_global": (
        {"x": X2},
        _op("avg_pool", kernel_sizes=[7, 10], pad_type="valid"),
        X2.mean((2, 3), keepdim=True),
    ),
    "avg_pool_same_lower": (
        {"x": torch.tensor([[[1.0, 2.0]]])},
        _op("avg_pool", kernel_sizes=[2], pad_type="same_lower"),
        torch.tensor([[[0.5, 1.5]]]),
    ),
    "l2_pool": (
        {"x": X2},
        _op("l2_pool", kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"),
        F.lp_pool2d(X2, 2, 2),
    ),
    "batch_norm": (
        {"x": X2},
        _op("batch_norm", mean=G4, variance=V4, gamma=V4, beta=G4, epsilon=np.float32(1e-2)),
        F.batch_norm(X2, G4, V4, V4, G4, eps=1e-2),
    ),
    "instance_norm": ({"x": X2}, _op("instance_norm", gamma=V4, beta=G4), F.instance_norm(X2, weight=V4, bias=G4)),
    "layer_norm": (
        {"x": X2},
        _op("layer_norm", axes=[2, 3], gamma=X2[0, 0], beta=X2[1, 1], epsilon=np.float32(1e-3)),
        F.layer_norm(X2, (7, 10), X2[0, 0], X2[1, 1], 1e-3),
    ),
    "l2_norm": ({"x": X2}, _op("l2_norm"), X2 / torch.sqrt((X2**2).sum((1, 2, 3), keepdim=True) + 1e-6)),
    "local_response_norm": (
        {"x": X2},
        _op("local_response_norm", size=4, alpha=np.float32(0.3), k=np.float32(2)),
        F.local_response_norm(X2, 4, 0.3, 0.75, 2.0),
    ),
    # The values that coremltools' own test publishes: of rank 3, the first axis counts channels.
    "local_response_norm_rank_3": (
        {"x": PLANES},
        _op("local_response_norm", size=2),
        torch.tensor([[[0.99996257, -6.98716545], [4.99531746, -5.99191284], [-2.99898791, -4.99531746]]]),
    ),
    "linear": ({"x": SMALL}, _op("linear", weight=W65, bias=B6), F.linear(SMALL, W65, B6)),
    "matmul_transposed": ({"x": Q, "y": K}, _op("matmul", transpose_y=True), Q @ K.mT),
    "matmul_broadcast": ({"x": SMALL.mT, "y": SMALL[:1]}, _op("matmul"), SMALL.mT @ SMALL[:1]),
    "einsum": (
        {"x": EIN, "y": EIN2},
        lambda mb, x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
        torch.einsum("nchw,nwhu->nchu", EIN.expand(2, -1, -1, -1), EIN2),
    ),
}


@pytest.fixture(scope="module")
def results(packages: Any) -> Any:
    feeds = {case: ({k: v.numpy() for k, v in given.items()}, build) for case, (given, build, _) in CASES.items()}
    return packages.batch(feeds, "iOS17")


@pytest.mark.parametrize("case", CASES)
def test_a_layer_computes_what_torch_does(results: Any, case: str) -> None:
    (output,) = results.outputs[case]
    np.testing.assert_allclose(output, CASES[case][2].numpy(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("mask", [None, KEEP, torch.where(KEEP, 0.5, -3.0)], ids=["plain", "boolean", "added"])
def test_attention_computes_what_torch_does(packages: Any, mask: Tensor | None) -> None:
    fixed = {} if mask is None else {"attn_mask": mask}
    feeds = {"query": Q.numpy(), "key": K.numpy(), "value": V.numpy()}
    (output,) = packages.run(_op("scaled_dot_product_attention", **fixed), feeds, "iOS18")
    np.testing.assert_allclose(output, F.scaled_dot_product_attention(Q, K, V, mask).numpy(), rtol=1e-5, atol=1e-6)


def _reordered(weight: Tensor, order: list[int]) -> Tensor:
    """torch's gates in MIL's order."""
    parts = weight.detach().chunk(len(order))
    return torch.cat([parts[index] for index in order])


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_an_lstm_computes_what_torch_does(packages: Any, direction: str) -> None:
    both = direction == "bidirectional"
    net = nn.LSTM(4, 5, bidirectional=both)
    fixed: dict[str, Any] = {"direction": direction, "output_sequence": True}
    for end, ours in (("", ""), ("_reverse", "_back"))[: 1 + both]:
        fixed[f"weight_ih{ours}"] = _reordered(getattr(net, f"weight_ih_l0{end}"), [0, 1, 3, 2])
        fixed[f"weight_hh{ours}"] = _reordered(getattr(net, f"weight_hh_l0{end}"), [0, 1, 3, 2])
        bias = getattr(net, f"bias_ih_l0{end}") + getattr(net, f"bias_hh_l0{end}")
        fixed[f"bias{ours}"] = _reordered(bias, [0, 1, 3, 2])
    h, c = (torch.stack([one, one + 1]) if both else one[None] for one in (HIDDEN, CELL))
    steps = SEQUENCE.flip(0) if direction == "reverse" else SEQUENCE
    expected, (last_h, last_c) = net(steps, (h, c))
    feeds = {"x": SEQUENCE, "initial_h": torch.cat(list(h), -1), "initial_c": torch.cat(list(c), -1)}
    outputs = packages.run(_op("lstm", **fixed), {name: one.numpy() for name, one in feeds.items()})
    for output, one in zip(outputs, (expected, torch.cat(list(last_h), -1), torch.cat(list(last_c), -1)), strict=True):
        np.testing.assert_allclose(output, one.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_gru_that_resets_afterwards_computes_what_torch_does(packages: Any) -> None:
    net = nn.GRU(4, 5)
    names = {"weight_ih": net.weight_ih_l0, "weight_hh": net.weight_hh_l0}
    names |= {"input_bias": net.bias_ih_l0, "bias": net.bias_hh_l0}
    fixed = {name: _reordered(one, [0, 2, 1]) for name, one in names.items()}
    feeds = {"x": SEQUENCE.numpy(), "initial_h": HIDDEN.numpy()}
    build = _op("gru", reset_after=True, output_sequence=True, **fixed)
    output, last = packages.run(build, feeds, "iOS18")
    expected, expected_last = net(SEQUENCE, HIDDEN[None])
    np.testing.assert_allclose(output, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last, expected_last[0].detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_gru_resets_the_hidden_state_before_its_product(packages: Any) -> None:
    """One unit, one step: r = sigmoid(x + h), z = sigmoid(2x + 3h), o = tanh(4x + 5 r h)."""
    fixed = {"weight_ih": np.array([[1], [4], [2]], np.float32), "weight_hh": np.array([[1], [5], [3]], np.float32)}
    x, h = 0.3, -0.2
    r, z = (1 / (1 + np.exp(-one)) for one in (x + h, 2 * x + 3 * h))
    o = np.tanh(4 * x + 5 * r * h)
    feeds = {"x": np.full((1, 1, 1), x, np.float32), "initial_h": np.full((1, 1), h, np.float32)}
    _, last = packages.run(_op("gru", **fixed), feeds)
    np.testing.assert_allclose(last, [[(1 - z) * o + z * h]], rtol=1e-5)


def test_an_rnn_computes_what_torch_does(packages: Any) -> None:
    net = nn.RNN(4, 5)
    fixed = {"weight_ih": net.weight_ih_l0.detach(), "weight_hh": net.weight_hh_l0.detach()}
    bias = (net.bias_ih_l0 + net.bias_hh_l0).detach()
    feeds = {"x": SEQUENCE.numpy(), "initial_h": HIDDEN.numpy()}
    output, _ = packages.run(_op("rnn", bias=bias, output_sequence=True, **fixed), feeds)
    np.testing.assert_allclose(output, net(SEQUENCE, HIDDEN[None])[0].detach().numpy(), rtol=1e-5, atol=1e-6)


def test_since_ios17_a_product_takes_constants_of_another_type(packages: Any) -> None:
    weight = np.array([[1, -2], [3, 4]], np.int32)
    x = np.array([[0.5, 1.5]], np.float32)
    product, linear = packages.run(lambda mb, x: [mb.matmul(x=x, y=weight), mb.linear(x=x, weight=weight)], {"x": x})
    np.testing.assert_allclose(product, x @ weight)
    np.testing.assert_allclose(linear, x @ weight.T)
