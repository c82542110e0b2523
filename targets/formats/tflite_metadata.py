"""TFLite Metadata: what Android's tools read from a model (the schema of tflite-support, identifier M001).

No package for numpy 2 has its generated code, so the few tables in use are built here by their field numbers.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import flatbuffers  # type: ignore[import-untyped]

from acmix.toolkit.spec import Preprocess, TensorSpec

ENTRY = "TFLITE_METADATA"
EXTRA_ENTRY = "acmix"
LABELS_FILE = "labels.txt"
_IDENTIFIER = b"M001"
_PARSER_VERSION = "1.0.0"
_TENSOR_AXIS_LABELS = 2
_NORMALIZATION = 1
_IMAGE = 2
_RGB = 1


@dataclass(frozen=True)
class Tables:
    """A flatbuffer under construction; each method gives the offset of what it wrote."""

    builder: flatbuffers.Builder

    def text(self, text: str) -> int:
        return int(self.builder.CreateString(text))

    def floats(self, values: Sequence[float]) -> int:
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.builder.PrependFloat32(value)
        return int(self.builder.EndVector())

    def list(self, offsets: Sequence[int]) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())

    def table(self, fields: dict[int, int], bytes_: dict[int, int] | None = None) -> int:
        """fields: field number to offset (0 leaves it out).  bytes_: field number to one-byte scalar."""
        numbers = [*fields, *(bytes_ or {})]
        self.builder.StartObject(max(numbers) + 1)
        for number, offset in fields.items():
            self.builder.PrependUOffsetTRelativeSlot(number, offset, 0)
        for number, value in (bytes_ or {}).items():
            self.builder.PrependUint8Slot(number, value, 0)
        return int(self.builder.EndObject())


@dataclass(frozen=True)
class GraphMetadata:
    """What is told of one graph of a file."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    preprocess: Preprocess | None = None


def metadata(model: str, description: str, graphs: Sequence[GraphMetadata], labels: int) -> bytes:
    """The ModelMetadata flatbuffer, with an entry for each graph of the file in order.

    The first image input gets its colours, size and normalisation; the outputs whose last axis is as long as
    the number of labels refer to labels.txt.
    """
    tables = Tables(flatbuffers.Builder(1024))
    described = [_graph(tables, graph, labels) for graph in graphs]
    root = tables.table(
        {
            0: tables.text(model),
            1: tables.text(description),
            3: tables.list(described),
            7: tables.text(_PARSER_VERSION),
        }
    )
    tables.builder.Finish(root, file_identifier=_IDENTIFIER)
    return bytes(tables.builder.Output())


def _graph(tables: Tables, graph: GraphMetadata, labels: int) -> int:
    image = next((s for s in graph.inputs if s.layout in ("nchw", "nhwc")), None)
    of_inputs = [_input(tables, s, graph.preprocess if s is image else None) for s in graph.inputs]
    of_outputs = [_output(tables, s, labels > 0 and s.shape[-1:] == (labels,)) for s in graph.outputs]
    return tables.table({2: tables.list(of_inputs), 3: tables.list(of_outputs)})


def _input(tables: Tables, spec: TensorSpec, preprocess: Preprocess | None) -> int:
    name = tables.text(spec.name)
    if preprocess is None:
        return tables.table({0: name})
    normalization = tables.table({0: tables.floats(preprocess.mean), 1: tables.floats(preprocess.std)})
    unit = tables.table({1: normalization}, {0: _NORMALIZATION})
    height, width = preprocess.crop
    properties = tables.table({1: _image_size(tables.builder, width, height)}, {0: _RGB})
    content = tables.table({1: properties}, {0: _IMAGE})
    described = tables.text(f"RGB image, {spec.layout}, (pixel - mean) / std with pixels from 0 to 255")
    return tables.table({0: name, 1: described, 3: content, 4: tables.list([unit])})


def _image_size(builder: flatbuffers.Builder, width: int, height: int) -> int:
    builder.StartObject(2)
    builder.PrependUint32Slot(0, width, 0)
    builder.PrependUint32Slot(1, height, 0)
    return int(builder.EndObject())


def _output(tables: Tables, spec: TensorSpec, labelled: bool) -> int:
    name = tables.text(spec.name)
    if not labelled:
        return tables.table({0: name})
    description = tables.text("the class of each element, one name a line")
    file = tables.table({0: tables.text(LABELS_FILE), 1: description}, {2: _TENSOR_AXIS_LABELS})
    return tables.table({0: name, 6: tables.list([file])})


def extra(texts: Mapping[str, str]) -> bytes:
    """What TFLite Metadata has no field for (resize, crop, interpolation), as JSON; the labels have their file."""
    return json.dumps({k: v for k, v in texts.items() if k != "acmix.labels"}, sort_keys=True).encode()


def append_labels(model: bytes, labels: Sequence[str]) -> bytes:
    """The model with labels.txt behind it: a TFLite file with associated files is also a zip archive."""
    stream = io.BytesIO()
    stream.write(model)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        # A fixed date: the time of day would make every export differ.
        archive.writestr(zipfile.ZipInfo(LABELS_FILE, (1980, 1, 1, 0, 0, 0)), "\n".join(labels) + "\n")
    return stream.getvalue()
