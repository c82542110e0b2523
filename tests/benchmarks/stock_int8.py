"""One stock int8 conversion, as the makers document it: python stock_int8.py TARGET MODEL CALIBRATION FILE."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from stock_convert import main as convert
from stock_convert import network

from acmix.calibration.sources import read_calibration
from acmix.toolkit.samples import Samples
from acmix.toolkit.source import find_model


def samples_of(model: str, calibration: str) -> Samples:
    """The photos, preprocessed for the model."""
    spec = find_model(model, ()).spec
    return read_calibration(calibration, spec.inputs, spec.preprocess)


def to_executorch(model: str, samples: Samples, file: Path) -> None:
    """XNNPACKQuantizer through torchao's PT2E."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    net, shape = network(model)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(net, (torch.zeros(shape),)).module(), quantizer)
    with torch.no_grad():
        for (image,) in samples:
            prepared(torch.from_numpy(image))
    program = torch.export.export(convert_pt2e(prepared), (torch.zeros(shape),))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    file.write_bytes(lowered.buffer)


def to_onnx(model: str, samples: Samples, file: Path) -> None:
    """onnxruntime.quantization's static quantization, its own preprocessing and defaults, per channel."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.feeds: Iterator[dict[str, object]] = ({name: image} for (image,) in samples)

        def get_next(self) -> dict[str, object] | None:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        floating, ready = Path(folder, "float.onnx"), Path(folder, "ready.onnx")
        convert("onnx", model, floating)
        quant_pre_process(str(floating), str(ready))
        import onnx

        name = onnx.load(ready).graph.input[0].name
        quantize_static(str(ready), str(file), Reader(name), per_channel=True)


def to_tflite(model: str, samples: Samples, file: Path) -> None:
    """litert-torch, then ai-edge-quantizer's static recipe and its own calibration."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    with tempfile.TemporaryDirectory() as folder:
        floating = Path(folder, "float.tflite")
        convert("tflite", model, floating)
        name, signature = next(iter(Interpreter(str(floating)).get_signature_list().items()))
        feeds = [{signature["inputs"][0]: image.transpose(0, 2, 3, 1)} for (image,) in samples]
        made = quantizer.Quantizer(str(floating))
        made.load_quantization_recipe(recipe.static_wi8_ai8())
        made.quantize(made.calibrate({name: feeds})).export_model(str(file), overwrite=True)


if __name__ == "__main__":
    target, model, calibration = sys.argv[1:4]
    {"executorch": to_executorch, "onnx": to_onnx, "tflite": to_tflite}[target](
        model, samples_of(model, calibration), Path(sys.argv[4])
    )
