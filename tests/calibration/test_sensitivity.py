"""What int8 in one module costs: against a network that is rounded by hand, and on one that is fragile by design."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from acmix.calibration.collect import collect
from acmix.calibration.sensitivity import by_noise_per_mac, sensitivity
from acmix.toolkit.errors import UsageError
from acmix.toolkit.program import quiet
from acmix.toolkit.quantized import Calibrated
from acmix.toolkit.ranges import Range
from acmix.toolkit.samples import Samples

MakeNoise = Callable[..., Samples]
SHAPE = (1, 3, 8, 8)


class Chain(nn.Module):
    """Three layers; the second is read through something that has no integers."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.body = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 1)
        self.act, self.head = nn.ReLU(inplace=inplace), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.stem(x))
        return self.head(nn.functional.hardswish(self.body(y)).mean((2, 3)))


def calibrated(module: nn.Module, samples: Samples) -> Calibrated:
    with torch.no_grad(), quiet():
        program: ExportedProgram = torch.export.export(module.eval(), (torch.zeros(SHAPE),))
    return Calibrated(program, collect(program, samples, "minmax"))


def by_hand(value: Tensor, found: Range) -> Tensor:
    """Asymmetric int8 as the textbook has it."""
    scale = (found.high - found.low) / 255
    zero = round(-found.low / scale) - 128
    return (torch.clamp(torch.round(value / scale) + zero, -128, 127) - zero) * scale


def body_alone(net: Chain, x: Tensor, ranges: dict[str, Range]) -> Tensor:
    """The chain with its second layer on integers: what it reads, its weight, its bias, what it writes."""
    y = by_hand(torch.relu(net.stem(x)), ranges["relu"])
    scale = (net.body.weight.abs().flatten(1).amax(1) / 127).reshape(-1, 1, 1, 1)
    weight = torch.round(net.body.weight / scale) * scale
    step = scale.flatten() * (ranges["relu"].high - ranges["relu"].low) / 255
    y = nn.functional.conv2d(y, weight, torch.round(net.body.bias / step) * step)
    y = by_hand(y, ranges["conv2d_1"])
    return net.head(nn.functional.hardswish(y).mean((2, 3)))


def test_the_ratio_of_a_module_is_that_of_a_network_with_this_module_rounded_by_hand(noise: MakeNoise) -> None:
    net, samples = Chain(), noise(SHAPE, 5)
    made = calibrated(net, samples)
    assert made.ranges is not None
    signal = lost = 0.0
    with torch.no_grad():
        for (array,) in samples:
            x = torch.from_numpy(array)
            wanted, found = net(x).double(), body_alone(net, x, made.ranges.tensors).double()
            signal, lost = signal + float(wanted.square().sum()), lost + float((found - wanted).square().sum())
    result = {one.module: one for one in sensitivity(made, samples).modules}
    assert result["body"].cost.snr_db == pytest.approx(10 * np.log10(signal / lost), abs=0.05)
    assert result["body"].macs == 6 * 6 * 4 * 4
    assert sum(one.macs_share for one in result.values()) == pytest.approx(1.0)
    assert sum(one.weights_share for one in result.values()) == pytest.approx(1.0)


def test_a_graph_that_overwrites_its_values_gives_the_same(noise: MakeNoise) -> None:
    samples = noise(SHAPE, 5)
    costs = [
        [(one.module, one.cost.snr_db) for one in sensitivity(calibrated(Chain(inplace), samples), samples).modules]
        for inplace in (False, True)
    ]
    # An overwriting activation is no fused one for the grid: the stem's own result is the integer then.
    assert dict(costs[0])["head"] == pytest.approx(dict(costs[1])["head"], abs=1e-3)


def test_a_channel_that_dwarfs_the_others_makes_its_writer_and_its_reader_the_worst(noise: MakeNoise) -> None:
    net = Chain()
    with torch.no_grad():
        for tensor in (net.stem.weight, net.stem.bias):
            tensor[2] *= 2000.0
        net.body.weight[:, 2] /= 2000.0
    result = sensitivity(calibrated(net, noise(SHAPE, 5)), noise(SHAPE, 5))
    ranked = [one.module for one in result.modules]
    assert set(ranked[:2]) == {"stem", "body"}
    assert ranked[2] == "head"
    ratios = [one.cost.snr_db for one in result.modules]
    assert all(ratio is not None for ratio in ratios)
    assert max(ratios[:2]) < 25.0 < 35.0 < ratios[2]
    # The reader has a third of the writer's products, and as much noise.
    assert by_noise_per_mac(result)[0].module == "body"


def test_labels_and_samples_are_counted(noise: MakeNoise) -> None:
    samples = noise(SHAPE, 6)
    made = calibrated(Chain(), samples)
    with torch.no_grad():
        classes = tuple(int(Chain().eval()(torch.from_numpy(x)).argmax()) for (x,) in samples)
    wrong = (*classes[:3], *((label + 1) % 4 for label in classes[3:]))
    result = sensitivity(made, noise(SHAPE, 6, wrong))
    assert result.float_top1 == 0.5
    assert result.samples_count == 6
    with pytest.raises(UsageError, match="noise: 5 has label 4, and the network tells 4 classes apart"):
        sensitivity(made, noise(SHAPE, 6, (0, 1, 2, 3, 0, 4)))
    unlabelled = sensitivity(made, samples)
    assert unlabelled.float_top1 is None
    assert unlabelled.modules[0].cost.top1 is None
    assert unlabelled.modules[0].cost.top1_agreement is not None
