"""One stock conversion in the fewest calls its makers document: python stock_convert.py TARGET MODEL FILE."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

from acmix.toolkit import capture, catalog
from acmix.toolkit.source import find_model

FLOOR_CHANNELS, FLOOR_SIZE = 512, 28
FLOOR_MACS = (FLOOR_CHANNELS * FLOOR_SIZE) ** 2
"""Of the one large 1 x 1 convolution called `floor`: the rate that a runtime reaches where nothing is in its way."""


def network(model: str) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """A network and its input's shape: the published form of a zoo model; `naive_NAME` is the port of
    naive/<family>.py with the same weights; `floor` one large convolution.
    """
    if model == "floor":
        return torch.nn.Conv2d(FLOOR_CHANNELS, FLOOR_CHANNELS, 1).eval(), (1, FLOOR_CHANNELS, FLOOR_SIZE, FLOOR_SIZE)
    name = model.removeprefix("naive_")
    built = capture.build(find_model(name, ()), None)
    shape = built.spec.inputs[0].shape
    if name == model:
        return built.module, shape
    family = next(card.family for card in catalog.model_cards() if card.name == name)
    naive: torch.nn.Module = importlib.import_module(f"naive.{family}").NAIVE[name]()
    naive.load_state_dict(built.module.state_dict())
    return naive.eval(), shape


def main(target: str, model: str, file: Path) -> None:
    """Convert a network as a user without acmix would."""
    net, shape = network(model)
    x = torch.zeros(shape)
    if target == "tflite":
        import litert_torch

        nhwc = x.permute(0, 2, 3, 1).contiguous()
        litert_torch.convert(litert_torch.to_channel_last_io(net, args=[0]), (nhwc,)).export(str(file))
    elif target == "onnx":
        import onnx
        import onnxsim

        torch.onnx.export(net, (x,), str(file), dynamo=True, external_data=False)
        onnx.save(onnxsim.simplify(onnx.load(file))[0], file)
    elif target == "executorch":
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.export(net, (x,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        file.write_bytes(lowered.buffer)
    else:
        import coremltools

        program = torch.export.export(net, (x,)).run_decompositions({})
        options = {"minimum_deployment_target": coremltools.target.iOS16, "skip_model_load": True}
        coremltools.convert(program, **options).save(str(file))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
