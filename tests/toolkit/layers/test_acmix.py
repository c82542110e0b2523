"""ACmix: the paper read pixel by pixel, and every inference form against the published layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix.toolkit.errors import UsageError
from acmix.toolkit.layers._acmix_attention import AttentionForm, TiledAttention
from acmix.toolkit.layers._acmix_choice import choose_attention, choose_convolution
from acmix.toolkit.layers._acmix_convolution import ConvolutionForm
from acmix.toolkit.layers._acmix_costs import ATTENTION, CONVOLUTION
from acmix.toolkit.layers._acmix_inference import build_form
from acmix.toolkit.layers._acmix_window import OUTSIDE, Axis, window_biases
from acmix.toolkit.layers.acmix import ACmix

CONVOLUTIONS = (
    ConvolutionForm("dense"),
    ConvolutionForm("projected", 2),
    ConvolutionForm("shared", 4),
    ConvolutionForm("direct", 2),
    ConvolutionForm("direct", channels_last=True),
)


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Iterator[None]:
    """Nothing here is trained."""
    with torch.no_grad():
        yield


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal float64 values, the same every time."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest magnitude."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def random_layer(channels: int, outputs: int | None = None, **options: int) -> ACmix:
    """A layer whose every parameter counts, in float64."""
    layer = ACmix(channels, outputs, **options).double().eval()
    for index, parameter in enumerate(layer.parameters()):
        parameter.copy_(noise(*parameter.shape, seed=index) * (2 / parameter[0].numel()) ** 0.5)
    return layer


def random_norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm with statistics."""
    norm = nn.BatchNorm2d(channels).double().eval()
    norm.running_mean = noise(channels, seed=1)
    norm.running_var = noise(channels, seed=2).abs() + 0.5
    norm.weight.copy_(noise(channels, seed=3))
    norm.bias.copy_(noise(channels, seed=4))
    return norm


def reflected(index: int, size: int) -> int:
    """The pixel that a mirror at the border shows; the border itself is not repeated."""
    return -index if index < 0 else 2 * (size - 1) - index if index >= size else index


def attention_by_hand(layer: ACmix, x: Tensor) -> Tensor:
    """The attention path of one image, one pixel and one head at a time."""
    q, k, v = (conv(x)[0] for conv in (layer.conv1, layer.conv2, layer.conv3))
    _, height, width = q.shape
    weight, bias = layer.conv_p.weight[:, :, 0, 0], layer.conv_p.bias
    at = {
        (y, x): weight @ torch.tensor([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dtype=torch.float64) + bias
        for y, x in product(range(height), range(width))
    }
    reach, depth, step = layer.kernel_att // 2, layer.head_channels, layer.stride
    out = torch.zeros(layer.outputs, *layer.output_size(height, width), dtype=x.dtype)
    for head, row, column in product(range(layer.heads), *(range(n) for n in out.shape[1:])):
        mine = slice(head * depth, (head + 1) * depth)
        y0, x0 = row * step, column * step
        window = [
            (reflected(y0 + dy, height), reflected(x0 + dx, width))
            for dy, dx in product(range(-reach, reach + 1), repeat=2)
        ]
        logits = [q[mine, y0, x0] * depth**-0.5 @ (k[mine, y, x] + at[y0, x0] - at[y, x]) for y, x in window]
        shares = torch.stack(logits).softmax(0)
        out[mine, row, column] = sum(share * v[mine, y, x] for share, (y, x) in zip(shares, window, strict=True))
    return out[None]


def convolution_by_hand(layer: ACmix, x: Tensor) -> Tensor:
    """The convolution path, one output channel at a time."""
    maps = torch.cat([conv(x) for conv in (layer.conv1, layer.conv2, layer.conv3)], 1)
    depth, planes = layer.head_channels, 3 * layer.heads
    outputs = []
    for channel in range(layer.outputs):
        group = channel // layer.heads
        mine = [maps[:, plane * depth + group] for plane in range(planes)]
        mixed = [sum(w * m for w, m in zip(row, mine, strict=True)) for row in layer.fc.weight[:, :, 0, 0]]
        stacked = torch.stack([torch.as_tensor(m) for m in mixed], 1)
        kernel = layer.dep_conv.weight[channel : channel + 1]
        outputs.append(F.conv2d(stacked, kernel, stride=layer.stride, padding=layer.kernel_conv // 2))
    return torch.cat(outputs, 1)


@pytest.mark.parametrize(("size", "stride"), [((5, 6), 1), ((6, 9), 2)])
def test_the_published_layer_is_the_paper_read_pixel_by_pixel(size: tuple[int, int], stride: int) -> None:
    layer, x = random_layer(6, 8, heads=2, stride=stride), noise(1, 6, *size)
    wanted = layer.rate1 * attention_by_hand(layer, x) + layer.rate2 * convolution_by_hand(layer, x)
    assert relative_error(layer(x), wanted) < 1e-12


@pytest.mark.parametrize(
    ("channels", "outputs", "size", "stride", "tile", "batch"),
    [
        (16, 16, (8, 8), 1, (8, 8), 1),
        (16, 16, (8, 8), 1, (4, 4), 2),
        (16, 24, (12, 10), 1, (4, 3), 1),
        (16, 16, (13, 9), 2, (4, 3), 3),
        (8, 16, (4, 5), 1, (2, 2), 1),
        (16, 16, (28, 14), 2, (7, 7), 1),
    ],
)
@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
def test_every_inference_form_is_the_layer_and_its_norm(
    channels: int,
    outputs: int,
    size: tuple[int, int],
    stride: int,
    tile: tuple[int, int],
    batch: int,
    convolution: ConvolutionForm,
) -> None:
    layer, norm, x = random_layer(channels, outputs, stride=stride), random_norm(outputs), noise(batch, channels, *size)
    if layer.head_channels % convolution.merged:
        convolution = replace(convolution, merged=2)
    for flag in (False, True):
        form = build_form(layer, x.shape, (AttentionForm(tile, flag, not flag), convolution), norm)
        assert relative_error(form(x), norm(layer(x))) < 1e-11


def test_windows_and_kernels_of_other_widths_work() -> None:
    layer, x = random_layer(8, kernel_att=5, heads=2, kernel_conv=5), noise(1, 8, 9, 9)
    assert relative_error(layer.for_inference("tflite", x.shape)(x), layer(x)) < 1e-11
    forms = (AttentionForm((3, 3)), ConvolutionForm("dense"))
    assert relative_error(build_form(layer, x.shape, forms)(x), layer(x)) < 1e-11


@pytest.mark.parametrize(("size", "stride", "tile"), [(8, 1, 8), (9, 1, 4), (13, 2, 3), (4, 1, 2)])
def test_a_tile_counts_each_pixel_as_often_as_the_padded_window_shows_it(size: int, stride: int, tile: int) -> None:
    axis = Axis(size, 7, stride, tile)
    distinct, names = window_biases(axis, Axis(1, 1, 1, 1))
    bias = torch.cat([distinct[name] for name in names])
    # The rows of tiles that no border touches share one constant.
    assert len(distinct) <= 4
    pixels = F.pad(torch.arange(float(size))[None, None], (3, 3), mode="reflect")[0, 0].long()
    for query in range(axis.queries):
        wanted = torch.bincount(pixels[query * stride : query * stride + 7], minlength=size).double()
        found = torch.zeros(size, dtype=torch.float64)
        start = axis.starts[query // tile]
        found[start : start + axis.span] = bias[query // tile, query % tile].exp()
        assert torch.allclose(found, wanted, atol=1e-12)


def test_a_key_outside_the_window_counts_for_nothing_however_large_it_is() -> None:
    layer = random_layer(8, heads=2)
    layer.conv2.weight.mul_(300)
    x = noise(1, 8, 16, 16)
    logits = (layer.conv1(x) * 0.5).flatten(2).transpose(1, 2) @ layer.conv2(x).flatten(2)
    assert 1000 < float(logits.max()) < -OUTSIDE / 2
    for floored in (False, True):
        form = build_form(layer, x.shape, (AttentionForm((8, 16), floored), CONVOLUTIONS[0]))
        assert relative_error(form(x), layer(x)) < 1e-9


@pytest.mark.parametrize("floored", [False, True])
def test_only_floored_logits_leave_no_denormal_or_zero_share(floored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = random_layer(8, heads=2).float(), noise(1, 8, 14, 14).float()
    attention = TiledAttention(layer, x.shape, AttentionForm((7, 7), floored))
    shares: list[Tensor] = []
    softmax = Tensor.softmax

    def seen(logits: Tensor, dim: int) -> Tensor:
        shares.append(softmax(logits, dim))
        return shares[0]

    monkeypatch.setattr(Tensor, "softmax", seen)
    attention(layer.conv1(x) / 2, layer.conv2(x), layer.conv3(x))
    assert (float(shares[0].min()) > torch.finfo(torch.float32).tiny) == floored


def test_an_inference_form_shares_nothing_with_its_layer() -> None:
    layer, x = random_layer(16), noise(1, 16, 8, 8)
    wanted = layer(x)
    for convolution in CONVOLUTIONS:
        form = build_form(layer, x.shape, (AttentionForm((4, 4)), convolution))
        for tensor in (*form.parameters(), *form.buffers()):
            tensor.zero_()
    assert torch.equal(layer(x), wanted)
    assert all(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize("target", ["tflite", "onnx", "executorch", "coreml"])
@pytest.mark.parametrize(("size", "stride"), [((56, 56), 1), ((40, 32), 2), ((7, 7), 1), ((53, 31), 1)])
def test_the_chosen_tiles_fit_the_map(target: str, size: tuple[int, int], stride: int) -> None:
    layer = ACmix(64, stride=stride)
    form = choose_attention(layer, target, (1, 64, *size))
    for queries, side in zip(layer.output_size(*size), form.tile, strict=True):
        assert 1 <= side <= queries
        assert -(-queries // side) * side - queries < side
    # A mask as large as the map squared would be larger than the network.
    rows, columns = (Axis(n, 7, stride, side) for n, side in zip(size, form.tile, strict=True))
    assert sum(bias.numel() for bias in window_biases(rows, columns)[0].values()) < 1_000_000


def test_the_measured_cases_get_their_cheapest_forms() -> None:
    for target, cases in ATTENTION.items():
        for (channels, size, stride), costs in cases.items():
            chosen = choose_attention(ACmix(channels, stride=stride), target, (1, channels, size, size))
            assert costs[chosen] == min(costs.values())
    for target, convolutions in CONVOLUTION.items():
        for (channels, size, stride), by_form in convolutions.items():
            cheapest = choose_convolution(ACmix(channels, stride=stride), target, (1, channels, size, size))
            assert by_form[cheapest] == min(by_form.values())


def test_core_ml_keeps_large_layers_without_further_weights() -> None:
    assert choose_convolution(ACmix(512), "coreml", (1, 512, 7, 7)).kind == "shared"
    assert choose_convolution(ACmix(64), "coreml", (1, 64, 56, 56)).kind == "projected"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": 30}, "30 outputs among 4 heads"),
        ({"kernel_att": 6}, "kernel_att=6"),
        ({"kernel_conv": 2}, "kernel_conv=2"),
        ({"stride": 0}, "stride=0"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ACmix(32, **options)


def test_a_map_smaller_than_its_reflection_is_refused() -> None:
    layer = ACmix(16)
    with pytest.raises(UsageError, match="3 x 8"):
        layer(torch.zeros(1, 16, 3, 8))
    with pytest.raises(UsageError, match="needs 4 x 4 pixels"):
        layer.for_inference("onnx", (1, 16, 3, 8))
