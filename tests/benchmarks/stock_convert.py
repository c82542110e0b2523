"""One stock conversion in the fewest calls its makers document: python stock_convert.py TARGET MODEL FILE."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from acmix.toolkit import capture
from acmix.toolkit.source import find_model


def network(model: str) -> torch.nn.Module:
    """The published form of a zoo model; `naive_lsnet_t` is the port with nn.Unfold, with the same weights."""
    name = model.removeprefix("naive_")
    published = capture.build(find_model(name, ()), None).module
    if name == model:
        return published
    import naive_lsnet

    naive = naive_lsnet.NaiveLSNet(name).eval()
    naive.load_state_dict(published.state_dict())
    return naive


def main(target: str, model: str, file: Path) -> None:
    """Convert a network as a user without acmix would."""
    net = network(model)
    x = torch.zeros(1, 3, 224, 224)
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
